"""Every check of the engine contract finds something: each has an engine here that it must fail."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_testing as broken

from pilotfish.backends import get
from pilotfish.backends.reference.session import ReferenceSession
from pilotfish.runtime.errors import PilotfishError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.install import install_command
from pilotfish.runtime.interfaces import Indices, ModelInfo, Session, Step, Weights
from pilotfish.testing import CHECKS, Subject
from pilotfish.testing.tiny_models import Sizes, tiny_gguf
from pilotfish.testing.toy import ToySession, ToyWeights

BY_NAME = {check.__name__: check for check in CHECKS}


class LosesATokenOfAPrompt(ToySession):
    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        step = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        if len(tokens) > 64 and n_logits == 0:
            self.entries[-64] = replace(self.entries[-64], token=0)
        return step


class AcceptsAnyRows(ToySession):
    def accept(self, rows: Indices) -> None:
        self.last_parents = [-1] * len(self.last_parents)
        self.entries = self.entries[: len(self.entries) - len(self.last_parents) + len(rows)]


class ForksInTheMiddleOfATree(ToySession):
    def fork(self, *given: Any, **named: Any) -> ToySession:
        self.last_parents = []
        return super().fork(*given, **named)


class SavesInTheMiddleOfATree(ToySession):
    def save(self) -> bytes:
        self.last_parents = []
        return super().save()


class ForksRenumbered(ToySession):
    def fork(self, *given: Any, **named: Any) -> ToySession:
        other = super().fork(*given, **named)
        other.entries = [replace(e, position=i) for i, e in enumerate(other.entries)]
        return other


class FavoursOneRow(ToySession):
    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        step = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        return Step(step.logits * np.float32(1.001)) if n_logits == 1 else step


class LeavesOneRowOver(ToySession):
    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        step = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        if len(tokens) > 1 and len(tokens) % 128 == 1 and n_logits:
            step.logits[-1] += np.float32(1e-4)
        return step


class NeverTheSame(ToySession):
    _n_steps = itertools.count()  # of all sessions

    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        step = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        return Step(step.logits + np.float32(1e-4 * (next(self._n_steps) % 7)))


class BadAttention(ReferenceSession):
    """Shares that are those of nothing in particular."""

    def forward(self, tokens: Any, **options: Any) -> Step:
        step = super().forward(tokens, **options)
        return step if step.attention is None else replace(step, attention=step.attention * np.float32(0.99))


class BadHidden(ReferenceSession):
    """The states of the rows in another order."""

    def forward(self, tokens: Any, **options: Any) -> Step:
        step = super().forward(tokens, **options)
        return step if step.hidden is None else replace(step, hidden=step.hidden[::-1])


class KeepsAlikeInAllHeads(ReferenceSession):
    def keep(self, entries: Indices) -> None:
        super().keep(entries if entries.ndim == 1 else np.broadcast_to(entries[:1, :1], entries.shape))


class BadKeys(ReferenceSession):
    """Of all rows that ever were."""

    def keys_values(self, layer: int) -> Any:
        keys, values = super().keys_values(layer)
        return np.repeat(keys, 2, axis=1)[:, : keys.shape[1]], values


class ObservesIntoTheCache(ReferenceSession):
    def forward(self, tokens: Any, **options: Any) -> Step:
        step = super().forward(tokens, **options)
        return replace(step, logits=step.logits + np.float32(0.1 * bool(options.get("observe"))))


@dataclass
class OfReference:
    """Weights of the reference engine, with sessions of a broken class."""

    weights: Any
    kind: type[ReferenceSession]

    @property
    def info(self) -> ModelInfo:
        found: ModelInfo = self.weights.info
        return found

    def session(self, max_context: int | None = None) -> Session:
        return self.kind(self.weights.model, self.weights.session(max_context).max_context)

    def close(self) -> None:
        self.weights.close()


class OpensWhenClosed(ToyWeights):
    def close(self) -> None:
        pass


class OpensAnySize(ToyWeights):
    def session(self, max_context: int | None = None) -> ToySession:
        return super().session(None if max_context is None else min(max(max_context, 1), self.info.context_length))


class UnorderedWidths(ToyWeights):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.info = replace(self.info, widths=(8, 4))


TOYS: dict[str, type[ToySession]] = {
    "forward_gives_rows_of_logits": broken.HoldsOneLess,
    "logits_follow_the_whole_context": broken.AnswersForTheFirstRows,
    "the_same_steps_give_the_same_bits": NeverTheSame,
    "steps_of_any_width_agree": broken.NoiseInsideAClass,
    "prefill_in_chunks_is_prefill_at_once": LosesATokenOfAPrompt,
    "fewer_logit_rows_are_the_last_rows": broken.AnswersForTheFirstRows,
    "logits_stay_until_the_next_step": broken.ReusesItsMemory,
    "truncating_leaves_no_trace": broken.KeepsWhatWasTruncated,
    "a_long_context_is_like_a_short_one": LosesATokenOfAPrompt,
    "a_full_context_is_refused_before_anything_changes": broken.IgnoresTheLimit,
    "impossible_steps_are_refused_before_anything_changes": broken.ChecksTooLate,
    "sessions_do_not_touch_each_other": broken.LeaksIntoOthers,
    "closing_frees_and_ends": broken.WorksWhenClosed,
    "a_tree_is_its_paths_run_apart": broken.SiblingsSeeEachOther,
    "a_chain_written_as_a_tree_is_the_chain": broken.KeepsWhatWasTruncated,
    "an_accepted_path_is_all_that_stays": broken.KeepsTheWholeTree,
    "a_path_of_a_chain_is_its_head": broken.ForgetsOneTokenMore,
    "only_paths_are_accepted": AcceptsAnyRows,
    "a_tree_is_settled_before_anything_else": broken.KeepsWhatWasTruncated,
    "random_trees_again_and_again": broken.KeepsTheWholeTree,
    "evicted_entries_are_gone_and_positions_stay": broken.RenumbersAfterEviction,
    "evicting_makes_room": broken.EvictsNothing,
    "only_what_is_attended_to_is_seen": broken.SeesWhatIsLeftOut,
    "trees_work_on_a_cache_with_gaps": broken.KeepsTheWholeTree,
    "a_fork_goes_on_alike_and_alone": broken.ForksShareTheirEntries,
    "a_fork_has_the_gaps_too": ForksRenumbered,
    "a_fork_may_take_some_entries_only": ForksRenumbered,
    "trees_are_settled_before_they_are_copied": ForksInTheMiddleOfATree,
    "a_saved_cache_goes_on_with_the_same_bits": broken.RestoresOnTop,
    "what_cannot_be_restored_is_refused_before_anything_changes": broken.RestoresAnything,
    "widths_of_a_row_class_give_equal_bits": broken.NoiseInsideAClass,
    "a_row_is_the_same_whatever_follows_it": broken.RowsChangeEachOther,
    "any_logit_rows_of_a_row_class_give_equal_bits": FavoursOneRow,
    "wide_steps_are_of_the_row_class": LeavesOneRowOver,
}
READERS: dict[str, type[ToySession]] = {
    "sources_are_for_encoder_decoder_models": broken.TakesASourceWithoutAnEncoder,
    "encoding_empties_the_cache_and_forgets_the_source_before": broken.KeepsTheCacheOfTheSourceBefore,
    "a_tree_need_not_be_settled_before_another_source": broken.SettlesBeforeItReads,
    "what_cannot_be_read_is_refused_before_anything_changes": broken.ReadsTooMuch,
    "steps_need_a_source": broken.StepsWithoutASource,
    "a_fork_shares_the_source_until_it_reads_another": broken.ForksReadForEachOther,
    "a_saved_answer_knows_its_source": broken.SavesNoSource,
    "trees_and_rollback_keep_the_source": broken.ForgetsTheSourceOfTrees,
}
WEIGHTS: dict[str, type[ToyWeights]] = {
    "facts_are_there": UnorderedWidths,
    "closed_weights_open_nothing": OpensWhenClosed,
    "max_context_is_checked": OpensAnySize,
}
REFERENCES: dict[str, type[ReferenceSession]] = {
    "heads_keep_entries_of_their_own": KeepsAlikeInAllHeads,
    "keys_are_those_of_the_entries": BadKeys,
    "what_is_observed_has_its_shape_and_changes_nothing": ObservesIntoTheCache,
    "attention_is_a_distribution_over_what_is_visible": BadAttention,
    "what_is_observed_is_that_of_the_reference": BadHidden,
}
OTHER_WEIGHTS = "answers_are_those_of_the_reference"


def finds(name: str, subject: Subject) -> bool:
    try:
        BY_NAME[name](subject)
    except (AssertionError, pytest.fail.Exception, PilotfishError):
        return True
    return False


def test_every_check_has_an_engine_to_find() -> None:
    assert {*TOYS, *READERS, *WEIGHTS, *REFERENCES, OTHER_WEIGHTS} == set(BY_NAME)


@pytest.mark.parametrize("name", TOYS)
def test_a_check_of_sessions_bites(name: str) -> None:
    assert finds(name, broken.subject(TOYS[name]))


@pytest.mark.parametrize("name", READERS)
def test_a_check_of_sources_bites(name: str) -> None:
    assert finds(name, broken.subject(READERS[name]))


@pytest.mark.parametrize("kind", [SavesInTheMiddleOfATree, ForksInTheMiddleOfATree])
def test_copies_of_trees_are_found(kind: type[ToySession]) -> None:
    assert finds("trees_are_settled_before_they_are_copied", broken.subject(kind))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_check_of_weights_bites(name: str) -> None:
    assert finds(name, Subject(lambda: WEIGHTS[name](vocab_size=17, context_length=256), 0.0))


@pytest.mark.parametrize("widths", [(0, 4), (4, 4), (-1,)])
def test_widths_ascend_from_one(widths: tuple[int, ...]) -> None:
    def opened() -> Weights:
        weights = ToyWeights(vocab_size=17, context_length=256)
        weights.info = replace(weights.info, widths=widths)
        return weights

    assert finds("facts_are_there", Subject(opened, 0.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", sizes=Sizes(layers=1))


@pytest.mark.parametrize("name", REFERENCES)
def test_a_check_of_what_is_seen_bites(name: str, model: Path) -> None:
    def opened() -> Any:
        return get("reference").open(open_model(model), device=None, threads=1, kv_dtype=None)

    def subject(open_weights: Callable[[], Weights]) -> Subject:
        return Subject(open_weights, 2e-5, reference=opened, reference_noise=2e-5)

    assert not finds(name, subject(opened))
    assert finds(name, subject(lambda: OfReference(opened(), REFERENCES[name])))


def test_other_answers_than_those_of_the_reference_are_found() -> None:
    def opened(seed: int) -> Weights:
        return ToyWeights(vocab_size=17, context_length=256, seed=seed)

    assert not finds(OTHER_WEIGHTS, Subject(lambda: opened(0), 0.0, reference=lambda: opened(0)))
    assert finds(OTHER_WEIGHTS, Subject(lambda: opened(0), 0.0, reference=lambda: opened(1), reference_noise=0.1))


def test_a_missing_pytest_is_named() -> None:
    code = "import sys; sys.modules['pytest'] = None; import pilotfish.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and install_command("testing") in done.stderr, done.stderr
