"""What is done with the entries of a cache: in this alone a full, a compressed and a selective cache differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..interfaces import UNOBSERVED, Distribution, Floats, Observations, Session, Step, Tokens
from ..sampling.sampling import Sampling
from .saved import SavedSequence


@dataclass(frozen=True, slots=True)
class Watch:
    """Which of the covered tokens are run once more before a change, and what is looked at meanwhile."""

    first: int  # the tokens from here on
    logit_rows: int | None = None  # how many rows a step may have where logits are wanted; None: they are not
    observe: Observations = UNOBSERVED


class CacheMode:
    """Owns a session and decides which of its entries stay, and which are seen.

    Whatever a mode leaves as it stands here is that of a cache to whose end entries are only added. Where next() says
    so, CachedSequence runs the tokens that watch() names and gives change() what they showed.
    """

    session: Session
    compares: ClassVar[bool] = False  # whether committed() is to be told the distributions

    @property
    def bounded(self) -> bool:
        """Whether entries are evicted, so that only positions limit how long a text can be."""
        return False

    @property
    def longest(self) -> int:
        """How many tokens can be covered."""
        return self.session.max_context

    @property
    def n_evicted(self) -> int:
        """How many of the covered tokens the session holds no longer."""
        return 0

    @property
    def n_unseen(self) -> int:
        """How many of the entries a step does not see."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.session.nbytes

    @property
    def fixed(self) -> int:
        """How many tokens were covered at the last eviction: what lies before cannot be forgotten by itself."""
        return 0

    def next(self, n_covered: int) -> int | None:
        """Number of covered tokens at which a change is due; None: it never is."""
        return None

    def stop(self, n_prompt: int) -> int:
        """How far a prompt of so many tokens can be read before the next change in it."""
        return n_prompt

    def watch(self, n_covered: int) -> Watch:
        """What is run once more before a change that is due now."""
        return Watch(n_covered)

    def change(self, watched: list[Step], tokens: Tokens) -> Tokens | None:
        """Carry out what is due. tokens: all that is covered. Returns tokens that the session must read anew, at the
        first positions, instead of what it holds; None: it holds what it should."""
        return None

    def encode(self, source: Tokens | Floats) -> None:
        """Begin anew, with this source before the steps' eyes."""
        self.session.encode(source)

    def truncate(self, n_tokens: int, n_positions: int) -> None:
        """Forget what lies behind the first tokens, which is at these positions. n_tokens: 0 or at least `fixed`."""
        self.session.truncate(n_positions)

    def begin_prompt(self) -> None:
        """The tokens of a prompt follow."""

    def begin_answer(self, sampling: Sampling, n_prompt: int) -> None:
        """The tokens of an answer follow, chosen so."""

    def committed(self, distributions: Sequence[Distribution]) -> None:
        """These distributions have chosen the tokens just committed."""

    def save(self, tokens: Tokens) -> SavedSequence:
        """What restore() takes. Raises AbilityError where the session cannot save."""
        return SavedSequence(tokens, self.session.save(), None)

    def restore(self, saved: SavedSequence) -> None:
        """Hold what was saved. Raises OptionError and ContextFullError before anything changes."""
        self.session.restore(saved.entries)

    def close(self) -> None:
        """Free the session."""
        self.session.close()


class FullCache(CacheMode):
    """Every entry stays, and every step sees it.

    n_evicted: covered tokens of which the session never held an entry, being a copy of some entries of another.
    """

    def __init__(self, session: Session, n_evicted: int = 0) -> None:
        self.session, self._n_evicted = session, n_evicted

    @property
    def longest(self) -> int:
        return self.session.max_context + self._n_evicted

    @property
    def n_evicted(self) -> int:
        return self._n_evicted

    def encode(self, source: Tokens | Floats) -> None:
        super().encode(source)
        self._n_evicted = 0
