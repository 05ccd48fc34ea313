"""Conversations on disk: gone on with as if never interrupted, refused elsewhere, and never half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cache_runs import SAMPLINGS, WIDTHS, opened, prompt_for, run, small
from real_weights import smollm2

import pilotfish
from pilotfish.backends import get
from pilotfish.runtime.cache.compression import entries_for
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.errors import ContextFullError, OptionError
from pilotfish.runtime.interfaces import Weights
from pilotfish.runtime.model.saved_chat import Conversation, read_conversation, write_conversation
from pilotfish.runtime.text.chat_template import Message
from pilotfish.testing.tiny_models import tiny_gguf

pytestmark = pytest.mark.usefixtures("module_cache")

__all__ = ["opened"]  # the fixture

NEW = {"max_new_tokens": 12, "temperature": 0.8}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=10)


def two_turns(model: pilotfish.Model, file: Path, seed: int | None = 7) -> tuple[pilotfish.Result, list[Message]]:
    """The third answer of a conversation that is saved before it, and the messages until then."""
    chat = model.chat("the", seed=seed)
    chat.send("hello and", **NEW)  # type: ignore[arg-type]
    chat.send("the hello", **NEW)  # type: ignore[arg-type]
    chat.save(file)
    messages = list(chat.messages)
    return chat.send("and the", **NEW), messages  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["reference", "onnx", "openvino", "llamacpp"])
def test_it_goes_on_as_if_never_interrupted(engine: str, path: Path, tmp_path: Path) -> None:
    if get(engine).version() is None:
        pytest.skip(f"{engine} is not installed")
    file = tmp_path / "talk.pilotfish"
    with pilotfish.load(path, engine, threads=1, speculate=False) as model:
        expected, messages = two_turns(model, file)
    with pilotfish.load(path, engine, threads=1, speculate=False) as model:
        chat = model.resume(file)
        assert chat.messages == messages and chat.seed == 7
        third = chat.send("and the", **NEW)  # type: ignore[arg-type]
        assert third.token_ids == expected.token_ids
        assert third.stats.n_reused == expected.stats.n_reused > 20
    with pilotfish.load(path, engine, threads=1) as model:  # with drafts, which draw other random numbers
        assert model.resume(file).send("and the", max_new_tokens=12).stats.n_reused > 20


@pytest.mark.parametrize("name", ["sinks", "sirllm", "h2o", "snapkv", "chunk-keydiff"])
@pytest.mark.parametrize("engine", ["toy", "reference", "onnx"])
def test_a_compressed_cache_goes_on_too(
    engine: str, name: str, tmp_path: Path, opened: Callable[[str], Weights]
) -> None:
    weights, policy, distribution = opened(engine), small(name, engine), SAMPLINGS["greedy"]
    first = run(weights, policy, prompt_for(weights), sampling=distribution, n_new=35)
    write_conversation(tmp_path / "talk", Conversation([], None, {}, first.sequence.save()))
    longer = np.concatenate([first.tokens, prompt_for(weights, 30, seed=4)])
    expected = run(weights, policy, longer, sampling=distribution, sequence=first.sequence)
    session = weights.session(entries_for(policy, WIDTHS, weights.info))
    sequence = CachedSequence(session, WIDTHS, policy)
    sequence.cover(prompt_for(weights, 60, seed=8))  # something else was there before
    sequence.restore(read_conversation(tmp_path / "talk").sequence)
    assert sequence.reusable(longer) == len(first.tokens) - 1
    resumed = run(weights, policy, longer, sampling=distribution, sequence=sequence)
    assert resumed.tokens.tolist() == expected.tokens.tolist()
    assert resumed.sequence.session.positions.tolist() == expected.sequence.session.positions.tolist()


def test_damaged_and_foreign_files_are_refused_before_anything_changes(path: Path, tmp_path: Path) -> None:
    file, bad = tmp_path / "talk", tmp_path / "bad"
    with pilotfish.load(path, "onnx", threads=1) as model:
        expected, _ = two_turns(model, file)
        whole = file.read_bytes()
        chat = model.resume(file)
        for cut in (0, 4, 8, 30, 41, 200, len(whole) // 2, len(whole) - 1):
            bad.write_bytes(whole[:cut])
            with pytest.raises(OptionError, match=r"no saved conversation|damaged or cut short"):
                model.resume(bad)
        for at in (3, 20, 44, 100, len(whole) // 2, len(whole) - 1):
            bad.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(OptionError, match=r"no saved conversation|damaged or cut short"):
                model.resume(bad)
        bad.write_bytes(whole + b"\0")
        with pytest.raises(OptionError, match="damaged"):
            model.resume(bad)
        for other in (path, tmp_path, tmp_path / "absent"):
            with pytest.raises(OptionError, match=r"no saved conversation|cannot be read"):
                model.resume(other)
        assert chat.send("and the", **NEW).stats.n_reused == expected.stats.n_reused  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="cannot be saved as"):
            chat.save(tmp_path / "no" / "folder" / "talk")


def test_another_model_engine_or_setting_is_refused_with_the_way_out(path: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "talk", tiny_gguf(tmp_path / "other.gguf", seed=11)
    with pilotfish.load(path, "onnx", threads=1) as model:
        _, messages = two_turns(model, file)
    cases = (
        ({"path": other, "engine": "onnx"}, "model '.*', here"),
        ({"path": path, "engine": "reference"}, "engine 'onnx', here 'reference'"),
        ({"path": path, "engine": "onnx", "exact": False}, "exact 'True', here 'False'"),
        ({"path": path, "engine": "onnx", "cache": "sinks:budget=64,every=32"}, "cache policy 'None', here"),
        (
            {"path": path, "engine": "onnx", "cache": "sinks:budget=64,every=32", "quality": 0.5},
            "cache policy 'None', here .* at quality 0.5",
        ),
    )
    for given, words in cases:
        with pilotfish.load(**given, threads=1) as model:  # type: ignore[arg-type]
            with pytest.raises(OptionError, match=f"{words}.*reread=True"):
                model.resume(file)
            chat = model.resume(file, reread=True)
            assert chat.messages == messages
            assert chat.send("and the", max_new_tokens=4).stats.n_reused == 0
    small_one = pilotfish.load(path, "onnx", threads=1, max_context=16)
    with small_one as model, pytest.raises(ContextFullError, match="max_context="):
        model.resume(file)


def test_only_this_conversation_is_written(path: Path, tmp_path: Path) -> None:
    with pilotfish.load(path, "onnx", threads=1) as model:
        chat = model.chat("the")
        chat.send("hello and", max_new_tokens=4)
        model.generate("somebody else's secret", raw=True, max_new_tokens=8)
        chat.save(tmp_path / "talk")
        model.chat("the").save(tmp_path / "empty")
        for name in ("talk", "empty"):
            assert not len(read_conversation(tmp_path / name).sequence.tokens)
        assert model.resume(tmp_path / "talk").messages == chat.messages
        assert [m["role"] for m in model.resume(tmp_path / "empty").messages] == ["system"]


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from pilotfish.runtime.model.saved_chat import Conversation, write_conversation
from pilotfish.runtime.cache.sequence import SavedSequence
{trap}
file = Path(sys.argv[1])
for i in range(1_000_000):
    saved = SavedSequence(np.arange(i % 50), bytes([i % 256]) * 3_000_000, None)
    write_conversation(file, Conversation([{{"role": "user", "content": str(i)}}], i, {{}}, saved))
    print(i, flush=True)
"""
AT_THE_DISK = "calls = []\nos.fsync = lambda fd: calls.append(fd) or len(calls) < 3 or os.kill(os.getpid(), {signal})"


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("moment", ["before the rename", 0.05, 0.11, 0.17])
def test_kill_9_loses_nothing(moment: str | float, tmp_path: Path) -> None:
    file = tmp_path / "talk"
    trap = AT_THE_DISK.format(signal=int(signal.SIGKILL)) if isinstance(moment, str) else ""
    command = [sys.executable, "-c", KILLED.format(trap=trap), str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done = [int(process.stdout.readline())]  # the first is there
    if isinstance(moment, float):
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
    done += [int(line) for line in process.stdout.read().split()]
    assert process.wait() == -signal.SIGKILL
    found = read_conversation(file)
    assert found.seed is not None and done[-1] <= found.seed <= done[-1] + 1
    assert found.sequence.entries == bytes([found.seed % 256]) * 3_000_000
    assert found.messages == [{"role": "user", "content": str(found.seed)}]
    if isinstance(moment, str):
        assert found.seed == 1


@pytest.mark.real
@pytest.mark.slow
def test_a_real_conversation_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "talk"
    with pilotfish.load(smollm2(), "onnx", threads=2) as model:
        chat = model.chat("You are a helpful assistant.")
        chat.send("What is the capital of France?", max_new_tokens=24)
        chat.save(file)
        expected = chat.send("And what is it known for?", max_new_tokens=40)
    with pilotfish.load(smollm2(), "onnx", threads=2) as model:
        ours = model.resume(file).send("And what is it known for?", max_new_tokens=40)
    assert ours.text == expected.text and ours.stats.n_reused == expected.stats.n_reused > 30
