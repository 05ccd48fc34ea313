"""Every number that a caller may give, tried with impossible ones: one line that says so, or a result."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pilotfish import Beams, Job, Model, PilotfishError, Sampling, excerpt, export, load, verify
from pilotfish.apps import cli
from pilotfish.drafts.check import check_draft
from pilotfish.drafts.make import drop_layers, lower_bits
from pilotfish.runtime.cache.policies.by_name import POLICIES, SELECTING, WRAPPERS, policy_by_name
from pilotfish.runtime.errors import ContextFullError, OptionError
from pilotfish.runtime.speculation.draft_length import Confidence, Fixed
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

pytest.importorskip("onnxruntime")

NUMBERS = (-1, 0, 1, float("nan"), float("inf"), 10**6, 10**20, "word")
TEXTS = [str(number) for number in NUMBERS]
POLICY = "sinks:budget=16,every=8,window=4,sinks=1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, module_cache: None) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "prompts.jsonl").write_text(json.dumps({"set": "mine", "prompt": "hello the hello"}) + "\n")
    return tiny_gguf(folder / "tiny.gguf", sizes=Sizes(context=512))


def command_lines(tiny: Path) -> dict[str, list[str]]:
    """A short line for every command; a new command needs one."""
    model, quick = str(tiny), ["--engine", "onnx", "--threads", "1"]
    tokens = ["--tokens", "2", "--repeats", "1"]
    return {
        "run": [model, "hello", "-n", "2", *quick],
        "chat": [model, "-n", "2", *quick],
        "demo": ["--model", model, "--threads", "1"],
        "pull": ["no-such-model"],
        "inspect": [model],
        "doctor": [model],
        "export": ["no-such-model", "-o", "out"],
        "verify": ["no-such-bundle"],
        "bench run": [
            model,
            "--prompts",
            str(tiny.with_name("prompts.jsonl")),
            "--max-context",
            "128",
            *tokens,
            *quick,
        ],
        "bench curve": [model, "--engines", "onnx", "--context", "8", "--repeats", "1", "--threads", "1"],
        "bench engines": [model, "--engines", "onnx", "--prompts", "1", *tokens, "--threads", "1"],
        "bench peers": [model, "--peers", "pilotfish", "--sets", "code", "--per-set", "1", *tokens, *quick],
        "bench cache": [model, "--length", "96", "--needle-lengths", "", "--keys", "0", "--policy", "sinks", *quick],
        "bench long": [model, "--times", "", "--max-context", "512", "--segment", "32", *quick],
        "draft check": [model, model, "--engine", "onnx", "--threads", "1", "--tokens", "2", "--per-set", "1"],
        "draft make": [model, "-o", "made", "--threads", "1"],
        "draft speech": [model, "--tokens", "2", *quick],
    }


class InstantWorker:
    """A worker of `bench peers` that starts no process: what a number does to one is told apart from its own tests."""

    def __init__(self, *_: object) -> None:
        pass

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if "open" in message:
            return {"opened": "1", "seconds": 0.0}
        return {"answer": {"tokens": [1, 2], "seconds": 2.0, "first_s": 1.0, "n_first": 1}}

    def close(self) -> None:
        pass


BESIDE = {  # options that mean something beside others only
    **{name: ["-t", "1"] for name in ("--top-k", "--top-p", "--min-p", "--seed")},
    "--quality": ["--cache", POLICY],
}
NAMES_NUMBERS = {"--quality", "--share", "--job", "--times", "--needle-lengths"}  # texts that numbers are read from
COMMANDS = sorted(command_lines(Path("tiny.gguf")))


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, below in command.commands.items():
        yield from commands(below, (*path, name))


def numeric(command: Any) -> list[Any]:
    """The options of a command that take numbers."""
    return [
        option
        for option in command.params
        if option.param_type_name == "option"
        and not option.is_flag
        and (option.type.name.split()[0] in ("integer", "float") or NAMES_NUMBERS & {*option.opts})
    ]


def without(line: list[str], names: list[str]) -> list[str]:
    kept, skip = [], False
    for word in line:
        if skip or word in names:
            skip = not skip
        else:
            kept.append(word)
    return kept


def test_every_command_is_tried() -> None:
    assert sorted(name for name, _ in commands(typer.main.get_command(cli.app))) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_takes_a_number_or_says_in_one_line_why_not(
    name: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("pilotfish.apps.bench.peers.measure.Worker", InstantWorker)
    command = dict(commands(typer.main.get_command(cli.app)))[name]
    for option in numeric(command):
        longest = max(option.opts, key=len)
        line = without(command_lines(tiny)[name], option.opts)
        for value in TEXTS:
            argv = ["pilotfish", *name.split(), *line, *BESIDE.get(longest, []), longest, value]
            monkeypatch.setattr(sys, "argv", argv)
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n"), "utf-8"))
            with pytest.raises(SystemExit) as end:
                cli.main()
            said = capfdbinary.readouterr().err.decode().strip().splitlines()
            assert end.value.code in (0, 2), (argv, said)
            if end.value.code == 2:
                assert said[-1].startswith("pilotfish: "), (argv, said)
                assert not any(line.startswith("Traceback") for line in said), (argv, said)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[Model]:
    with load(tiny, "onnx", threads=1) as model:
        yield model


def one_line(call: Callable[[], object], what: object) -> None:
    """The call gives a result, or is refused by us in one line."""
    try:
        found = call()
    except PilotfishError as error:
        assert str(error) and "\n" not in str(error), what
    else:
        if isinstance(found, Model):
            found.close()


def calls(model: Model, tiny: Path, folder: Path) -> dict[str, Callable[[Any], object]]:
    """What takes a number in Python."""
    text = "the hello and the " * 100
    sample: Callable[..., object] = lambda **more: model.generate(  # noqa: E731
        "hello", max_new_tokens=2, sampling=Sampling(**{"temperature": 1.0, **more})
    )
    load_tiny: Callable[..., object] = lambda **more: load(tiny, "onnx", **{"threads": 1, **more})  # noqa: E731
    out = folder / "out"
    return {
        "temperature": lambda x: model.generate("hello", max_new_tokens=2, temperature=x),
        "max_new_tokens": lambda x: model.generate("hello", max_new_tokens=x),
        "seed": lambda x: model.generate("hello", max_new_tokens=2, temperature=1.0, seed=x),
        "stop": lambda x: model.generate("hello", max_new_tokens=2, stop=[x]),
        "beams": lambda x: model.generate("hello", max_new_tokens=2, beams=x),
        "stream": lambda x: list(model.stream("hello", max_new_tokens=x)),
        "chat": lambda x: model.chat(seed=x).send("hello", max_new_tokens=2, temperature=1.0),
        "turn": lambda x: model.chat().send("hello", max_new_tokens=x),
        **{
            f"Sampling.{name}": lambda x, name=name: sample(**{name: x})  # type: ignore[misc]
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty")
        },
        "Sampling.frequency_penalty": lambda x: sample(frequency_penalty=x),
        "Sampling.logit_bias": lambda x: sample(logit_bias={3: x}),
        "a token of logit_bias": lambda x: sample(logit_bias={x: 1.0}),
        "Beams.size": lambda x: model.generate("hello", max_new_tokens=2, beams=Beams(x)),
        "Beams.length_penalty": lambda x: model.generate("hello", max_new_tokens=2, beams=Beams(2, x)),
        "Job.prompt_tokens": lambda x: Job(prompt_tokens=x),
        "Job.new_tokens": lambda x: Job(new_tokens=x),
        "Job.acceptance": lambda x: Job(acceptance=x),
        "load.threads": lambda x: load_tiny(threads=x),
        "load.max_context": lambda x: load_tiny(max_context=x),
        "load.quality": lambda x: load_tiny(cache=POLICY, quality=x),
        "Fixed": lambda x: load_tiny(speculate=Fixed(x)).generate("hello", max_new_tokens=2),  # type: ignore[attr-defined]
        "Confidence": lambda x: Confidence(x),
        "excerpt.budget": lambda x: excerpt(model, text, "What?", budget=x, segment=32),
        "excerpt.segment": lambda x: excerpt(model, text, "What?", segment=x),
        "export.block": lambda x: export("nowhere", out, block=x),
        "export.ratio": lambda x: export("nowhere", out, to=["openvino"], ratio=x),
        "export.context": lambda x: export("nowhere", out, to=["pte"], context=x),
        "export.min_agreement": lambda x: export("nowhere", out, min_agreement=x),
        "verify.threads": lambda x: verify(folder, threads=x),
        "check_draft.n_tokens": lambda x: check_draft(tiny, tiny, engine="onnx", threads=1, n_tokens=x, per_set=1),
        "check_draft.per_set": lambda x: check_draft(tiny, tiny, engine="onnx", threads=1, n_tokens=2, per_set=x),
        "check_draft.repeats": lambda x: check_draft(tiny, tiny, engine="onnx", threads=1, n_tokens=2, repeats=x),
        "drop_layers.n_dropped": lambda x: drop_layers(tiny, out, n_dropped=x, threads=1),
        "lower_bits.bits": lambda x: lower_bits(tiny, folder, bits=x),
    }


@pytest.mark.parametrize("value", NUMBERS, ids=str)
def test_python_takes_a_number_or_says_in_one_line_why_not(
    value: Any, model: Model, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "not-empty").touch()
    for name, call in calls(model, tiny, tmp_path).items():
        one_line(lambda call=call: call(value), (name, value))  # type: ignore[misc]


def settings_of(name: str) -> list[str]:
    with pytest.raises(OptionError) as refused:
        policy_by_name(f"{name}:no_such_setting=1")
    return str(refused.value).rstrip(".").rpartition("its settings are ")[2].split(", ")


@pytest.mark.parametrize("name", [*POLICIES, *SELECTING, *(f"{prefix}snapkv" for prefix in WRAPPERS)])
def test_a_policy_takes_a_number_or_says_in_one_line_why_not(name: str, model: Model, tiny: Path) -> None:
    for setting in settings_of(name):
        needed = "threshold=0," if name.startswith("threshold-") and setting != "threshold" else ""
        for value in TEXTS:
            one_line(lambda text=f"{name}:{needed}{setting}={value}": policy_by_name(text), (setting, value))  # type: ignore[misc]


def test_settings_of_a_policy_are_numbers_of_their_kind() -> None:
    for name, kind in (POLICIES | SELECTING).items():
        for value in ("word", 1.5, float("nan"), 10**20, -1):
            with pytest.raises(OptionError, match="budget is"):
                kind(budget=value)
        with pytest.raises(OptionError, match="gives a setting twice"):
            policy_by_name(f"{name}:budget=512,budget=256")


def test_seeds_are_from_0_on_and_leaving_one_out_is_any(model: Model) -> None:
    for call in (lambda: model.generate("hello", temperature=1.0, seed=-1), lambda: model.chat(seed=-1)):
        with pytest.raises(OptionError, match="seed is -1, but must be 0 or more; leave it out"):
            call()


def test_no_more_threads_than_the_machine_runs(tiny: Path) -> None:
    with pytest.raises(OptionError, match=f"threads is 100000, but must be from 1 to {os.cpu_count()}"):
        load(tiny, "onnx", threads=100_000)


def test_beams_beyond_vocabulary_and_memory_are_refused_before_anything_is_read(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = model.info.vocab_size
    with pytest.raises(OptionError, match=f"beams is 100000, but must be from 1 to {vocabulary}"):
        model.generate("hello", beams=100_000)

    class Full:
        available = 1 << 20

    monkeypatch.setattr("pilotfish.runtime.memory.psutil.virtual_memory", Full)
    with pytest.raises(OptionError, match=r"GB of memory are free for this process; ask for \d+ beams, or for fewer"):
        model.generate("hello", beams=vocabulary)
    assert model.generate("hello", beams=1, max_new_tokens=2).token_ids


def test_no_way_out_is_longer_than_the_model_knows(model: Model, tiny: Path) -> None:
    with pytest.raises(ContextFullError, match="The model knows 512 positions: shorten") as refused:
        model.generate("hello", max_new_tokens=10**6)
    assert "max_context" not in str(refused.value)
    with load(tiny, "onnx", threads=1, max_context=64) as small:
        with pytest.raises(ContextFullError, match=r"max_context=(\d+)") as refused:
            small.generate("hello", max_new_tokens=100)
        wanted = int(str(refused.value).partition("max_context=")[2].split()[0])
        with pytest.raises(ContextFullError, match="The model knows 512 positions"):
            small.chat().send("hello", max_new_tokens=512)
    with load(tiny, "onnx", threads=1, max_context=wanted) as larger:  # the way out works
        assert larger.generate("hello", max_new_tokens=100).stats.n_tokens


def test_an_endless_answer_needs_no_room_for_all_of_it(tiny: Path) -> None:
    with load(tiny, "onnx", threads=1, cache=POLICY) as model:
        stream = model.stream("hello", max_new_tokens=10**12)
        assert next(iter(stream)) is not None
        stream.close()


def test_an_answer_outgrows_the_room_it_began_with(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.generate("hello the hello", max_new_tokens=100, temperature=1.0, seed=3).token_ids
    monkeypatch.setattr("pilotfish.runtime.decoding.loop._GROWTH", 1)
    assert model.generate("hello the hello", max_new_tokens=100, temperature=1.0, seed=3).token_ids == whole
