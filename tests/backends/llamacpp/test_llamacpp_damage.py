"""Damaged GGUF files never end the process: they are checked before llama.cpp sees them.

llama.cpp loads them in a worker, so that a file that does end a process is a failed test and not a dead test run.
"""

from __future__ import annotations

import collections
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_foreign import write_foreign

from pilotfish.backends.llamacpp.backend import BACKEND
from pilotfish.backends.llamacpp.check_file import check_file
from pilotfish.runtime.errors import ModelFileError, PilotfishError, UnsupportedModelError
from pilotfish.runtime.files.gguf_file import read_gguf
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

pytestmark = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")

SIZES = Sizes(hidden=64, heads=2, kv_heads=1, head_dim=32, ffn=64, layers=1, context=64)
FAST, ALL = 300, 10_000
TIMEOUT_S = 600  # of a file that is opened in milliseconds
NUMBERS = (0, 1, 2, 3, 7, 31, 32, 64, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1)


class Worker:
    """A process that opens files; started again after each of its deaths."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def attempt(self, path: Path) -> str:
        """What the worker says of a file, or "died" or "hung"."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        try:
            answer = self._answers.get(timeout=TIMEOUT_S)
        except queue.Empty:
            answer = "hung"
        if answer in ("hung", ""):
            self.stop()
            return answer or "died"
        return answer.strip()

    def _start(self) -> None:
        script = Path(__file__).parents[2] / "helpers" / "llamacpp_worker.py"
        self._answers = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._listen, args=(self._process.stdout, self._answers), daemon=True).start()

    @staticmethod
    def _listen(stdout: IO[str], answers: queue.Queue[str]) -> None:
        for line in stdout:
            answers.put(line)
        answers.put("")  # the process has ended

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
    made = Worker()
    yield made
    made.stop()
    patch.undo()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    return {
        architecture: tiny_gguf(folder / f"{architecture}.gguf", architecture=architecture, sizes=SIZES, quant="Q4_0")
        for architecture in ("llama", "qwen2")
    }


def header_end(data: bytes) -> int:
    """Where the tensors begin, or a little later: sizes of a header are small against those of its tensors."""
    return min(data.index(b"output_norm.weight") + 200, len(data))


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to four faults in its header: bytes, lengths, numbers, cuts, doubled and missing parts."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        end = min(header_end(data), len(found) - 8)
        at = int(rng.integers(4, end))
        kind = rng.integers(0, 8)
        if kind <= 1:
            found[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            found[at] = int(rng.integers(0, 256))
        elif kind <= 4:
            number, form = int(rng.choice(np.array(NUMBERS, dtype=np.uint64))), rng.choice(["<I", "<Q"])
            packed = struct.pack(form, number & ((1 << 8 * struct.calcsize(form)) - 1))
            found[at : at + len(packed)] = packed
        elif kind == 5:
            _move_a_number(found, data, rng)
        elif kind == 6:
            part = found[at : at + int(rng.integers(1, 40))]
            found[at:at] = part if rng.random() < 0.5 else b""
            del found[at : at + (len(part) if rng.random() < 0.5 else 0)]
        elif rng.random() < 0.2:
            del found[int(rng.integers(24, len(found))) :]
            if len(found) < 64:
                break
    return bytes(found)


def _move_a_number(found: bytearray, data: bytes, rng: np.random.Generator) -> None:
    """Another value for one of the sizes of the model, or another type or size for one of its tensors."""
    names = (b"context_length", b"embedding_length", b"block_count", b"feed_forward_length", b"head_count")
    names += (b"head_count_kv", b"layer_norm_rms_epsilon", b"freq_base", b"attn_q.weight", b"attn_k.weight")
    names += (b"ffn_down.weight", b"token_embd.weight", b"attn_norm.weight", b"general.architecture", b"output_norm")
    names += (b"relative_buckets_count", b"decoder_start_token_id", b"decoder_block_count", b"attn_rel_b.weight")
    name = names[int(rng.integers(0, len(names)))]
    at = found.find(name)
    if at < 0:
        return
    at += len(name) + int(rng.integers(0, 28))
    if at + 4 <= len(found):
        struct.pack_into("<I", found, at, int(NUMBERS[int(rng.integers(0, 14))]) & 0xFFFFFFFF)


def fuzz(worker: Worker, sound: dict[str, Path], folder: Path, n: int, seed: int) -> collections.Counter[str]:
    """How n damaged files ended, by the first words of the answer."""
    rng = np.random.default_rng(seed)
    whole = {name: path.read_bytes() for name, path in sound.items()}
    ended: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    path = folder / "damaged.gguf"
    for i in range(n):
        name = list(sound)[i % len(sound)]
        data = mutated(whole[name], rng)
        path = folder / f"damaged-{i % 64}.gguf"
        path.write_bytes(data)
        answer = worker.attempt(path)
        ended[" ".join(answer.split()[:2])] += 1
        if answer in ("died", "hung"):
            bad.append(f"{name} {i}: {answer}")
            (folder / f"{answer}-{i}.gguf").write_bytes(data)
    assert not bad, bad
    return ended


def test_sound_files_open(worker: Worker, sound: dict[str, Path]) -> None:
    assert [worker.attempt(path) for path in sound.values()] == ["opened", "opened"]


def test_a_worker_that_dies_is_noticed(worker: Worker, sound: dict[str, Path]) -> None:
    assert worker._process is None or worker.attempt(sound["llama"]) == "opened"
    worker.attempt(sound["llama"])
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    assert worker._answers.get(timeout=TIMEOUT_S) == ""
    worker.stop()
    assert worker.attempt(sound["llama"]) == "opened"


def test_damaged_headers_are_refused_or_harmless(worker: Worker, sound: dict[str, Path], tmp_path: Path) -> None:
    ended = fuzz(worker, sound, tmp_path, FAST, seed=1)
    assert ended["refused ModelFileError"] > FAST / 10 and ended["opened"] > FAST / 50, ended


@pytest.mark.slow
def test_ten_thousand_damaged_headers(worker: Worker, sound: dict[str, Path], tmp_path: Path) -> None:
    ended = fuzz(worker, sound, tmp_path, ALL, seed=2)
    print(dict(ended))
    assert sum(ended.values()) == ALL


@pytest.mark.slow
def test_damaged_headers_of_other_families_end_another_process(worker: Worker, tmp_path: Path) -> None:
    """Each that gets as far as llama.cpp takes a process of its own, and so seconds."""
    others = write_foreign(tmp_path, ["gemma2", "mamba"])
    for path in others.values():
        assert worker.attempt(path) == "opened"
    ended = fuzz(worker, others, tmp_path, 200, seed=3)
    assert ended["refused ModelFileError"] > 20 and ended["opened"] > 5, ended


@pytest.mark.slow
def test_damaged_headers_of_an_encoder_decoder(worker: Worker, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tiny_encoder_decoders import save_encoder_decoder

    from pilotfish.exporters.gguf.writer import write_gguf
    from pilotfish.exporters.open_source import open_source

    changes = {"relative_attention_max_distance": 128, "num_layers": 1, "num_decoder_layers": 1, "n_positions": 64}
    source = open_source(save_encoder_decoder("t5", tmp_path / "hf", **changes))
    write_gguf(source, source.torch_model(), tmp_path / "t5.gguf")
    assert worker.attempt(tmp_path / "t5.gguf") == "opened"
    ended = fuzz(worker, {"t5": tmp_path / "t5.gguf"}, tmp_path, 600, seed=4)
    assert ended["refused ModelFileError"] > 60 and ended["opened"] > 12, ended


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_the_check_raises_errors_of_ours_only(sound: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    whole = sound["llama"].read_bytes()
    damaged = bytearray(whole)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, header_end(whole)), st.integers(0, 255)), max_size=6)):
        damaged[at] = byte
    damaged = damaged[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else damaged
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        shape = check_file(read_gguf(path))
    except PilotfishError:
        return
    assert shape.n_heads % shape.kv_heads == 0 and shape.vocab_size > 0


@pytest.mark.parametrize(
    ("more", "error", "what"),
    [
        ({"nextn_predict_layers": 1}, UnsupportedModelError, "predict several"),
        ({"expert_used_count": 2}, UnsupportedModelError, "experts"),
        ({"attention.value_length": 16}, UnsupportedModelError, "values of 16"),
        ({"attention.head_count_kv": 0}, ModelFileError, "head_count_kv"),
    ],
)
def test_what_llama_cpp_would_stumble_over(
    tmp_path: Path, more: dict[str, float | int | str], error: type[PilotfishError], what: str
) -> None:
    data = tiny_gguf(tmp_path / "m.gguf", sizes=SIZES)
    if "attention.head_count_kv" in more:  # it is there already: changed in place
        raw = bytearray(data.read_bytes())
        key = b"llama.attention.head_count_kv"
        struct.pack_into("<I", raw, raw.index(key) + len(key) + 4, 0)
        data.write_bytes(raw)
    else:
        data = tiny_gguf(tmp_path / "m.gguf", sizes=SIZES, metadata=more)
    with pytest.raises(error, match=what):
        check_file(read_gguf(data))
