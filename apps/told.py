"""What the command line was told, checked for contradictions, and a model loaded as it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import OptionError
from .terminal import LoadProgress

if TYPE_CHECKING:  # imported when it is needed: `--help` should not wait for it
    from ..runtime.model.model import Model
    from ..runtime.sampling.sampling import Sampling


def check_drafts(plain: bool, draft: str | None) -> None:
    """Raise OptionError where both are asked for."""
    if plain and draft is not None:
        raise OptionError("--plain and --draft contradict each other; drop one of the two.")


def check_prompt(raw: bool, special: bool, system: str | None, document: Path | None) -> None:
    """Raise OptionError for ways of writing a prompt that contradict each other."""
    if raw and system is not None:
        raise OptionError("--raw takes no chat template, so --system has no place; drop one of the two.")
    if special and (not raw or document is not None):
        why = "no document" if raw else "no message"
        raise OptionError(f"--special is for a prompt of --raw alone: {why} may hold special tokens. Drop one of them.")


def check_beams(beams: int, sampling: Sampling, stop: list[str] | None, draft: str | None, cache: str | None) -> None:
    """Raise OptionError for what cannot be combined with --beams, before a model is opened."""
    from ..runtime.decoding.beam_search import Beams
    from ..runtime.sampling.sampling import Sampling

    Beams(beams)
    for names, given in (
        ("--temperature and penalties", sampling != Sampling()),
        ("--stop", bool(stop)),
        ("--draft", draft is not None),
        ("--cache or --quality", cache is not None),
    ):
        if given:
            raise OptionError(
                f"--beams looks for the most probable answer as a whole and cannot be had with {names}; drop one of "
                "the two."
            )


def load_told(
    model: str,
    engine: str | None,
    device: str | None,
    draft: str | None,
    draft_engine: str | None,
    draft_cache: str | None,
    plain: bool,
    max_context: int | None,
    threads: int | None,
    cache: str | None,
    quality: str | None,
    kv_dtype: str | None,
    options: dict[str, str],
    exact: bool,
) -> Model:
    """A model, with its progress shown. Raises what load() raises."""
    from ..loading.load import load_with
    from ..loading.load_options import LoadOptions, NamedDraft, draft_of, policy_of, quality_of

    told = LoadOptions(
        engine=engine,
        device=device,
        draft=NamedDraft() if draft is None else draft_of(draft),
        speculate=not plain,
        draft_engine=draft_engine,
        draft_cache=policy_of(draft_cache),
        max_context=max_context,
        threads=threads,
        cache=policy_of(cache),
        quality=quality_of(quality),
        kv_dtype=kv_dtype,
        options=options,
        exact=exact,
    )
    with LoadProgress() as progress:
        return load_with(model, told, progress)


def engine_options(given: list[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs. Raises OptionError for anything else."""
    pairs = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise OptionError(f"--option {text!r} must be NAME=VALUE.")
        if name in pairs:
            raise OptionError(f"--option {name} is given twice; leave one of the two out.")
        pairs[name] = value
    return pairs
