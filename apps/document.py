"""`run --document`: a question about a text of any length, and which of its parts the answer rests on."""

from __future__ import annotations

from pathlib import Path

from ..runtime.model.excerpt import Excerpt, excerpt
from ..runtime.model.model import Model
from .inputs import read_document
from .terminal import LoadProgress, console


def excerpt_of(model: Model, path: Path, question: str, *, raw: bool, max_new_tokens: int | None) -> Excerpt:
    """The parts of a text file that a question is about, with room for the answer. Raises OptionError."""
    document = read_document(path)
    reading = LoadProgress()
    with reading:
        return excerpt(
            model,
            document,
            question,
            new_tokens=max_new_tokens,
            raw=raw,
            progress=reading.tokens(f"reading {path.name}"),
        )


def show_kept(found: Excerpt) -> None:
    """Say on standard error what was kept."""
    if not found.n_read:
        console().print("the whole document fits", style="dim")
        return
    places = ", ".join(f"{part.start}-{part.end}" for part in found.kept)
    console().print(
        f"read {found.n_read} tokens in {found.seconds:.1f} s; the answer rests on {len(found.kept)} of "
        f"{len(found.segments)} parts, characters {places}",
        style="dim",
        soft_wrap=True,
    )


def facts_of(found: Excerpt) -> dict[str, object]:
    """The JSON form: the kept parts, and what finding them took."""
    kept = [{"start": part.start, "end": part.end, "score": part.score} for part in found.kept]
    return {"kept": kept, "n_segments": len(found.segments), "n_read": found.n_read, "seconds": found.seconds}
