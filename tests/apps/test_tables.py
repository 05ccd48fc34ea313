"""Tables of every command: no word broken and nothing lost on a narrow terminal, a line a row in a pipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pilotfish.apps import demo, doctor, draft, export, inspection, terminal
from pilotfish.apps.bench import cache_report as bench_cache_report
from pilotfish.apps.bench import curve as bench_curve
from pilotfish.apps.bench import engines as bench_engines
from pilotfish.apps.bench import long as bench_long
from pilotfish.apps.bench import run as bench
from pilotfish.apps.bench.peers import report as bench_peers_report
from pilotfish.runtime.profiling.engine_trial import Choice, EngineTrial, Job
from pilotfish.testing.tiny_models import tiny_gguf

LONG = (
    "openvino 2026.4.1 f16 keys f16 values, dynamic quantization in groups of 32, 4 streams",
    "llamacpp 0.3.36 f16 keys bf16 values, flash attention on, weights not repacked, build 1f2e3d4c",
)
MACHINE = {"machine": "An Example (R) Processor 9B14 with a long name, 2 cores, Linux", "model": "m.gguf"}


def show_curve() -> None:
    row = {"step_ms": {str(w): 100.5 * w for w in bench_curve.WIDTHS}, "prefill_tokens_per_s": 1234.5}
    bench_curve._show({**MACHINE, "context": 256, "threads": 2, "engines": dict.fromkeys(LONG, row)})


def show_run() -> None:
    names = (bench.PLAIN, bench.SPECULATIVE, bench.ONE_ROW, "bare llamacpp", "bare onnx")
    row = {
        "tokens_per_s": dict.fromkeys(names, 1234.5),
        "times_plain": dict.fromkeys(names, 1.25),
        "lowest_times_plain": 0.75,
        "fastest_bare": "bare llamacpp",
        "times_bare": 1.25,
        "lowest_times_bare": 0.75,
        "accepted": 12345,
        "drafted": 23456,
        "same_text": 10,
        "prompts": 10,
        "copied": 0.5,
    }
    sets = {"summarise": row, "a_set_of_prompts": row}
    more = {"own_ms_per_round": {bench.SPECULATIVE: 0.1, bench.PLAIN: 0.1}, "price_of_exactness": 1.0}
    bench._show({**MACHINE, **more, "engine": LONG[0], "new_tokens": 96, "repeats": 3, "sets": sets})


def show_engines() -> None:
    keys = ("ours_tokens_per_s", "theirs_tokens_per_s", "ratio", "lowest", "step_ms", "own_ms", "own_share")
    rows: list[dict[str, object]] = [
        {"engine": name, **dict.fromkeys(keys, 0.123), "same_text": 15, "texts": 15} for name in LONG
    ]
    bench_engines._show({**MACHINE, "new_tokens": 96, "repeats": 3}, rows)


def show_peers() -> None:
    numbers = ("tokens_per_s", "times_fastest", "lowest_times_fastest", "ratio_of_means", "tokens_per_step", "first_s")
    row: dict[str, Any] = {**dict.fromkeys(numbers, 12.345), "ceiling_times_fastest": 1.23, "joules_per_token": 1.2}
    names = ("openvino-genai draft dynamic", "llama-cpp-python lookup")
    rows = {name: {**row, "same_text": 10} for name in names}
    peer = {"state": "ran", "version": LONG[0], "load_s": 12.3, "peak_bytes": 5 << 30}
    peers = {names[0]: peer, names[1]: {**peer, "state": "failed: its process died of SIGKILL", "peak_bytes": None}}
    facts = {**MACHINE, "instruction_sets": ["avx2", "fma"], "threads": 2, "new_tokens": 96, "repeats": 3}
    sets = {"reasoning": {"prompts": 10, "fastest_plain": names[1], "rows": rows}}
    bench_peers_report.show({**facts, "temperature": 0.7, "seed": 1, "peers": peers, "sets": sets})


def show_cache() -> None:
    row = {"policy": "chunk-snapkv:budget=512,window=32", "kv_dtype": "u8/u4", "share": None, "entries": 512}
    numbers = ("perplexity", "perplexity_exact", "kl", "agreement", "kv_bytes", "tokens_per_s", "step_ms")
    more = ("step_ms_full", "step_ms_ceiling", "select_s", "prompt_s")
    row |= {
        **dict.fromkeys((*numbers, *more), 12.5),
        "needles": [(512, 0.5, 1.0)],
        "keys": [(512, 1.0)],
        "command": "x",
    }
    facts = {**MACHINE, "engine": LONG[0], "length": 1024, "refused": {"select": "the reason"}}
    bench_cache_report.show({**facts, "rows": [row, {**row, "share": "1/2"}]})


def show_long() -> None:
    needle = {"tokens": 16384, "method": "likelihood", "kept": 1, "answered": 1, "seconds": 1234.5}
    bench_long._show({**MACHINE, "engine": LONG[0], "max_context": 2048, "needles": [needle], "curve": None})


def show_demo() -> None:
    stats: Any = SimpleNamespace(decode_tok_s=123.4, accepted=123, drafted=234, tokens_per_round=1.23)
    demo._show(terminal.output(), {key: [stats] for key in ("plain", "speculative", "one row")})


def show_doctor() -> None:
    facts = doctor._facts()
    facts["engines"]["long"] = doctor._engine_facts(LONG[0], devices=("cpu", "gpu.0", "npu"), notes={"cpu": LONG[1]})
    facts["engines"]["lacking"] = doctor._engine_facts(install="pip install something")
    facts["engines"]["broken"] = doctor._engine_facts("1.0", problem="it does not run. Mend it: pip install it")
    doctor._show(terminal.output(), facts)


def show_choice() -> None:
    steps = {1: 0.123, 2: 0.123, 4: 0.1234, 8: 0.1234}
    trials = [
        EngineTrial(name, "1.0", "npu-emulated", 16, steps, 0.001, canary_error=0.0)
        for name in ("openvino", "long-name")
    ]
    trials.append(EngineTrial("onnx", "1.0", "cpu", 2, {}, problem="it does not open this"))
    doctor._show_choice(terminal.output(), "m.gguf", Choice.of(trials, Job(), True))


def show_draft() -> None:
    measured = {"draft": 1.23, "lookup": 1.23, "both": 1.23}
    row = SimpleNamespace(
        agreement=0.5, overlap=0.5, draft=SimpleNamespace(k=4, acceptance=0.5, speed_up=1.5), lookup=1.1, pays=True,
        measured=measured,
    )  # fmt: skip
    result: Any = SimpleNamespace(
        pairing="identical", n_shared=9, draft="d.gguf", target="t.gguf", engine=LONG[0], threads=2, draft_ms=1.2,
        step_ms={1: 1.2}, sets={"summarise": row, "long_name_of_a_set": row}, verdict="It pays.", doubt="",
    )  # fmt: skip
    draft.show(result, False)
    options = [SimpleNamespace(n_dropped=9, agreement=0.5, cost=0.5, expected=1.2)]
    draft._show_options(SimpleNamespace(options=options))  # type: ignore[arg-type]


def show_export() -> None:
    parity = SimpleNamespace(
        greedy_prompts=10, greedy_equal=9, max_difference=0.123, mean_difference=0.0123, kl=0.1234, top1=0.999,
        agreement=0.999, perplexity=123.45, greedy_first=12, perplexity_source=123.45,
    )  # fmt: skip
    one = SimpleNamespace(
        form="onnx-static", seconds=123.4, n_bytes=123456789, ok=False, parity=parity, problems=("bad",)
    )
    target = SimpleNamespace(
        name="onnx-static", n_bytes=123456789, measured={"relative_difference": 0.1, "agreement": 0.9}
    )
    report: Any = SimpleNamespace(
        folder=Path("a folder/of a bundle"), with_source=True, formats=(one,), seconds={"onnx-static": 12.3},
        rounding=parity, targets=(target,), left_out={"qnn": "not here"}, failed={"pte": "no"},
    )  # fmt: skip
    export.show(report, False)


TABLES: dict[str, Callable[[], None]] = {
    "bench curve": show_curve,
    "bench run": show_run,
    "bench engines": show_engines,
    "bench peers": show_peers,
    "bench cache": show_cache,
    "bench long": show_long,
    "demo": show_demo,
    "doctor": show_doctor,
    "doctor MODEL": show_choice,
    "draft check": show_draft,
    "export": show_export,
}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that a terminal of some columns gets, or a pipe."""

    def lines(show: Callable[[], None], columns: int | None) -> list[str]:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        monkeypatch.setenv("COLUMNS", str(columns or 40))  # which says nothing of a pipe
        if columns is not None:
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.setenv("TERM", "xterm")
        show()
        said = capsys.readouterr().out
        assert columns is not None or "\x1b" not in said
        return re.sub(r"\x1b\[[\d;]*m", "", said).splitlines()

    return lines


def words(lines: list[str]) -> set[str]:
    """Words without what stands around them in one form of a table only."""
    return {bare for line in lines for word in line.split() if (bare := word.strip(",;:-─"))}


@pytest.mark.parametrize("columns", [80, 60, 40])
@pytest.mark.parametrize("name", TABLES)
def test_no_word_is_broken_and_nothing_is_lost(name: str, columns: int, shown: Callable[..., list[str]]) -> None:
    piped, narrow = shown(TABLES[name], None), shown(TABLES[name], columns)
    assert words(narrow) >= words(piped)
    too_long = [line for line in narrow if len(line) > columns and len(line.split()) > 1]
    assert [line for line in too_long if "pip install" not in line] == []  # commands stay in one line, to be copied


@pytest.mark.parametrize("name", TABLES)
def test_a_pipe_gets_plain_whole_lines(name: str, shown: Callable[..., list[str]]) -> None:
    lines = shown(TABLES[name], None)
    text = "\n".join(lines)
    assert text.isascii() and not re.search(r"\.\.\.|…", text)


def test_a_row_is_a_line_in_a_pipe(shown: Callable[..., list[str]]) -> None:
    rows = [line for line in shown(show_curve, None) if line.startswith(LONG)]
    assert [line.split()[-8:] for line in rows] == [
        ["100.5", "201.0", "402.0", "804.0", "1608.0", "3216.0", "8.00", "1234"]
    ] * 2  # fmt: skip


def test_what_is_too_wide_for_a_table_is_shown_row_by_row(shown: Callable[..., list[str]]) -> None:
    lines = shown(show_curve, 40)
    assert "n=16: 1608.0; n=32: 3216.0; T(8) / T(1): 8.00;" in " ".join(" ".join(lines).split())
    assert lines[4].startswith(f"engine: {LONG[0].split()[0]}")


def test_inspect_shows_all_of_a_value_in_a_pipe(tmp_path: Path, shown: Callable[..., list[str]]) -> None:
    file = tiny_gguf(tmp_path / "a-name-without-a-space-that-is-wider-than-sixty-columns-of-a-terminal.gguf")
    piped = shown(lambda: inspection.inspect_model(str(file), False), None)
    template = next(line for line in piped if line.startswith("tokenizer.chat_template"))
    assert "{% endif %}" in template.rstrip()[-40:]
    narrow = shown(lambda: inspection.inspect_model(str(file), False), 60)
    assert str(file) in narrow[0] or str(file) in narrow[1]
    assert "characters; --json shows all)" in " ".join(" ".join(narrow).split())
    assert all(len(line) <= 60 or len(line.split()) <= 2 for line in narrow)  # a name, and a word that is too long
