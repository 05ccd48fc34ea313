"""Which model `pilotfish demo` runs where none is named: the best that is here already, or would be soon."""

from __future__ import annotations

from dataclasses import dataclass

from ..fetching.by_name import cached
from ..fetching.catalogue import ON_HUB, SURE
from ..fetching.reach import seconds_to_fetch

_BEST_FIRST = ("llama-3.2-1b", "gemma-3-1b", "qwen3-0.6b", "smollm2-360m")  # of a size that any machine runs
_FETCHED = "smollm2-360m"
_SOON_S = 60.0


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model of the catalogue, and why it is the one."""

    name: str
    why: str


def demo_model() -> DemoModel:
    """The model of the demo. The hub is asked only where nothing is here yet, and for no more than a moment."""
    for name in (*_BEST_FIRST, SURE):
        if cached(name) is not None:
            return DemoModel(name, "the best for a demo of what is here already")
    seconds = seconds_to_fetch(ON_HUB[_FETCHED])
    if seconds is not None and seconds <= _SOON_S:
        return DemoModel(_FETCHED, f"it comes from the hub in about {max(round(seconds), 1)} s")
    slow = "does not answer" if seconds is None else f"would take about {seconds / 60:.0f} minutes for a better one"
    return sure_model(f"the hub {slow}")


def sure_model(why_no_other: str) -> DemoModel:
    """The model that needs no hub."""
    return DemoModel(SURE, f"{why_no_other}, and this one comes from the package index")
