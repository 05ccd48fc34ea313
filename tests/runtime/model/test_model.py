"""Model, Stream and Chat on a tiny model: what an embedding application relies on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from busy_machine import other_programs
from hypothesis import given, settings
from hypothesis import strategies as st

import pilotfish
from pilotfish import Model, Sampling, backends, load
from pilotfish.loading import cpu_load, measuring
from pilotfish.runtime.errors import ChatTemplateError, ContextFullError, OptionError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Budget, Draft, Round
from pilotfish.runtime.profiling.cost_curve import CostCurve
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import Suffix
from pilotfish.runtime.storage import cache_dir
from pilotfish.runtime.text.text_assembler import TextAssembler
from pilotfish.testing.tiny_models import tiny_gguf

pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("module_cache")
PROMPT = "hello the hello and the hello"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=10)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with load(path) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[Model]:
    with load(path, speculate=False) as loaded:
        yield loaded


def test_five_lines_of_the_readme_hold(model: Model) -> None:
    result = model.generate(PROMPT, max_new_tokens=20)
    assert result.text == model.tokenizer.decode([t for t in result.token_ids if t not in model.tokenizer.eos_ids])
    assert result.token_ids == tuple(t for r in result.rounds for t in r.tokens)
    assert result.stats.n_tokens == 20 and result.stats.n_rounds == len(result.rounds)
    assert result.stats.decode_s == pytest.approx(sum(r.draft_s + r.verify_s + r.other_s for r in result.rounds))
    assert result.stats.decode_tok_s == pytest.approx(20 / result.stats.decode_s)
    assert result.stats.ttft_s > 0 and result.stats.kv_bytes > 0


@pytest.mark.parametrize("policy", [True, Fixed(1), Fixed(7)])
@pytest.mark.parametrize("draft", [None, "itself"])
def test_speculative_is_plain_token_by_token(path: Path, plain: Model, policy: bool | Fixed, draft: str | None) -> None:
    with load(path, speculate=policy, draft=path if draft else None) as loaded:
        for prompt in (PROMPT, "1212 1212 1212 12", "and and the and and the"):
            fast, slow = loaded.generate(prompt, max_new_tokens=60), plain.generate(prompt, max_new_tokens=60)
            assert fast.token_ids == slow.token_ids and fast.finish_reason == slow.finish_reason
            assert all(r.width >= 2 for r in (*fast.rounds, *slow.rounds))


def test_seeded_sampling_with_lookup_is_plain_token_by_token(model: Model, plain: Model) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1)
    for seed in range(5):
        fast = model.generate(PROMPT, max_new_tokens=40, sampling=sampling, seed=seed)
        assert fast.token_ids == plain.generate(PROMPT, max_new_tokens=40, sampling=sampling, seed=seed).token_ids


def test_pieces_are_the_text_and_the_result_comes_at_the_end(model: Model) -> None:
    stream = model.stream(PROMPT, max_new_tokens=30)
    assert stream.result is None
    pieces = list(stream)
    assert stream.result is not None and "".join(pieces) == stream.result.text and len(pieces) > 1
    assert all(c < "\ud800" or c > "\udfff" for c in stream.result.text)


def test_a_closed_stream_leaves_a_usable_model(model: Model) -> None:
    whole = model.generate(PROMPT, max_new_tokens=30).token_ids
    stream = model.stream(PROMPT, max_new_tokens=30)
    next(iter(stream))
    stream.close()
    assert stream.result is not None and stream.result.finish_reason == "cancelled"
    assert stream.result.token_ids == whole[: len(stream.result.token_ids)] and len(stream.result.token_ids) < 30
    assert model.generate(PROMPT, max_new_tokens=30).token_ids == whole


def test_stop_strings_and_ids_end_plain_and_speculative_alike(model: Model, plain: Model) -> None:
    whole = model.generate(PROMPT, max_new_tokens=40)
    for at in (3, 9, 17):
        stop = whole.text[at : at + 2]
        fast = model.generate(PROMPT, max_new_tokens=40, stop=[stop])
        slow = plain.generate(PROMPT, max_new_tokens=40, stop=[stop])
        assert fast.text == slow.text == whole.text[: whole.text.index(stop)]
        assert fast.token_ids == slow.token_ids and fast.finish_reason == slow.finish_reason == "stop"
    token = whole.token_ids[7]
    cut = model.generate(PROMPT, max_new_tokens=40, stop=[int(token)])
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1] and cut.finish_reason == "stop"


def test_a_text_or_a_number_alone_is_one_stop(model: Model) -> None:
    whole = model.generate(PROMPT, max_new_tokens=40)
    text, token = whole.text[9:12], whole.token_ids[7]
    for alone, listed in ((text, [text]), (int(token), [int(token)]), (token, (np.int64(token),))):
        one, other = (model.generate(PROMPT, max_new_tokens=40, stop=stop) for stop in (alone, listed))
        assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, "stop")
    assert whole.text.startswith(model.generate(PROMPT, max_new_tokens=40, stop=text).text + text)
    for wrong in ("", [""], [1.5], [None], True, [-1], [model.info.vocab_size]):
        with pytest.raises(OptionError, match="stop"):
            model.generate(PROMPT, stop=wrong)  # type: ignore[arg-type]


def test_the_text_of_a_special_token_stops_at_the_token(path: Path, model: Model) -> None:
    """It has no text, so nothing would match; the same text in plain letters does match."""
    start = model.tokenizer.id_of("<|im_start|>")
    assert start is not None and model.tokenizer.decode([start]) == ""

    def turn(logits: np.ndarray, context: np.ndarray) -> np.ndarray:
        logits[start] = 1e6 if len(context) == n_prompt + 5 else -1e6
        return logits

    n_prompt = len(model.encode(PROMPT))
    sampling = Sampling(processors=(turn,))
    whole = model.generate(PROMPT, max_new_tokens=20, sampling=sampling)
    assert whole.token_ids[5] == start and whole.finish_reason == "length"
    for stop in ("<|im_start|>", ["never", "<|im_start|>"], start):
        stream = model.stream(PROMPT, max_new_tokens=20, sampling=sampling, stop=stop)
        text = "".join(stream)
        assert stream.result is not None and stream.result.finish_reason == "stop"
        assert stream.result.token_ids == whole.token_ids[:6] and text == stream.result.text
        assert text == model.tokenizer.decode(whole.token_ids[:5])
    letters = model.tokenizer.encode("<|im_start|>").tolist()
    assert start not in letters

    def spelling(logits: np.ndarray, context: np.ndarray) -> np.ndarray:
        logits[(letters * 9)[len(context) - n_prompt]] = 1e6
        return logits

    spelled = model.generate(PROMPT, max_new_tokens=40, sampling=Sampling(processors=(spelling,)), stop="<|im_start|>")
    assert (spelled.text, spelled.finish_reason) == ("", "stop") and list(spelled.token_ids) == letters


def test_the_next_turn_reuses_the_cache_and_says_the_same_as_a_fresh_model(model: Model, path: Path) -> None:
    chat = model.chat("the")
    first = chat.send("hello and", max_new_tokens=12)
    second = chat.send("the hello", max_new_tokens=12)
    assert second.stats.n_reused >= first.stats.n_prompt
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    with load(path) as fresh:
        again = fresh.generate(chat.messages[:-1], max_new_tokens=12)
    assert again.token_ids == second.token_ids and again.stats.n_reused == 0


def test_a_turn_that_is_stopped_or_fails_is_forgotten(model: Model) -> None:
    chat = model.chat()
    stream = chat.stream("hello", max_new_tokens=30)
    next(iter(stream))
    stream.close()
    assert chat.messages == []
    with pytest.raises(ContextFullError):
        chat.send("hello " * 3000)
    assert chat.messages == []
    chat.send("hello", max_new_tokens=4)
    assert len(chat.messages) == 2


def test_cancel_from_another_thread(model: Model) -> None:
    cancel = threading.Event()
    stream = model.stream(PROMPT, max_new_tokens=500, cancel=cancel)
    next(iter(stream))
    cancel.set()
    list(stream)
    assert stream.result is not None and stream.result.finish_reason == "cancelled"
    cancelled = model.generate("hello " * 1000, max_new_tokens=5, cancel=cancel)
    assert cancelled.finish_reason == "cancelled" and cancelled.token_ids == () and cancelled.stats.ttft_s is None


def test_two_threads_take_turns(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=30).token_ids
    found: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: found.append(model.generate(PROMPT, max_new_tokens=30).token_ids))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_siblings_share_weights_and_nothing_else(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=20).token_ids
    sibling = model.sibling(policy=None)
    assert sibling.generate("the the", max_new_tokens=20).stats.drafted == 0
    assert sibling.generate(PROMPT, max_new_tokens=20).token_ids == expected
    sibling.close()
    assert model.generate(PROMPT, max_new_tokens=20).token_ids == expected


def test_exactness_can_be_lifted(path: Path) -> None:
    with load(path, exact=False, speculate=False) as loose:
        assert {r.width for r in loose.generate(PROMPT, max_new_tokens=8).rounds} == {1}
        assert not loose.generate(PROMPT, max_new_tokens=8).stats.exact


def test_raw_text_messages_and_what_contradicts_them(model: Model) -> None:
    templated = model.encode(PROMPT)
    assert templated.tolist() == model.encode([{"role": "user", "content": PROMPT}]).tolist()
    assert len(model.encode(PROMPT, raw=True)) < len(templated)
    with pytest.raises(OptionError, match="raw=True takes a text"):
        model.generate([{"role": "user", "content": "hi"}], raw=True)
    with pytest.raises(OptionError, match="both given"):
        model.generate(PROMPT, temperature=0.5, sampling=Sampling())
    with pytest.raises(OptionError, match="stop string is empty"):
        model.generate(PROMPT, stop=[""])
    with pytest.raises(ChatTemplateError, match="role"):
        model.generate([{"content": "hi"}])


def test_a_model_without_a_template_takes_text_only(tmp_path: Path) -> None:
    bare = tiny_gguf(tmp_path / "bare.gguf", template="", seed=10)
    with load(bare) as loaded:
        assert loaded.template is None
        assert loaded.generate(PROMPT, max_new_tokens=4).stats.n_prompt == len(loaded.tokenizer.encode(PROMPT))
        with pytest.raises(ChatTemplateError, match="no chat template"):
            loaded.chat()
        with pytest.raises(ChatTemplateError, match="give it a text"):
            loaded.generate([{"role": "user", "content": "hi"}])


def test_proposers_of_ones_own_and_trees_only_where_bits_may_differ(path: Path, plain: Model) -> None:
    expected = plain.generate(PROMPT, max_new_tokens=30).token_ids

    class Oracle:
        """Knows the answer, states no confidence, and tries to write where it may only read."""

        name = "oracle"

        def propose(self, context: np.ndarray, budget: Budget) -> Draft:
            with pytest.raises(ValueError, match="read-only"):
                context[0] = 1
            done = len(context) - plain.generate(PROMPT, max_new_tokens=1).stats.n_prompt
            return Draft(np.array(expected[done : done + budget.max_tokens], dtype=np.int64))

    with load(path, speculate=Fixed(4), proposers=[Oracle()]) as loaded:
        result = loaded.generate(PROMPT, max_new_tokens=30)
        assert result.token_ids == expected and result.stats.acceptance == 1.0
    trees = load(path, speculate=Fixed(4), proposers=[Suffix(branches=2)])
    with trees, pytest.raises(OptionError, match="exact=False"):
        trees.generate("the the the the", max_new_tokens=30)
    with load(path, speculate=Fixed(4), proposers=[Suffix(branches=2)], exact=False) as loaded:
        assert loaded.generate("the the the the", max_new_tokens=30).stats.drafted > 0


def test_a_closed_model_says_so(path: Path) -> None:
    loaded = load(path)
    loaded.close()
    loaded.close()
    with pytest.raises(OptionError, match="closed"):
        loaded.generate(PROMPT)


def test_what_was_measured_is_remembered_and_damage_is_measured_again(path: Path) -> None:
    for _ in range(2):
        load(path).close()
    facts = list((cache_dir() / "costs").glob("*.json"))
    assert facts
    before = facts[0].read_bytes()
    facts[0].write_bytes(b"{ damaged")
    load(path).close()
    assert facts[0].read_bytes().startswith(b"{") and facts[0].read_bytes() != b"{ damaged" and before


def measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every measurement of costs."""
    measured, original = [], measuring.calibrate
    monkeypatch.setattr(measuring, "calibrate", lambda session: measured.append(1) or original(session))
    return measured


@other_programs
def test_what_was_measured_on_a_busy_machine_serves_once_and_is_not_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))
    measured, counts, kept = measurements(monkeypatch), [], []
    for share in (0.9, 0.9, 0.2, 0.9):
        monkeypatch.setattr(seen, lambda *_, share=share: share)
        with load(path) as model:
            assert model.calibration.busy == (share if len(counts) < 3 else 0.2)
            assert model.generate("ab", max_new_tokens=4).token_ids
        counts.append(len(measured))
        kept.append(len(list((tmp_path / "costs").glob("*.json"))))
    assert counts == [1, 2, 3, 3] and kept == [0, 0, 1, 1]


def test_costs_that_no_kernel_has_are_not_kept_and_kept_ones_are_measured_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))
    load(path).close()
    (kept,) = (tmp_path / "costs").glob("*.json")
    good = json.loads(kept.read_text())
    measured = measurements(monkeypatch)
    load(path).close()
    assert not measured
    dear = [0.0896, *([0.055] * (len(good["measured"]) - 1))]
    for worse in ({"measured": dear}, {"busy": 0.5}):  # an earlier version kept them
        kept.write_text(json.dumps({**good, **worse}))
        load(path).close()
        assert len(measured) == 1 and json.loads(kept.read_text()) == good
        measured.clear()
    good_curve, kept_curve = measuring.calibrate, CostCurve(np.array([1, 2]), np.array(dear[:2]))
    monkeypatch.setattr(measuring, "calibrate", lambda session: replace(good_curve(session), curve=kept_curve))
    kept.unlink()
    with load(path) as model:
        assert model.calibration.curve is kept_curve and not kept.exists()


def test_the_draft_of_a_busy_machine_is_timed_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))
    weights, said = backends.get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None), []
    kept = []
    for share in (0.9, 0.9, 0.0, 0.9):
        monkeypatch.setattr(cpu_load, "cpu_load", lambda share=share: share)
        said.append([])
        assert measuring.token_seconds(weights, lambda what, done: said[-1].append(what)) > 0
        kept.append(len(list((tmp_path / "costs").glob("*.token.json"))))
    assert kept == [0, 0, 1, 1]
    assert ["again next time" in " ".join(words) for words in said] == [True, True, False, False] and not said[3]


def test_options_that_do_not_exist_yet_are_refused_and_none_is_ignored(path: Path) -> None:
    for options, words in (
        ({"cache": "snapkw"}, "no cache policy 'snapkw'"),
        ({"kv_dtype": "int3"}, "not in 'int3'"),
        ({"max_context": 1}, "max_context is 1"),
        ({"speculate": False, "draft": path}, "draft model is given together with speculate=False"),
    ):
        with pytest.raises(OptionError, match=words):
            load(path, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        load(path, speculative=False)  # type: ignore[call-arg]


def test_the_reference_engine_runs_the_same_product(path: Path) -> None:
    with load(path, engine="reference") as judge:
        result = judge.generate(PROMPT, max_new_tokens=10)
        assert result.stats.engine == "reference" and len(result.token_ids) == 10
        assert {len(r.tokens) for r in result.rounds} <= set(range(1, 12))


def test_public_names_are_there_and_documented() -> None:
    for name in pilotfish.__all__:
        assert getattr(pilotfish, name).__doc__


# -- text ------------------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer whose tokens are bytes."""

    def stream(self, *, behind: object, shown: object) -> Letters:
        self.held = b""
        return self

    def push(self, ids: list[int]) -> str:
        self.held += bytes(ids)
        try:
            text, self.held = self.held.decode(), b""
        except UnicodeDecodeError:
            return ""
        return text

    def finish(self) -> str:
        return self.held.decode("utf-8", "replace")


@settings(max_examples=300)
@given(st.text("abé", max_size=30), st.lists(st.text("abé", min_size=1, max_size=4), max_size=3), st.data())
def test_where_a_stop_string_cuts_does_not_depend_on_the_rounds(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    tokens = list(text.encode())
    assembler = TextAssembler(Letters(), frozenset(), tuple(stops))  # type: ignore[arg-type]
    shown = ""
    while tokens:
        n = data.draw(st.integers(1, 5))
        piece, done = assembler.push(Round(tuple(tokens[:n]), n, n, n, 0.0, 0.0, 0.0, None))
        shown += piece
        tokens = tokens[n:]
        if done.finish_reason == "stop":
            break
    shown += assembler.finish()
    ends = sorted((text.find(s) + len(s), text.find(s)) for s in stops if s in text)
    first_end = ends[0][0] if ends else None
    cut = min((text.find(s) for s in stops if s in text and text.find(s) + len(s) == first_end), default=None)
    assert shown == assembler.text == (text if cut is None else text[:cut])
    assert np.array_equal(list(assembler.token_ids), list(text.encode())[: len(assembler.token_ids)])
