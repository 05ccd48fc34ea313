"""A conversation as one file: its messages, and the cache, so that going on with it need not read the text again.

    PFCHAT1\\n | sha256 of all that follows | length of the header, 8 bytes | header, JSON | arrays | Session.save()

The header names the model, engine and settings that made the cache, and the lengths of what is behind it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache.saved import SavedCompression, SavedGate, SavedSequence
from ..errors import OptionError
from ..storage import replace_file
from ..text.chat_template import Message

_MAGIC = b"PFCHAT1\n"
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a file holds. made_by: everything that must be the same for the cache to be of use."""

    messages: list[Message]
    seed: int | None
    made_by: dict[str, str]
    sequence: SavedSequence


def write_conversation(path: Path, conversation: Conversation) -> None:
    """Write the file whole, or leave what was there. Raises OptionError where it cannot be written."""
    sequence, compressed = conversation.sequence, conversation.sequence.compressed
    arrays = [sequence.tokens.astype("<i8"), *(_float_arrays(compressed) if compressed else ())]
    header = {
        "messages": conversation.messages,
        "seed": conversation.seed,
        "made_by": conversation.made_by,
        "arrays": [(x.dtype.str, x.shape) for x in arrays],
        "entries": len(sequence.entries),
        "compressed": None if compressed is None else _header_of(compressed),
        "trial": None if sequence.trial is None else asdict(sequence.trial),
    }
    head = json.dumps(header).encode()
    parts = [len(head).to_bytes(8, "little"), head, *(x.tobytes() for x in arrays), sequence.entries]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    try:
        replace_file(path, [_MAGIC, digest.digest(), *parts])
    except OSError as error:
        raise OptionError(
            f"the conversation cannot be saved as {path}: {error.strerror or error}. Give another place; what was "
            "there before is as it was."
        ) from error


def read_conversation(path: Path) -> Conversation:
    """What the file holds. Raises OptionError for a file that is missing, foreign or damaged."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror or error}. Give a saved conversation.") from error
    if bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise OptionError(f"{path} is no saved conversation; give a file that `chat --resume` or Chat.save() has made.")
    at = len(_MAGIC) + _DIGEST
    if hashlib.sha256(data[at:]).digest() != data[len(_MAGIC) : at]:
        raise OptionError(f"{path} is damaged or cut short: its digest is wrong. Take an earlier copy of it.")
    try:
        return _parse(data[at:])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise OptionError(f"{path} was written by another version of Pilotfish; begin a new conversation.") from None


def _parse(data: memoryview) -> Conversation:
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:size]))
    arrays = []
    for kind, shape in header["arrays"]:
        arrays.append(np.frombuffer(data, np.dtype(kind), math.prod(shape), size).reshape(shape))
        size += arrays[-1].nbytes
    entries = bytes(data[size:])
    if len(entries) != header["entries"]:
        raise ValueError("not all of it is there")
    compressed = None
    if header["compressed"] is not None:
        at, n_evicted, carried, logits = header["compressed"]
        floats = iter(arrays[1:])
        compressed = SavedCompression(
            at, n_evicted, next(floats).copy() if carried else None, next(floats).copy() if logits else None
        )
    known = header.get("trial")  # older files have none
    trial = None if known is None else SavedGate(**known)
    saved = SavedSequence(arrays[0].astype(np.int64), entries, compressed, trial)
    return Conversation(header["messages"], header["seed"], dict(header["made_by"]), saved)


def _float_arrays(compressed: SavedCompression) -> list[npt.NDArray[np.generic]]:
    return [x.astype("<f4") for x in (compressed.carried, compressed.last_logits) if x is not None]


def _header_of(compressed: SavedCompression) -> list[Any]:
    given = (compressed.carried is not None, compressed.last_logits is not None)
    return [compressed.at, compressed.n_evicted, *given]
