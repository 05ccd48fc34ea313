"""A model for benchmarks: no answer may know what an earlier pass over the same prompt said."""

from __future__ import annotations

from ...loading.load import load
from ...runtime.model.model import Model
from ...runtime.progress import Progress
from ...runtime.speculation.proposers import NGram


class Unremembering:
    """What a model knew of its own speech at first, to go back to before every answer."""

    def __init__(self, ngrams: NGram | None) -> None:
        self._ngrams = ngrams
        self._known = None if ngrams is None else ngrams.table.copy()

    def forget(self) -> None:
        """Have drafts know what they knew before the first answer."""
        if self._ngrams is not None and self._known is not None:
            self._ngrams.restart(self._known.copy())


def opened(
    path: str,
    *,
    engine: str | None,
    draft: str | None,
    threads: int | None,
    max_context: int,
    cache: str | None = None,
    speculate: bool = True,
    exact: bool = True,
    progress: Progress | None = None,
) -> tuple[Model, Unremembering]:
    """The model with the proposers it has by default, and what makes it forget. draft: None is what the bundle names.

    Raises what load() raises.
    """
    model = load(
        path,
        engine,
        draft="auto" if draft is None else draft,
        speculate=speculate,
        cache=cache,
        threads=threads,
        max_context=max_context,
        exact=exact,
        progress=progress,
    )
    return model, Unremembering(next((p for p in model.lookups if isinstance(p, NGram)), None))
