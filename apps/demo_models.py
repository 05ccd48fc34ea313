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


def require_known(demo: str, text: str) -> None:
    """Raise OptionError for a text with characters that the demo's model has not learned: it knows English in ASCII."""
    unknown = next((i for i, character in enumerate(text) if not character.isascii()), None)
    if unknown is not None:
        raise OptionError(
            f"--demo {demo} has learned from English in ASCII alone, and would garble {text[unknown]!r} (character "
            f"{unknown + 1} of the prompt). Write it in ASCII, or leave that part out."
        )
