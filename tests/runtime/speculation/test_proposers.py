"""A broken draft costs only speed, so no exactness test can see it: proposers are tested for themselves."""

from __future__ import annotations

import numpy as np
import pytest
from allowance import Allowance
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.ngram_table import NGramTable
from pilotfish.runtime.speculation.proposers import DraftModel, NGram, Suffix
from pilotfish.testing.toy import ToySession, ToyWeights


def suffix(context: list[int], k: int, branches: int = 1) -> tuple[list[int], list[float]]:
    draft = Suffix(branches).propose(np.array(context, dtype=np.int64), Allowance(k))
    return draft.tokens.tolist(), [] if draft.expected is None else draft.expected.tolist()


def test_suffix_repeats_what_followed() -> None:
    assert suffix([1, 2, 3, 4, 5, 9, 2, 3], 3)[0] == [4, 5, 9]


def test_suffix_prefers_the_longest_match() -> None:
    #      a  1 2 -> 7      b  1 2 -> 8 ...   ends with "b 1 2"
    context = [50, 1, 2, 7, 60, 1, 2, 8, 50, 1, 2, 7, 61, 60, 1, 2]
    assert suffix(context, 1)[0] == [8]


def test_suffix_votes_and_breaks_ties_by_recency() -> None:
    assert suffix([1, 5, 1, 6, 1, 6, 1], 1)[0] == [6]
    assert suffix([1, 5, 9, 1, 6, 8, 1], 1)[0] == [6]


def test_suffix_follows_a_period_beyond_the_end_of_the_text() -> None:
    assert suffix([1, 2, 3, 1, 2, 3, 1, 2, 3], 7)[0] == [1, 2, 3, 1, 2, 3, 1]
    assert suffix([4, 4, 4], 5)[0] == [4, 4, 4, 4, 4]


def test_suffix_is_silent_on_new_tokens_and_empty_budgets() -> None:
    assert suffix([1, 2, 3], 5)[0] == []
    assert suffix([1], 5)[0] == []
    assert suffix([1, 1], 0)[0] == []


def test_suffix_confidence_grows_with_the_match() -> None:
    short = suffix([1, 2, 9, 9, 8, 2], 1)[1]
    long = suffix([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6], 1)[1]
    assert 0 < short[0] < long[0] < 1


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.integers(1, 8), st.integers(1, 3))
def test_suffix_drafts_are_well_formed(context: list[int], k: int, branches: int) -> None:
    tokens = np.array(context, dtype=np.int64)
    draft = Suffix(branches).propose(tokens, Allowance(k))
    again = Suffix(branches).propose(tokens, Allowance(k))
    assert len(draft) <= k and draft.distributions is None
    assert draft.tokens.tolist() == again.tokens.tolist()
    if context[-1] not in context[:-1]:
        assert len(draft) == 0
        return
    assert len(draft) >= 1 and draft.expected is not None
    parents = np.arange(len(draft)) if draft.parents is None else draft.parents
    above = np.concatenate([[1.0], draft.expected])
    for i, parent in enumerate(parents):
        assert 0 <= parent <= i
        assert 0 < draft.expected[i] <= above[parent]
    if branches > 1:
        pairs = list(zip(parents.tolist(), draft.tokens.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        assert all((parents == p).sum() <= branches for p in set(parents.tolist()))


def test_suffix_tree_holds_the_chain_of_the_first_level() -> None:
    draft = Suffix(2).propose(np.array([1, 5, 6, 1, 7, 1, 5, 6, 1]), Allowance(9))
    assert draft.parents is not None
    assert {(int(p), int(t)) for p, t in zip(draft.parents, draft.tokens, strict=True)} >= {(0, 5), (0, 7)}


def test_suffix_with_no_branches_is_refused() -> None:
    with pytest.raises(OptionError, match="branches is 0"):
        Suffix(0)


# -- draft model ---------------------------------------------------------------------------------------------------


def drafter(sampling: Sampling | None = None, **toy: object) -> tuple[DraftModel, ToySession]:
    session = ToyWeights(vocab_size=5, **toy).session()  # type: ignore[arg-type]
    made = DraftModel(CachedSequence(session), sampling or Sampling(), 3, np.random.default_rng(0), 5)
    return made, session


def greedy(context: list[int], n: int) -> list[int]:
    out = list(context)
    for _ in range(n):
        logits = ToyWeights(vocab_size=5).session().forward(np.array(out), n_logits=1).logits[0]
        out.append(int(logits.argmax()))
    return out[len(context) :]


def test_draft_model_drafts_what_it_would_say() -> None:
    made, _ = drafter()
    assert made.propose(np.array([1, 2, 3]), Allowance(4)).tokens.tolist() == greedy([1, 2, 3], 4)


def test_draft_model_after_any_history_says_what_a_fresh_one_says() -> None:
    """A rejected draft leaves no trace, whatever was accepted before."""
    rng = np.random.default_rng(1)
    made, session = drafter()
    context = [1, 2, 3]
    for _ in range(30):
        draft = made.propose(np.array(context), Allowance(int(rng.integers(1, 5))))
        fresh, _ = drafter()
        assert draft.tokens.tolist() == fresh.propose(np.array(context), Allowance(len(draft))).tokens.tolist()
        n = int(rng.integers(0, len(draft) + 1))
        context += [*draft.tokens[:n].tolist(), int(rng.integers(0, 5))]
        if len(context) > 50:
            context = context[: int(rng.integers(3, 10))]  # another conversation with the same beginning
    assert len(session.entries) <= 64


def test_fully_accepted_draft_is_never_computed_twice() -> None:
    made, session = drafter()
    context = [1, 2, 3]
    for _ in range(6):
        draft = made.propose(np.array(context), Allowance(3))
        context += [*draft.tokens.tolist(), 4]
    assert session.tokens_run == context[: len(session.tokens_run)]


def test_draft_model_asks_before_every_token_but_the_first_and_keeps_the_one_it_asked_about() -> None:
    made, session = drafter()
    assert len(made.propose(np.array([1, 2, 3]), Allowance(5, stop_after=2))) == 2
    assert session.n_forward == 2  # the context, and one token


def test_sampled_drafts_carry_the_distribution_they_were_drawn_from_and_greedy_ones_do_not() -> None:
    sampling = Sampling(temperature=0.8, top_k=3)
    made, _ = drafter(sampling)
    draft = made.propose(np.array([1, 2, 3]), Allowance(3))
    assert draft.distributions is not None and len(draft.distributions) == 3
    for i, q in enumerate(draft.distributions):
        context = np.array([1, 2, 3, *draft.tokens[:i]])
        logits = ToyWeights(vocab_size=5).session().forward(context, n_logits=1).logits[0]
        assert np.allclose(q.dense(5), sampling.distribution(logits, context, 3).dense(5))
    assert drafter()[0].propose(np.array([1, 2, 3]), Allowance(3)).distributions is None


def test_draft_model_outgrown_by_the_context_falls_silent() -> None:
    made, _ = drafter(context_length=8)
    assert len(made.propose(np.array([1] * 8), Allowance(4))) == 1
    assert len(made.propose(np.array([1] * 9), Allowance(4))) == 0


def test_draft_model_with_a_smaller_vocabulary_is_refused() -> None:
    session = ToyWeights(vocab_size=4).session()
    with pytest.raises(OptionError, match="4 tokens and the target 5"):
        DraftModel(CachedSequence(session), Sampling(), 1, np.random.default_rng(0), 5)


def test_draft_model_padded_to_more_tokens_never_guesses_the_padding() -> None:
    session = ToyWeights(vocab_size=50).session()
    made = DraftModel(CachedSequence(session), Sampling(), 1, np.random.default_rng(0), 5)
    for seed in range(10):
        assert made.propose(np.array([seed % 5, 1]), Allowance(6)).tokens.max() < 5


def ngram(proposer: NGram, context: list[int], k: int) -> list[int]:
    draft = proposer.propose(np.array(context, dtype=np.int64), Allowance(k))
    assert len(draft) <= k and draft.distributions is None
    if len(draft):
        assert draft.expected is not None and 0 < draft.expected[-1] <= draft.expected[0] <= 1
    return draft.tokens.tolist()


def test_ngrams_of_one_answer_are_known_in_the_next() -> None:
    proposer, said = NGram(), [5, 6, 7, 8, 9, 10]
    for n in range(2, len(said) + 1):  # round by round, behind a prompt
        ngram(proposer, [1, 2, *said[:n]], 4)
    assert ngram(proposer, [3, 6, 7], 3) == [8, 9]  # what would follow is too unlikely
    assert ngram(proposer, [30, 31], 3) == []


def test_ngrams_learn_every_token_once_though_rounds_are_left_out() -> None:
    often, seldom = NGram(), NGram()
    said = [5, 6, 7, 5, 6, 7, 5, 6, 8, 5, 6]
    for n in range(1, len(said) + 1):
        ngram(often, said[:n], 1)
    for n in (1, 2, 7, 11):
        ngram(seldom, said[:n], 1)
    tables = often.table, seldom.table
    assert [[t.guess(said[:n]) for n in range(1, 12)] for t in tables[:1]] == [
        [t.guess(said[:n]) for n in range(1, 12)] for t in tables[1:]
    ]


def test_ngrams_do_not_learn_prompts() -> None:
    proposer = NGram()
    ngram(proposer, [1, 2, 3, 1, 2], 3)
    assert ngram(proposer, [7, 1, 2], 3) == []


def test_a_longer_context_that_was_right_is_trusted_over_a_shorter_one() -> None:
    table = NGramTable()
    for _ in range(3):
        table.learn([1, 2, 3], 0)
        table.learn([9, 2, 4], 0)
    assert [guess and guess[0] for guess in (table.guess([1, 2]), table.guess([9, 2]))] == [3, 4]


def test_what_is_not_said_any_more_is_forgotten() -> None:
    table = NGramTable()
    for _ in range(20):
        table.learn([1, 2], 0)
    known = table.guess([1])
    assert known is not None and known[0] == 2 and known[1] > 0.9
    for _ in range(20):
        table.learn([1, 3], 0)
    now = table.guess([1])
    assert now is not None and now[0] == 3 and now[1] > 0.9


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200), st.integers(1, 4))
def test_a_small_table_holds_what_it_can(tokens: list[int], bits: int) -> None:
    table = NGramTable(bits)
    table.learn(tokens, 0)
    guess = table.guess(tokens)
    assert guess is None or (guess[0] in tokens and 0 < guess[1] < 1)
    assert table.nbytes == 7 << bits


def test_ngrams_can_begin_anew_with_what_was_known() -> None:
    proposer, known = NGram(), NGramTable()
    known.learn([1, 2, 3], 0)
    for n in range(1, 6):
        ngram(proposer, [4, 5, 6, 4, 5][:n], 2)
    proposer.restart(known.copy())
    assert ngram(proposer, [9, 4, 5], 1) == [] and ngram(proposer, [9, 1, 2], 1) == [3]
    known.learn([1, 2, 7] * 9, 0)
    assert ngram(proposer, [9, 1, 2], 1) == [3]
