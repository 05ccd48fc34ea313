"""The models that come with Pilotfish, each for a demo: `pilotfish run --demo NAME`."""

from __future__ import annotations

from pathlib import Path

from ..runtime.errors import OptionError

DEMOS = ("correct",)  # folders of demos/, each a bundle


def of_demo(name: str, model: str | None, prompt: str | None) -> tuple[str, str | None]:
    """The demo's model and the prompt. A demo brings its model, so the first argument is the prompt.

    Raises OptionError.
    """
    if name not in DEMOS:
        raise OptionError(f"there is no demo {name!r}; there is {', '.join(DEMOS)}.")
    if prompt is not None:
        raise OptionError(f"--demo {name} brings its own model; give the prompt alone, or drop --demo.")
    return str(Path(__file__).parent / "demos" / name), model
