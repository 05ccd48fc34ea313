"""The bytes of a saved cache: whatever they are, the entries they were made from or an error of ours."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.backends import get
from pilotfish.backends.common.saved_cache import pack, unpack
from pilotfish.runtime.errors import ContextFullError, OptionError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import ModelInfo, Weights
from pilotfish.testing.tiny_models import Sizes, tiny_gguf
from pilotfish.testing.toy import ToyWeights

INFO: ModelInfo = ToyWeights(context_length=64).info
KEYS = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
POSITIONS = np.array([0, 1, 5, 9])
STATE = pack(INFO, POSITIONS, [KEYS])
START = 18  # where the header begins: behind the magic, its length and the checksum


def forged(state: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The state with another header and a checksum that agrees."""
    size = int.from_bytes(state[6:14], "little")
    header = json.loads(state[START : START + size])
    change(header)
    return sealed(state, json.dumps(header).encode() + state[START + size :], len(json.dumps(header)))


def sealed(state: bytes, rest: bytes, size: int) -> bytes:
    return state[:6] + size.to_bytes(8, "little") + zlib.crc32(rest).to_bytes(4, "little") + rest


def test_what_was_packed_comes_back() -> None:
    positions, (keys,) = unpack(INFO, STATE, 64, lambda n: [(np.float32, (2, n, 3))])
    assert positions.tolist() == POSITIONS.tolist() and positions.dtype == np.int64
    assert np.array_equal(keys, KEYS) and keys.dtype == np.float32
    positions, arrays = unpack(INFO, pack(INFO, POSITIONS[:0], []), 64)
    assert len(positions) == 0 and arrays == []


@pytest.mark.parametrize("field", ["digest", "engine", "engine_version", "device", "settings"])
def test_states_of_another_maker_are_refused_by_name(field: str) -> None:
    with pytest.raises(OptionError, match="'other', here"):
        unpack(INFO, pack(replace(INFO, **{field: "other"}), POSITIONS, [KEYS]), 64)


def test_what_does_not_fit_is_refused_with_the_number_needed() -> None:
    with pytest.raises(ContextFullError, match="max_context=4"):
        unpack(INFO, STATE, 3)


@pytest.mark.parametrize(
    "positions", [[0, 1, 1, 2], [0, 2, 1, 3], [-1, 0, 1, 2], [0, 1, 2, 64], [2**62, 0, 1, 2]], ids=str
)
def test_positions_ascend_and_lie_in_the_context(positions: list[int]) -> None:
    with pytest.raises(OptionError, match="damaged"):
        unpack(INFO, pack(INFO, np.array(positions), [KEYS]), 64)


@pytest.mark.parametrize(
    "arrays",
    [[], [KEYS, KEYS], [KEYS[:, :3]], [KEYS.swapaxes(0, 1)], [KEYS.astype(np.float64)], [KEYS.view(np.int32)]],
    ids=["none", "two", "too few entries", "axes swapped", "f64", "int32"],
)
def test_other_arrays_than_the_entries_need_are_refused(arrays: list[Any]) -> None:
    with pytest.raises(OptionError, match="damaged"):
        unpack(INFO, pack(INFO, POSITIONS, arrays), 64, lambda n: [(np.float32, (2, n, 3))])


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no arrays": lambda h: h.pop("arrays"),
    "no maker": lambda h: h.pop("made_by"),
    "a maker of another kind": lambda h: h.update(made_by=["digest"]),
    "maker is a number": lambda h: h.update(made_by=3),
    "a negative number": lambda h: h.update(n=-1),
    "more than there are": lambda h: h.update(n=5),
    "infinitely many": lambda h: h.update(n=float("inf")),
    "not a number": lambda h: h.update(n=float("nan")),
    "a negative size": lambda h: h.update(arrays=[["<f4", [-2, -4, 3]]]),
    "a huge size": lambda h: h.update(arrays=[["<f4", [2**62, 4, 3]]]),
    "objects": lambda h: h.update(arrays=[["|O", [2, 4, 3]]]),
    "an unknown type": lambda h: h.update(arrays=[["nonsense", [2, 4, 3]]]),
    "arrays of another kind": lambda h: h.update(arrays=7),
    "no shape": lambda h: h.update(arrays=[["<f4"]]),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_headers_are_refused(what: str) -> None:
    with pytest.raises(OptionError):
        unpack(INFO, forged(STATE, FORGERIES[what]), 64)


def test_headers_that_are_no_json_object_are_refused() -> None:
    for header in (b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"n": 1'):
        with pytest.raises(OptionError):
            unpack(INFO, sealed(STATE, header, len(header)), 64)
    with pytest.raises(OptionError):
        unpack(INFO, sealed(STATE, STATE[START:], 2**63), 64)


@settings(max_examples=300)
@given(st.integers(0, len(STATE) - 1), st.integers(1, 255), st.integers(0, 3))
def test_any_changed_cut_or_added_byte_is_noticed(at: int, bits: int, kind: int) -> None:
    changed = bytes([STATE[at] ^ bits])
    damaged = [
        STATE[:at] + changed + STATE[at + 1 :],
        STATE[:at],
        STATE[:at] + STATE[at + 1 :],
        STATE[:at] + changed + STATE[at:],
    ][kind]
    with pytest.raises(OptionError):
        unpack(INFO, damaged, 64)


@pytest.mark.parametrize("engine", ["reference", "onnx"])
def test_an_engine_refuses_forged_entries_before_anything_changes(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "tiny.gguf", sizes=Sizes(layers=1))
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
        from model_files import imported

        path = imported(path)
    weights: Weights = get(engine).open(open_model(path), device=None, threads=1, kv_dtype=None)
    one, other = weights.session(32), weights.session(32)
    for session in (one, other):
        session.forward(np.arange(6), n_logits=0)
    positions, arrays = unpack(one.info, one.save(), 32)
    for wrong in ([], arrays[:-1], [*arrays, arrays[0]], [x[:, :5] for x in arrays], [x[:1] for x in arrays]):
        with pytest.raises(OptionError, match="damaged"):
            one.restore(pack(one.info, positions, wrong))
    with pytest.raises(OptionError, match="damaged"):
        one.restore(pack(one.info, positions[::-1], arrays))
    assert one.positions.tolist() == list(range(6))
    ours, theirs = (s.forward(np.arange(3), n_logits=3).logits for s in (one, other))
    assert np.array_equal(ours, theirs)
    weights.close()
