"""Which model the demo runs: the best that is here, else one that comes soon, else the one that needs no hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import Run, own_cache, pilotfish, tiny

from pilotfish.apps import demo, demo_choice
from pilotfish.apps.demo_choice import DemoModel, demo_model
from pilotfish.runtime.errors import DownloadError

__all__ = ["own_cache", "pilotfish", "tiny"]  # fixtures


def here(monkeypatch: pytest.MonkeyPatch, *names: str, seconds: float | None = None, asked: bool = True) -> None:
    """Say what is in the caches, and how long the hub would take."""
    monkeypatch.setattr(demo_choice, "cached", lambda name: Path("/cache") / name if name in names else None)
    unasked = lambda entry: pytest.fail("the hub was asked")  # noqa: E731
    monkeypatch.setattr(demo_choice, "seconds_to_fetch", (lambda entry: seconds) if asked else unasked)


def test_what_is_here_comes_first_and_nobody_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for names, best in (
        (("smollm2-135m",), "smollm2-135m"),
        (("smollm2-135m", "qwen3-0.6b"), "qwen3-0.6b"),
        (("qwen3-0.6b", "llama-3.2-1b", "phi-4-mini"), "llama-3.2-1b"),
    ):
        here(monkeypatch, *names, asked=False)
        found = demo_model()
        assert found.name == best and "what is here already" in found.why


def test_the_hub_is_used_where_it_is_fast_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, name, why in (
        (12.0, "smollm2-360m", "from the hub in about 12 s"),
        (600.0, "smollm2-135m", "about 10 minutes"),
        (None, "smollm2-135m", "the hub does not answer, and this one comes from the package index"),
    ):
        here(monkeypatch, seconds=seconds)
        found = demo_model()
        assert found.name == name and why in found.why


def test_the_demo_says_which_and_why_and_goes_on_without_the_hub(
    tiny: Path, pilotfish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotfish.loading import load as loading

    opened = loading.load

    def load(name: Any, **options: Any) -> Any:
        if name == "smollm2-360m":
            raise DownloadError("the hub is gone.")
        assert name == "smollm2-135m"
        return opened(tiny, "reference", **options)

    monkeypatch.setattr(demo, "demo_model", lambda: DemoModel("smollm2-360m", "it comes soon"))
    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(demo, "_N_TOKENS", 8)
    outcome = pilotfish("demo", "--threads", 1)
    assert outcome.code == 0, outcome.err
    assert "smollm2-360m: it comes soon; --model names another" in outcome.err
    assert "smollm2-135m: the hub has stopped answering, and this one comes from the package index" in outcome.err
    assert outcome.out.startswith("Repeat this poem:") and "the same text, token by token" in outcome.out
