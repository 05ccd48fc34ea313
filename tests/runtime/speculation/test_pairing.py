"""Two vocabularies: what they share, what is refused, and that a draft with other tokens changes nothing."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import tokenizers
from allowance import Allowance
from enumerate_randomness import LazyRng, distribution_of
from enumerated_loop import PROMPT, SETTINGS, flat_curve, target_distribution, total_variation
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.loop import Limits, generate
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.controller import Drafting
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import DraftModel
from pilotfish.runtime.speculation.vocab_mapping import Pairing, Translation, pair
from pilotfish.runtime.text.tokenizer import Tokenizer
from pilotfish.testing.toy import ToySession, ToyWeights


def words(*tokens: str, special: tuple[str, ...] = (), **settings: object) -> Tokenizer:
    """A byte-level BPE tokenizer with these tokens; one of two letters is merged from them."""
    merges = [(t[0], t[1:]) for t in tokens if len(t) > 1]
    inner = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return Tokenizer(inner, **settings)  # type: ignore[arg-type]


def translation(target: Tokenizer, draft: Tokenizer) -> Translation:
    return Translation(pair(target, draft), target, draft, rows=target.vocab_size, draft_rows=draft.vocab_size)


def test_the_same_tokens_are_identical() -> None:
    found = pair(words("a", "b", "ab"), words("a", "b", "ab"))
    assert (found.kind, found.n_shared, found.n_equal_ids, found.difference) == ("identical", 3, 3, None)
    found.require("identical", "this pair")


def test_a_draft_with_more_tokens_at_its_end_is_identical_for_the_target() -> None:
    assert pair(words("a", "b"), words("a", "b", "c")).kind == "identical"


def test_other_special_tokens_make_a_padded_pair_that_drafts_all_others() -> None:
    target, draft = words("a", "b", special=("<x>", "<end>")), words("a", "b", special=("<y>", "<end>"))
    found = pair(target, draft)
    assert (found.kind, found.target_ids.tolist(), found.draft_ids.tolist()) == ("padded", [0, 1, 3], [0, 1, 3])
    assert found.difference == "token 2 is '<x>' in the target and '<y>' in the draft"


def test_a_special_token_is_not_an_ordinary_one_of_the_same_text() -> None:
    found = pair(words("a", "b", special=("ab",)), words("a", "b", "ab"))
    assert (found.kind, found.target_ids.tolist()) == ("padded", [0, 1])


def test_moved_tokens_are_mapped_by_their_bytes() -> None:
    found = pair(words("a", "b", "ab", special=("<end>",)), words("b", "c", "a", special=("<end>",)))
    assert found.kind == "mapped"
    assert dict(zip(found.target_ids.tolist(), found.draft_ids.tolist(), strict=True)) == {0: 2, 1: 0, 3: 3}
    assert (found.n_shared, found.n_equal_ids) == (3, 1)


def test_a_pair_that_must_be_identical_names_the_first_token_that_differs() -> None:
    found = pair(words("a", "b", "c"), words("a", "c", "b"))
    with pytest.raises(OptionError, match="here: the vocabularies are mapped, not identical: token 1 is 'b' in the t"):
        found.require("identical", "here")
    with pytest.raises(OptionError, match="not padded"):
        found.require("padded", "here")


def test_vocabularies_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(OptionError, match="share 0 of 2 tokens; token 0 is 'a' in the target and 'c' in the draft"):
        pair(words("a", "b"), words("c", "d"))


@pytest.mark.parametrize("draft", [("a", "b", "ab"), ("a", "b", "x"), ("b", "a", "c")])
def test_a_pairing_survives_being_stored(draft: tuple[str, ...]) -> None:
    found = pair(words("a", "b", "ab"), words(*draft))
    again = Pairing.from_facts(found.to_facts())
    assert (again.kind, again.difference) == (found.kind, found.difference)
    assert again.target_ids.tolist() == found.target_ids.tolist()
    assert again.draft_ids.tolist() == found.draft_ids.tolist()


@pytest.mark.parametrize(
    "facts",
    [
        None,
        {},
        {"kind": "close"},
        {"kind": "mapped"},
        {"kind": "mapped", "target_ids": [0, 1], "draft_ids": [0]},
        {"kind": "mapped", "target_ids": [1, 0], "draft_ids": [0, 1]},
        {"kind": "mapped", "target_ids": [0, 1], "draft_ids": [0, -1]},
        {"kind": "padded", "target_ids": [[0]], "draft_ids": [[0]]},
        {"kind": "identical", "n_shared": "many"},
        {"kind": "identical", "n_shared": 0},
    ],
)
def test_damaged_facts_are_no_pairing(facts: object) -> None:
    with pytest.raises(ValueError, match="not a pairing"):
        Pairing.from_facts(facts)


# -- translation -----------------------------------------------------------------------------------------------------


def test_a_token_without_a_counterpart_is_written_in_the_drafts_tokens() -> None:
    made = translation(words("a", "b", "ab", special=("<x>",)), words("x", "b", "a", "<", ">"))
    own, ends = made.context(np.array([2, 0, 3, 1]))
    assert own.tolist() == [2, 1, 2, 3, 0, 4, 1]  # a b | a | < x > | b
    assert ends.tolist() == [2, 3, 6, 7]


def test_a_part_of_a_character_is_written_in_bytes() -> None:
    half, other_half = "Ã", "©"  # the two bytes of "é" in the byte alphabet
    made = translation(words("a", "aÃ", half, other_half), words(other_half, "a", half))
    assert made.context(np.array([1, 3]))[0].tolist() == [1, 2, 0]


def test_a_draft_whose_texts_begin_with_a_token_gets_it() -> None:
    target = words("a", "b", special=("<s>",))
    draft = words("b", "a", special=("<s>",), bos_id=2, add_bos=True)
    made = translation(target, draft)
    assert made.context(np.array([0, 1]))[0].tolist() == [2, 1, 0]
    assert made.context(np.array([2, 0, 1]))[0].tolist() == [2, 1, 0]  # the target's text has it already
    assert made.context(np.array([0]))[0].tolist() == [2, 1]


def test_translation_of_any_history_is_that_of_a_fresh_one() -> None:
    rng = np.random.default_rng(0)
    target, draft = words("a", "b", "ab", "bb", special=("<x>",)), words("b", "x", "a", "<", ">")
    made, context = translation(target, draft), [0]
    for _ in range(200):
        own, ends = made.context(np.array(context))
        fresh, fresh_ends = translation(target, draft).context(np.array(context))
        assert own.tolist() == fresh.tolist() and ends.tolist() == fresh_ends.tolist()
        context = context[: int(rng.integers(0, len(context) + 1))] + rng.integers(0, 5, 4).tolist()


def test_a_longer_context_begins_with_the_translation_of_the_shorter_one() -> None:
    made = translation(words("a", "b", "ab", special=("<x>",)), words("x", "b", "a", "<", ">"))
    whole = made.context(np.array([2, 0, 3, 1, 2, 2]))[0].tolist()
    for n in range(6):
        part = made.context(np.array([2, 0, 3, 1, 2, 2][:n]))[0].tolist()
        assert whole[: len(part)] == part


# -- drafting --------------------------------------------------------------------------------------------------------

TARGET = words("a", "b", "c")
DRAFTS = {
    "permuted": words("c", "a", "b"),
    "one token missing": words("x", "c", "a"),
    "longer": words("y", "b", "x", "a", "c"),
    "padded": words("a", "x", "c"),
}


def drafter(draft: Tokenizer, sampling: Sampling, rng: object, n_prompt: int = len(PROMPT)) -> DraftModel:
    session = ToyWeights(draft.vocab_size, seed=1).session()
    made = translation(TARGET, draft)
    return DraftModel(CachedSequence(session), sampling, n_prompt, rng, 3, made)  # type: ignore[arg-type]


@pytest.fixture
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) * 1e-3)


@pytest.mark.usefixtures("still_clock")
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_output_distribution_is_the_targets_whatever_the_drafts_vocabulary(settings: str, draft: str) -> None:
    sampling = SETTINGS[settings]

    def run(rng: LazyRng) -> tuple[int, ...]:
        rounds = generate(
            CachedSequence(ToyWeights(3).session()),
            PROMPT,
            sampling=sampling,
            drafting=Drafting(Fixed(2), flat_curve(), ANY_WIDTH),
            proposers=(drafter(DRAFTS[draft], sampling, rng),),
            limits=Limits(max_new_tokens=3),
            rng=rng,  # type: ignore[arg-type]
        )
        return tuple(t for r in rounds for t in r.tokens)

    assert total_variation(distribution_of(run), target_distribution(ToyWeights(3), sampling, 3)) <= 1e-12


def test_a_mapped_distribution_is_the_drafts_distribution_of_the_shared_tokens() -> None:
    draft = DRAFTS["longer"]
    made = drafter(draft, Sampling(temperature=0.7), np.random.default_rng(0))
    proposed = made.propose(np.array([0, 1, 2]), Allowance(3))
    assert proposed.distributions is not None
    to_draft = {0: 3, 1: 1, 2: 4}
    own = [to_draft[t] for t in (0, 1, 2)]
    for token, q in zip(proposed.tokens.tolist(), proposed.distributions, strict=True):
        logits = ToyWeights(5, seed=1).session().forward(np.array(own), n_logits=1).logits[0].astype(np.float64)
        shared = np.exp(logits[[3, 1, 4]] / 0.7)
        assert np.allclose(q.dense(3), shared / shared.sum(), atol=1e-7)
        own.append(to_draft[token])


def test_the_target_itself_with_permuted_tokens_is_always_accepted() -> None:
    """The same weights under other names: everything it drafts is right."""
    order = np.array([2, 0, 1])  # id in the draft of each token of the target

    class Renamed(ToyWeights):
        def session(self, max_context: int | None = None) -> ToySession:
            return RenamedSession(self, 64)

    class RenamedSession(ToySession):
        def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
            step = super().forward(np.argsort(order)[tokens], n_logits=n_logits, parents=parents, observe=observe)
            step.logits[:] = step.logits[:, np.argsort(order)]
            return step

    made = translation(TARGET, words("b", "c", "a"))
    model = DraftModel(CachedSequence(Renamed(3).session()), Sampling(), 5, np.random.default_rng(0), 3, made)
    rounds = generate(
        CachedSequence(ToyWeights(3).session()),
        PROMPT,
        sampling=Sampling(),
        drafting=Drafting(Fixed(3), flat_curve(), ANY_WIDTH),
        proposers=(model,),
        limits=Limits(max_new_tokens=12),
        rng=np.random.default_rng(0),
    )
    drafted = [(r.drafted, r.accepted) for r in rounds]
    assert drafted == [(3, 3)] * 3


def test_mapped_draft_is_never_computed_twice() -> None:
    made = drafter(DRAFTS["permuted"], Sampling(), np.random.default_rng(0))
    session: ToySession = made._sequence.session  # type: ignore[assignment]
    context = [0, 1, 2]
    for _ in range(6):
        draft = made.propose(np.array(context), Allowance(3))
        context += [*draft.tokens.tolist(), 1]
    own = [(1, 2, 0)[t] for t in context]
    assert session.tokens_run == own[: len(session.tokens_run)]


def test_where_every_shared_token_is_forbidden_the_draft_stays_legal_and_short() -> None:
    def only_b(logits: np.ndarray, context: np.ndarray) -> np.ndarray:
        return np.where(np.arange(3) == 1, logits, -np.inf).astype(np.float32)

    draft = DRAFTS["one token missing"]  # has no b
    made = drafter(draft, Sampling(temperature=1.0, processors=(only_b,)), np.random.default_rng(0))
    proposed = made.propose(np.array([0, 1, 2]), Allowance(4))
    assert proposed.tokens.tolist() == [1]
    assert proposed.distributions is not None and proposed.distributions[0].prob(1) == 1.0


def test_mapped_draft_outgrown_by_its_own_longer_text_falls_silent() -> None:
    target, draft = words("a", "b", "ab"), words("b", "a")
    session = ToyWeights(2, context_length=8).session()
    made = DraftModel(CachedSequence(session), Sampling(), 1, np.random.default_rng(0), 3, translation(target, draft))
    assert len(made.propose(np.array([2, 2, 2, 2]), Allowance(4))) == 1
    assert len(made.propose(np.array([2, 2, 2, 2, 0]), Allowance(4))) == 0


def test_a_draft_with_fewer_rows_of_logits_drafts_what_it_has() -> None:
    """The same tokenizer, but the target has rows for padding that the draft has not, or the draft lacks its end."""
    tokens = words("a", "b", "c", "d")
    made = Translation(pair(tokens, tokens), tokens, tokens, rows=6, draft_rows=3)
    logits = made.logits(np.array([1.0, 3.0, 2.0], dtype=np.float32))
    assert logits.argmax() == 1 and (logits[3:] < -1e29).all() and len(logits) == 6
    assert [made.is_shared(t) for t in range(6)] == [True, True, True, False, False, False]
    model = DraftModel(
        CachedSequence(ToyWeights(3, seed=1).session()), Sampling(), 1, np.random.default_rng(0), 6, made
    )
    assert model.propose(np.array([0, 3, 5, 1]), Allowance(5)).tokens.max() < 3
