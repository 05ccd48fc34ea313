"""The command line as a user meets it: answers, JSON, and one clear line with exit code 2 for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, own_cache, pilotfish, refused, tiny
from family_files import random_family
from folders import folder_of
from model_files import imported

from pilotfish.apps import cli
from pilotfish.runtime import storage
from pilotfish.runtime.errors import PilotfishWarning
from pilotfish.runtime.install import install_command
from pilotfish.testing.tiny_models import tiny_gguf

__all__ = ["own_cache", "pilotfish", "tiny"]  # fixtures
pytest.importorskip("onnxruntime")
PROMPT = "hello the hello and the hello"


def test_run_prints_the_answer_and_says_what_it_took(tiny: Path, pilotfish: Run) -> None:
    outcome = pilotfish("run", tiny, PROMPT, "-n", 12)
    assert outcome.code == 0 and outcome.out.strip()
    assert "tokens/s" in outcome.err and "onnx on cpu" in outcome.err


def test_run_reads_the_prompt_from_a_pipe(tiny: Path, pilotfish: Run) -> None:
    piped = pilotfish("run", tiny, "-n", 12, stdin=PROMPT.encode())
    assert piped.out == pilotfish("run", tiny, PROMPT, "-n", 12).out


def test_a_raw_prompt_may_hold_special_tokens(tiny: Path, pilotfish: Run) -> None:
    def n_prompt(*options: object) -> int:
        found = pilotfish("run", tiny, "<|im_start|>hello", "--raw", "-n", 2, "--json", *options)
        return int(json.loads(found.out)["n_prompt"])

    assert n_prompt("--special") == 2 < n_prompt()


def test_a_demo_brings_its_own_model(pilotfish: Run) -> None:
    outcome = pilotfish("run", "--demo", "correct", "teh quikc brwon fox", "--threads", 1)
    assert (outcome.code, outcome.out.strip()) == (0, "the quick brown fox"), outcome.err
    refused(pilotfish("run", "--demo", "sing", "la"), "no demo 'sing'", "correct")
    refused(pilotfish("run", "--demo", "correct", "a", "b"), "brings its own model")
    refused(pilotfish("run"), "--demo correct")


def test_json_holds_the_answer_and_every_statistic(tiny: Path, pilotfish: Run) -> None:
    found = json.loads(pilotfish("run", tiny, PROMPT, "-n", 16, "--json").out)
    plain = json.loads(pilotfish("run", tiny, PROMPT, "-n", 16, "--json", "--plain").out)
    wanted = "n_prompt n_tokens drafted accepted ttft_s decode_s decode_tok_s kv_bytes engine device"
    assert set(wanted.split()) | {"text", "token_ids", "finish_reason"} <= set(found)
    assert found["token_ids"] == plain["token_ids"] and found["text"] == plain["text"]
    assert found["n_tokens"] == len(found["token_ids"]) == 16 and found["finish_reason"] == "length"
    assert found["drafted"] > 0 == plain["drafted"]


def test_sampling_is_repeatable_and_penalties_change_the_text(tiny: Path, pilotfish: Run) -> None:
    def text(*options: object) -> str:
        return str(pilotfish("run", tiny, PROMPT, "-n", 16, *options).out)

    sampled = text("-t", 1.0, "--seed", 7)
    assert sampled == text("-t", 1.0, "--seed", 7) == text("-t", 1.0, "--seed", 7, "--plain")
    assert len({text("-t", 1.0, "--seed", s) for s in range(4)}) > 1
    assert text("--repetition-penalty", 3.0) != text()


def test_a_draft_model_changes_nothing_but_the_time(tiny: Path, pilotfish: Run) -> None:
    plain = json.loads(pilotfish("run", tiny, PROMPT, "-n", 24, "--json", "--plain").out)
    drafted = json.loads(pilotfish("run", tiny, PROMPT, "-n", 24, "--json", "--draft", tiny).out)
    assert drafted["token_ids"] == plain["token_ids"]
    assert drafted["kv_bytes"] > plain["kv_bytes"]


def test_a_stop_string_is_not_shown(tiny: Path, pilotfish: Run) -> None:
    whole = json.loads(pilotfish("run", tiny, PROMPT, "-n", 24, "--json").out)["text"]
    stop = whole[5:8]
    cut = json.loads(pilotfish("run", tiny, PROMPT, "-n", 24, "--json", "--stop", stop).out)
    assert cut["text"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"


def test_chat_remembers_and_ends(tiny: Path, pilotfish: Run) -> None:
    outcome = pilotfish("chat", tiny, "-n", 8, stdin=b"hello\n\nthe and\n/bye\nnever read\n")
    assert outcome.code == 0 and len(outcome.out.splitlines()) >= 2
    assert outcome.err.count("tokens/s") == 2


def test_chat_goes_on_from_a_file(tiny: Path, pilotfish: Run, tmp_path: Path) -> None:
    file = tmp_path / "talk"
    first = pilotfish("chat", tiny, "-n", 8, "--resume", file, stdin=b"hello\n")
    second = pilotfish("chat", tiny, "-n", 8, "--resume", file, stdin=b"the and\n/bye\n")
    assert first.code == second.code == 0
    assert "turns so far" not in first.err and "1 turns so far" in second.err
    assert "2 turns so far" in pilotfish("chat", tiny, "--resume", file).err
    whole = pilotfish("chat", tiny, "-n", 8, stdin=b"hello\nthe and\n")
    assert first.out + second.out == whole.out
    for more, words in (
        (("--system", "the"), "drop --system"),
        (("--no-exact",), "--reread"),
        (("--resume", tmp_path / "no" / "talk"), "cannot be saved"),
    ):
        outcome = pilotfish("chat", tiny, "--resume", file, *more)
        assert outcome.code == 2 and words in outcome.err
    assert pilotfish("chat", tiny, "--resume", file, "--no-exact", "--reread").code == 0
    assert pilotfish("chat", tiny, "--reread").code == 2


def test_inspect_and_doctor(tiny: Path, pilotfish: Run) -> None:
    found = json.loads(pilotfish("inspect", tiny, "--json").out)
    assert found["general.architecture"] == "llama" and found["tensors"] > 0
    assert "general.architecture" in pilotfish("inspect", tiny).out
    assert "experts" not in found
    mixture = random_family("qwen3moe", tiny.parent / "mixture.gguf")
    assert (
        "2 of 5 in a layer are computed for a token"
        in json.loads(pilotfish("inspect", mixture, "--json").out)["experts"]
    )
    bundle = imported(tiny)
    assert json.loads(pilotfish("inspect", bundle, "--json").out)["source"]["name"] == "tiny.gguf"
    pilotfish("run", tiny, PROMPT, "-n", 2)
    facts = json.loads(pilotfish("doctor", "--json").out)
    assert facts["engines"]["onnx"]["available"] and facts["engines"]["onnx"]["devices"][0] == "cpu"
    assert facts["measured"]
    assert "onnx" in pilotfish("doctor").out


def test_narrow_is_refused_in_the_words_of_the_command_line(tiny: Path, pilotfish: Run) -> None:
    for line, words in (
        (("--narrow", "--no-exact"), "--narrow is for exact answers, and --no-exact runs steps of any width"),
        (("--narrow", "--cache", "sinks:budget=64", "--quality", 0.9), "--narrow is not for answers with --quality"),
    ):
        outcome = pilotfish("run", tiny, PROMPT, "-n", 2, *line)
        assert outcome.code == 2 and words in outcome.err and "measuring" not in outcome.err
    outcome = pilotfish("run", "--demo", "correct", "a text", "-n", 2, "--narrow")
    assert outcome.code == 2 and "--narrow is for decoders" in outcome.err


def test_doctor_tries_the_engines_on_a_model(tiny: Path, pilotfish: Run) -> None:
    facts = json.loads(pilotfish("doctor", tiny, "--job", "30x20", "--json").out)
    assert facts["instruction_sets"] and facts["choice"]["job"] == {
        "prompt_tokens": 30,
        "new_tokens": 20,
        "acceptance": None,
    }
    onnx = next(t for t in facts["choice"]["trials"] if t["engine"] == "onnx")
    assert onnx["usable"] and onnx["canary_error"] < 0.2 and onnx["job_s"] > 0 and set(onnx["step_s"]) == set("1248")
    table = pilotfish("doctor", tiny).out
    assert "answer of 128" in table and "onnx" in table
    assert "--again are about a model" in pilotfish("doctor", "--again").err


def test_doctor_lists_and_says_only_what_can_be_relied_on(
    tiny: Path, tmp_path: Path, pilotfish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))
    pilotfish("run", tiny, PROMPT, "-n", 2)
    (kept,) = (path for path in (tmp_path / "costs").glob("*.json") if ".token" not in path.name)
    assert len(json.loads(pilotfish("doctor", "--json").out)["measured"]) == 1
    facts = json.loads(kept.read_text())
    dear = [0.0896, *([0.055] * (len(facts["measured"]) - 1))]
    for worse in ({"measured": dear}, {"busy": 0.9}):  # as an earlier version kept it
        kept.write_text(json.dumps({**facts, **worse}))
        assert json.loads(pilotfish("doctor", "--json").out)["measured"] == []
    monkeypatch.setattr("pilotfish.loading.cpu_load.Others.share", lambda others: 0.9)
    said = "other programs used 90% of the processor meanwhile"
    found = json.loads(pilotfish("doctor", tiny, "--again", "--json").out)
    assert {trial["doubt"] for trial in found["choice"]["trials"]} == {said}
    assert f"{said}; it is tried again the next time" in pilotfish("doctor", tiny, "--again").out


def test_bench_curve_and_engines(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    options = ("--engines", "onnx,reference", "--context", 40, "--repeats", 1, "--json", "--out", tmp_path)
    report = json.loads(pilotfish("bench", "curve", tiny, *options).out)
    assert len(report["engines"]) == 2
    for row in report["engines"].values():
        assert all(row["step_ms"][str(w)] > 0 for w in (1, 2, 4, 8, 16, 32)) and row["prefill_tokens_per_s"] > 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "T(8) / T(1)" in pilotfish("bench", "curve", tiny, *options[:6]).out
    options = ("--engines", "onnx", "--prompts", 1, "--repeats", 1, "--tokens", 6, "--json")
    (row,) = json.loads(pilotfish("bench", "engines", tiny, *options).out)["engines"]
    assert row["engine"].startswith("onnx") and row["ratio"] > 0 and 0 < row["own_share"] < 1


def test_bench_run_asks_about_a_document(tiny: Path, pilotfish: Run) -> None:
    options = ("--document", 200, "--cache", "sinks:budget=48,every=32", "--tokens", 6, "--repeats", 1)
    outcome = pilotfish("bench", "run", tiny, "--engine", "onnx", "--threads", 1, *options, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    ((name, row),) = report["sets"].items()
    assert name == "document" and row["prompts"] == row["same_text"] == 1 and "fastest_bare" not in row
    whole = pilotfish("bench", "run", tiny, "--engine", "onnx", "--threads", 1, *options[:2], *options[4:], "--json")
    assert report["kv_bytes"] < json.loads(whole.out)["kv_bytes"] / 4
    assert "'--document': 0 is not in the range" in pilotfish("bench", "run", tiny, "--document", 0).err


def test_bench_cache(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    pytest.importorskip("matplotlib")
    text = tmp_path / "text"
    text.write_text(" ".join(f"the {n} and the hello {n * n % 97} cat" for n in range(400)))
    options = ["--length", 128, "--predicted", 32, "--needle-lengths", "240,288", "--depths", 2, "--keys", 2]
    options += ["--text", text, "--engine", "onnx", "--policy", "sinks", "--policy", "knorm"]
    shares = ["--share", "1/2", "--share", "0.25"]
    folder = tmp_path / "out"
    outcome = pilotfish("bench", "cache", tiny, *options, *shares, "--out", folder, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert [(row["policy"], row["share"]) for row in report["rows"]] == [
        ("full", "1"), ("sinks", "1/2"), ("knorm", "1/2"), ("sinks", "1/4"), ("knorm", "1/4"),
    ]  # fmt: skip
    assert "knorm 1/4: ppl" in outcome.err  # each row as it is made
    assert {p.name for p in folder.iterdir()} == {"rows.jsonl", "cache.json", "cache.png", "needles.png"}
    full, *rows = report["rows"]
    assert full["kl"] == 0 and full["agreement"] == 1 and full["perplexity"] == full["perplexity_exact"]
    for row in rows:
        assert row["kl"] > 0 and 0 <= row["agreement"] < 1 and row["perplexity"] != row["perplexity_exact"]
        assert row["entries"] == (64 if row["share"] == "1/2" else 32)
        assert [needle[:2] for needle in row["needles"]] == [[240, 0.0], [240, 1.0], [288, 0.0], [288, 1.0]]
        assert [length for length, _ in row["keys"]] == [240, 288]
        assert 0 < row["select_s"] < row["prompt_s"] and row["tokens_per_s"] < 1e3 / row["step_ms"]
    smaller, larger = rows[2], rows[0]
    assert smaller["kv_bytes"] < larger["kv_bytes"] < larger["kv_bytes_full"] and smaller["kl"] > larger["kl"]
    named = pilotfish("bench", "cache", tiny, *options[:-1], "knorm:budget=40,every=8", *shares, "--json")
    runs = [(row["policy"], row["share"], row["entries"], row["command"]) for row in json.loads(named.out)["rows"]]
    assert [run[:3] for run in runs[1:]] == [
        ("sinks", "1/2", 64), ("sinks", "1/4", 32), ("knorm:budget=40,every=8", None, 48),
    ]  # fmt: skip
    assert "knorm:budget=40,every=8 48 entries: ppl" in named.err and "--share" not in runs[-1][-1]
    again = pilotfish(*smaller["command"].split()[1:], "--json", "--threads", 1)
    _, row = json.loads(again.out)["rows"]
    for name in ("kl", "agreement", "perplexity"):
        assert row[name] == pytest.approx(smaller[name], rel=1e-3)
    assert (row["needles"], row["keys"]) == (smaller["needles"], smaller["keys"])
    for bad, words in (
        (("--predicted", 128), "must lie in 2..127"),
        (("--keys", 9), "must lie in 0..8"),
        (("--keys", 8, "--needle-lengths", "160"), "8 needles and their questions take"),
    ):
        refused = pilotfish("bench", "cache", tiny, *options, *bad)
        assert refused.code == 2 and words in refused.err, (bad, refused.err)
    for bad, words in (
        (("--share", "2"), "part of the text"),
        (("--share", "1/2", "--policy", "sinks:budget=48"), "--share sizes policies"),
        (("--share", "1/2", "--policy", "full"), "--share sizes policies"),
        (("--length", 100_000), "--text takes a longer one"),
        (("--policy", "nonsense"), "no cache policy"),
        (("--text", tmp_path / "absent"), "cannot be read"),
        (("--needle-lengths", "3"), "64 or more"),
        (("--needle-lengths", "64"), "too few"),
    ):
        refused = pilotfish("bench", "cache", tiny, "--engine", "onnx", *bad)
        assert refused.code == 2 and words in refused.err, (bad, refused.err)


def test_bench_cache_goes_on_with_the_rows_it_has(
    tiny: Path, tmp_path: Path, pilotfish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from pilotfish.apps.bench.cache_rows import Bench

    measure, made = Bench.row, list[str]()

    def row(self: Bench, kv_dtype: str | None, name: str, *more: Any) -> object:
        made.append(f"{name} {kv_dtype}")
        if len(made) == 2:
            raise KeyboardInterrupt
        return measure(self, kv_dtype, name, *more)

    monkeypatch.setattr(Bench, "row", row)
    options = ["--engine", "onnx", "--length", 96, "--needle-lengths", "", "--share", "1/2", "--out", tmp_path / "out"]
    options += ["--policy", "sinks", "--policy", "knorm"]
    stopped = pilotfish("bench", "cache", tiny, *options)
    assert stopped.code != 0 and made == ["sinks None", "knorm None"]
    assert "sinks" in stopped.out and "select" in stopped.out  # the table of what there is
    kept = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["policy"] for line in kept] == ["full", "sinks"]
    (tmp_path / "out" / "rows.jsonl").write_text("\n".join([*kept, '{"policy": "kn']))  # cut short
    outcome = pilotfish("bench", "cache", tiny, *options, "--kv-dtype", "int8", "--json")
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["rows"]
    assert [(r["policy"], r["kv_dtype"]) for r in rows] == [
        ("full", None), ("full", "int8"), ("sinks", "int8"), ("knorm", "int8"),
    ]  # fmt: skip
    assert 0 < rows[1]["kl"] < rows[2]["kl"] and 4 * rows[1]["kv_bytes"] == rows[0]["kv_bytes"]
    assert made[2:] == ["sinks int8", "knorm int8"]
    outcome = pilotfish("bench", "cache", tiny, *options, "--json")
    assert [r["policy"] for r in json.loads(outcome.out)["rows"]] == ["full", "sinks", "knorm"]
    assert made[4:] == ["knorm None"]


def test_bench_writes_results_and_a_plot(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"set": "mine", "prompt": PROMPT}) + "\n")
    options = ("--prompts", prompts, "--tokens", 8, "--repeats", 2, "--max-context", 256, "--out", tmp_path / "out")
    outcome = pilotfish("bench", "run", tiny, *options)
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["sets"]["mine"]["same_text"] == 1
    mine = report["sets"]["mine"]
    assert mine["times_plain"]["plain"] == 1.0 and mine["tokens_per_s"]["bare onnx"] > 0
    bare = {name: rate for name, rate in mine["tokens_per_s"].items() if name.startswith("bare ")}
    assert (
        mine["fastest_bare"] == max(bare, key=bare.__getitem__) and mine["times_bare"] == mine["lowest_times_bare"] > 0
    )
    assert (tmp_path / "out" / "ratios.png").read_bytes().startswith(b"\x89PNG")


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_no_such_model(pilotfish: Run) -> None:
    refused(pilotfish("run", "smollm2-135", "hi"), "no file or folder smollm2-135", "Did you mean smollm2-135m?")
    refused(pilotfish("pull", "nonsense"), "no model 'nonsense'", "smollm2-135m")


def test_foreign_truncated_and_empty_files(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    whole = tiny.read_bytes()
    for name, data in (("foreign", b"PK\x03\x04" * 100), ("empty", b""), ("short", whole[: len(whole) // 2])):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        refused(pilotfish("run", path, "hi"), str(path.name))
    other = tmp_path / "model.bin"
    other.write_bytes(b"PK\x03\x04" * 100)
    refused(pilotfish("run", other, "hi"), "not a .gguf file")
    other.write_bytes(whole)  # what it holds counts, not its name
    assert pilotfish("run", other, "hi", "-n", 4).code == 0
    refused(pilotfish("run", tmp_path / "nowhere", "hi"), "no file or folder")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "bloom"}')
    refused(pilotfish("run", tmp_path / "hf", "hi"), "Hugging Face folder", ".gguf")


def test_a_folder_of_safetensors_is_a_model(tmp_path: Path, pilotfish: Run) -> None:
    gguf = random_family("qwen3", tmp_path / "m.gguf")
    folder = folder_of("qwen3", gguf, tmp_path / "Tiny", bf16=True)
    outcome = pilotfish("run", folder, PROMPT, "-n", 8)
    assert outcome.code == 0 and "onnx on cpu" in outcome.err
    assert json.loads(pilotfish("inspect", folder, "--json").out)["tensor_types"] == {"BF16": 35}
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(pilotfish("run", folder, PROMPT), "model.safetensors is truncated")
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    refused(pilotfish("run", folder, PROMPT), "pickled", "save_pretrained")


def test_architectures_and_tensor_types_that_are_not_known(tmp_path: Path, pilotfish: Run) -> None:
    path = tiny_gguf(tmp_path / "falcon.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"bloom"))
    refused(pilotfish("run", path, "hi"), "bloom", "GGUF import knows llama, qwen2")


def test_a_damaged_bundle_is_built_again_and_a_foreign_one_refused(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    before = pilotfish("run", tiny, PROMPT, "-n", 8).out
    bundle = imported(tiny)
    data = bundle / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-7])
    refused(pilotfish("run", bundle, PROMPT), "bytes instead of")
    assert pilotfish("run", tiny, PROMPT, "-n", 8).out == before
    stat = data.stat()
    changed = bytearray(data.read_bytes())
    changed[100] ^= 1
    data.write_bytes(changed)
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10))
    refused(pilotfish("run", bundle, PROMPT), "sha256")
    assert pilotfish("run", tiny, PROMPT, "-n", 8).out == before


def test_prompts_that_do_not_fit(tiny: Path, pilotfish: Run) -> None:
    refused(pilotfish("run", tiny, "hello " * 100, "--max-context", 64), "session holds 64", "max_context=")
    refused(pilotfish("run", tiny, "   "), "prompt is empty")
    refused(pilotfish("run", tiny, stdin=b""), "prompt is empty")
    refused(pilotfish("run", tiny, stdin=b"caf\xe9"), "not UTF-8", "byte 3 is 0xe9")
    refused(pilotfish("run", tiny, "hi", "--max-context", 10**9), "max_context is 1000000000")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plain", "--draft", "x"], ["--plain and --draft"]),
        (["--raw", "--system", "x"], ["--raw", "--system"]),
        (["--special"], ["--special", "--raw", "no message"]),
        (["--special", "--raw", "--document", "x"], ["--special", "no document"]),
        (["--top-k", "3"], ["--temperature above 0"]),
        (["-t", "-1"], ["temperature is -1.0"]),
        (["-t", "1", "--top-p", "2"], ["top_p is 2.0"]),
        (["-n", "-5"], ["'-n': -5 is not in the range x>=0"]),
        (["--threads", "0"], ["threads is 0"]),
        (["--engine", "tensorrt"], ["no engine 'tensorrt'", "onnx, openvino"]),
        (["--device", "npu"], ["no device 'npu'", "cpu"]),
        (["--stop", ""], ["stop string is empty"]),
        (["--option", "precision"], ["'precision' must be NAME=VALUE"]),
        (["--option", "precision=bf16"], ["onnx engine has no options", "precision"]),
        (["--kv-dtype", "q3"], ["f32, or in int8", "'q3'"]),
        (["--draft-engine", "onnx"], ["there is no draft model"]),
        (["--draft", "nowhere.gguf"], ["no file or folder nowhere.gguf"]),
        (["--beams", "0"], ["beams is 0"]),
        (["--beams", "2", "-t", "1"], ["--beams", "--temperature", "drop one"]),
        (["--beams", "2", "--repetition-penalty", "1.2"], ["--beams", "penalties"]),
        (["--beams", "2", "--stop", "x"], ["--beams", "--stop"]),
        (["--beams", "2", "--draft", "self"], ["--beams", "--draft"]),
        (["--beams", "2", "--cache", "sinks"], ["--beams", "--cache"]),
        (["--temprature", "1"], ["No such option"]),
    ],
)
def test_contradictory_and_impossible_options(tiny: Path, pilotfish: Run, options: list[str], words: list[str]) -> None:
    refused(pilotfish("run", tiny, "hi", *options), *words)


def test_a_draft_with_another_special_token_changes_no_text(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    other = tiny_gguf(tmp_path / "other.gguf")
    other.write_bytes(other.read_bytes().replace(b"<|endoftext|>", b"<|endofword|>"))
    drafted = pilotfish("run", tiny, "hi", "--draft", other, "--max-new-tokens", "12")
    assert drafted.code == 0 and drafted.out == pilotfish("run", tiny, "hi", "--plain", "--max-new-tokens", "12").out


def test_a_draft_with_nothing_in_common_names_the_first_difference(
    tiny: Path, tmp_path: Path, pilotfish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pilotfish.runtime.speculation.vocab_mapping._ids_by_meaning", lambda t: {(False, str(id(t)).encode()): 0}
    )
    other = tiny_gguf(tmp_path / "other.gguf")
    other.write_bytes(other.read_bytes().replace(b"<|endoftext|>", b"<|endofwork|>"))
    outcome = pilotfish("run", tiny, "hi", "--draft", other)
    refused(
        outcome, "cannot draft", "token 269 is '<|endoftext|>'", "'<|endofwork|>'", "share 0 of 1", "no draft (--plain)"
    )
    assert "draft=None" not in outcome.err


def test_what_a_model_cannot_be_asked_for_is_refused_before_it_is_measured(
    tiny: Path, pilotfish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfish.loading.load.load_with", lambda *_: pytest.fail("it was loaded"))
    refused(pilotfish("run", tiny, "hi", "--language", "fr"), "no token for the language 'fr'; it has none")
    refused(pilotfish("run", tiny, "hi", "--source-language", "fr"), "source language 'fr'")
    refused(pilotfish("run", tiny, "hi", "--task", "translate"), "no token for the task 'translate'")
    refused(pilotfish("run", tiny, "hi", "--timestamps"), "timestamps are asked of models that listen")


def test_missing_engine_names_the_command(tiny: Path, pilotfish: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert install_command("onnx") in pilotfish("doctor").out  # brackets are not markup
    refused(pilotfish("run", tiny, "hi"), install_command("onnx"))
    refused(pilotfish("run", tiny, "hi", "--engine", "onnx"), install_command("onnx"))


def test_templates_that_raise_or_loop(tmp_path: Path, pilotfish: Run) -> None:
    for name, template in (
        ("raises", "{{ raise_exception('no roles here') }}"),
        ("loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        ("broken", "{% for %}"),
    ):
        path = tiny_gguf(tmp_path / f"{name}.gguf", template=template)
        refused(pilotfish("run", path, "hi"), "template")
        assert pilotfish("run", path, "hi", "--raw", "-n", 2).code == (2 if name == "broken" else 0)


def test_disk_full_while_caching_leaves_nothing(
    tmp_path: Path, pilotfish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", seed=5)
    cache = tmp_path / "cache"
    monkeypatch.setenv("PILOTFISH_CACHE", str(cache))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    from pilotfish.exporters.onnx.writer import OnnxWriter

    with monkeypatch.context() as patch:
        patch.setattr(OnnxWriter, "save", full)
        refused(pilotfish("run", path, "hi"), "disk is full", "PILOTFISH_CACHE")
        assert list((cache / "bundles").iterdir()) == []
    with monkeypatch.context() as patch:  # facts that only save time may be lost
        patch.setattr(storage.os, "fsync", full)
        refused(pilotfish("run", path, "hi"), "disk is full")
    assert pilotfish("run", path, "hi", "-n", 2).code == 0


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_ends_with_130_and_no_traceback(tiny: Path, own_cache: Path) -> None:
    command = [sys.executable, "-m", "pilotfish.apps.cli", "run", str(tiny), "-n", "0", PROMPT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)  # it is answering
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 or process.returncode == 0  # 0: it had answered already
    assert b"Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="pipes end differently there")
def test_a_reader_that_goes_away_is_no_error(tiny: Path) -> None:
    command = f"{sys.executable} -m pilotfish.apps.cli run {tiny} -n 0 '{PROMPT}' | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=600, check=False)
    assert len(done.stdout) == 1 and b"Traceback" not in done.stderr


def test_help_is_quick_and_loads_no_engine() -> None:
    heavy = ("onnxruntime", "onnx", "torch", "transformers", "matplotlib", "huggingface_hub")
    code = f"""
import sys
sys.argv = ["pilotfish", "--help"]
from pilotfish.apps import cli
try:
    cli.main()
except SystemExit:
    print([m for m in {heavy} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout


def test_warnings_of_libraries_are_not_shown_to_users(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def warn(**how: object) -> None:
        warnings.warn("overflow encountered in cast", RuntimeWarning, stacklevel=1)
        warnings.warn("went on with another engine", PilotfishWarning, stacklevel=1)

    monkeypatch.setattr(cli, "app", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            cli.main()
    said = capsys.readouterr().err
    assert "overflow" not in said and "pilotfish: went on with another engine" in said
