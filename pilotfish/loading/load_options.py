"""Everything that load() is told beside the model, as one value: what load(), the command line and servers share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ..runtime.cache.policies import CachePolicy, policy_by_name
from ..runtime.cache.quality_gate import AUTO, tried_policy
from ..runtime.checks import real, whole
from ..runtime.errors import OptionError
from ..runtime.interfaces import DraftLengthPolicy, Proposer
from ..runtime.profiling.engine_trial import Job
from ..runtime.speculation.draft_length import RenewalReward
from ..runtime.speculation.proposers import SelfDraft
from .options import Wish

_SELF_POLICY = "sinks:budget=512,every=128"  # of draft="self"


@dataclass(frozen=True, slots=True)
class NamedDraft:
    """The draft that the model's own file names, where it names one, unless it is known not to pay here."""


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A smaller model. path: its name or path."""

    path: str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class SelfCopy:
    """The model itself, over a copy of its cache that a policy compresses."""

    policy: CachePolicy


Draft: TypeAlias = NamedDraft | DraftModel | SelfCopy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is loaded; the parameters of load() say what each field means.

    Raises OptionError for values and pairs of them that no model could have.
    """

    engine: str | None = None
    device: str | None = None
    draft: Draft = field(default_factory=NamedDraft)
    speculate: bool | DraftLengthPolicy = True
    draft_engine: str | None = None
    draft_cache: CachePolicy | None = None
    cache: CachePolicy | None = None
    quality: float | None = None
    kv_dtype: str | None = None
    max_context: int | None = None
    threads: int | None = None
    exact: bool = True
    narrow: bool | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    job: Job | None = None
    proposers: Sequence[Proposer] | None = None
    suppress: bool = True

    def __post_init__(self) -> None:
        if self.max_context is not None:
            whole("max_context", self.max_context, 2)
        if self.speculate is False and isinstance(self.draft, DraftModel | SelfCopy):
            raise OptionError("a draft model is given together with speculate=False; drop one of the two.")
        if self.narrow and self.gated:
            raise OptionError(
                "narrow=True is not for answers with quality=, which compares two caches; drop one of the two."
            )
        if self.narrow is not None and not self.exact:
            raise OptionError(
                f"narrow={self.narrow} is for exact answers, and exact=False runs steps of any width; drop one of them."
            )
        if self.quality is not None:
            tried_policy(self.cache, self.self_draft)

    @property
    def gated(self) -> bool:
        """Whether a smaller cache is compared with the full one, step by step."""
        return self.cache is not None and self.quality is not None

    @property
    def length_policy(self) -> DraftLengthPolicy | None:
        """What decides a draft's length; None: plain decoding."""
        return RenewalReward() if self.speculate is True else (self.speculate or None)

    @property
    def self_draft(self) -> CachePolicy | None:
        """What compresses the copy of the cache that the model itself drafts with."""
        return self.draft.policy if isinstance(self.draft, SelfCopy) else None

    def wish(self) -> Wish:
        """What is asked of whichever engine answers; the environment fills in what is left open."""
        copied = (self.self_draft if self.speculate else None) or (None if self.quality is None else self.cache)
        return Wish(
            self.engine,
            self.device,
            self.threads,
            self.kv_dtype,
            self.options,
            self.job or (Job() if self.speculate else Job(acceptance=0.0)),
            self.exact,
            self.cache,
            copied,
        ).with_environment()

    def require_draft(self) -> None:
        """Raise OptionError where something was said of a draft model: there is none."""
        cache = None if self.draft_cache is None else self.draft_cache.name
        for name, value in (("draft_engine", self.draft_engine), ("draft_cache", cache)):
            if value is not None:
                raise OptionError(f"{name} is {value!r}, but there is no draft model; give one, or drop it.")


def draft_of(given: str | os.PathLike[str] | None) -> Draft:
    """The value of load(draft=): "auto", "self", "self:" and a policy, a model, or None."""
    if given is None:
        return None
    if isinstance(given, str) and given == "auto":
        return NamedDraft()
    if isinstance(given, str) and given.partition(":")[0] == SelfDraft.name:
        return SelfCopy(policy_by_name(given.partition(":")[2] or _SELF_POLICY))
    return DraftModel(given)


def policy_of(given: CachePolicy | str | None) -> CachePolicy | None:
    """The value of load(cache=): a policy, by name or as it is."""
    return policy_by_name(given) if isinstance(given, str) else given


def quality_of(given: float | str | None) -> float | None:
    """The value of load(quality=): a number between 0 and 1, which "auto" stands for, too."""
    if given is None:
        return None
    with contextlib.suppress(ValueError):
        given = AUTO if given == "auto" else float(given) if isinstance(given, str) else given
    return real("quality", given, "between 0 and 1 (0.98, say), or auto", lambda x: 0 < x < 1)
