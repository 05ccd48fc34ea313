"""What llama.cpp was found to do with a model, beyond plain steps."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ...runtime.interfaces import Ability
from ...runtime.profiling.canary import Canary

ASKED_REWINDS = 4  # entries that a model with a state is asked to take back: as many copies of the state are kept


class Findings(BaseModel):
    """What sessions over a file can do.

    kv_dtype: how the cache is stored where the caller leaves it open; None: as always.
    flash: whether flash attention, where it was asked for, computes.
    rewinds: ModelInfo.rewinds. entry_bytes, state_bytes: memory of an entry, and of what does not grow with them.
    vocabulary: whether llama.cpp's own functions cut a text into its tokens. canary: its answer, one row at a time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    abilities: tuple[Ability, ...]
    kv_dtype: str | None = None
    flash: bool = True
    rewinds: int | None = None
    entry_bytes: float | None = None
    state_bytes: int = 0
    vocabulary: bool = False
    canary: Canary | None = None


KNOWN = Findings(abilities=("tree", "evict_tokens", "hidden", "fork", "save", "attention"))  # of checked decoders


def described(found: Findings) -> dict[str, str]:
    """The same in words: what a person wants to know of a model before using it."""
    rewinds = found.rewinds
    if rewinds is None:
        back = "any number of tokens"
    elif rewinds:
        back = f"{rewinds} tokens of a step; more are read again"
    else:
        back = "none: what changes is read again, and nothing is drafted"
    return {
        "takes back": back,
        "branches": "yes" if "tree" in found.abilities else "no",
        "evicts": "yes" if "evict_tokens" in found.abilities else "no: the cache keeps everything",
        "copies": "yes" if "fork" in found.abilities else "no",
    }
