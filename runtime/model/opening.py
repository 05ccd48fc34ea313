"""Opens what answers with some weights: their cache, whoever drafts for them, and what drafting costs here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..cache.policies.policy import CachePolicy
from ..cache.quality_gate import open_sequence
from ..errors import PilotfishError
from ..interfaces import DraftLengthPolicy, Proposer, Weights
from ..profiling.calibrate import Calibration
from ..speculation.controller import Drafting
from ..speculation.draft_length import RenewalReward
from ..speculation.draft_weights import DraftWeights
from ..speculation.proposer_set import Drafters
from ..speculation.proposers import DraftModel, SelfDraft
from ..text.tokenizer import Tokenizer
from .answering import Answering
from .rules import Rules


def open_answering(
    target: Weights,
    tokenizer: Tokenizer,
    calibration: Calibration,
    *,
    draft: DraftWeights | None,
    policy: DraftLengthPolicy | None,
    proposers: Sequence[Proposer] | None,
    exact: bool,
    narrow: bool,
    self_draft: CachePolicy | None,
    cache: CachePolicy | None,
    quality: float | None,
    max_context: int | None,
    rules: Rules,
    explain: Callable[[PilotfishError], PilotfishError],
) -> Answering:
    """What answers, over empty caches; the options are Model's. Raises AbilityError and OptionError."""
    rows = calibration.rows.rule() if exact else calibration.rows.free()
    drafts = policy is not None
    drafts_itself = self_draft if drafts else None
    sequence = open_sequence(
        target, rows, cache=cache, self_draft=drafts_itself, quality=quality, max_context=max_context
    )
    drafters = Drafters(sequence, target, tokenizer, proposers, draft if drafts else None, drafts_itself, narrow)
    token_s = {SelfDraft.name: calibration.curve.seconds(1)}
    if draft is not None:
        token_s[DraftModel.name] = draft.token_s
    return Answering(
        sequence,
        tokenizer,
        drafters,
        Drafting(policy or RenewalReward(), calibration.curve, rows, token_s),
        rules,
        info=target.info,
        exact=exact,
        narrow=narrow,
        drafts=drafts,
        explain=explain,
    )
