"""An answer's life: streams that are left half-way, kept, dropped, closed, handed on, or asked from inside."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from pilotfish import Model, Sampling, Stream
from pilotfish.runtime.errors import EngineError, OptionError
from pilotfish.runtime.interfaces import Budget, Draft
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import Suffix
from pilotfish.runtime.text.chat_template import ChatTemplate
from pilotfish.testing.toy import ToyWeights
from pilotfish.testing.toy_model import N_TOKENS, byte_tokenizer

_T = TypeVar("_T")
PROMPT = "tell me"
TEMPLATE = "{% for message in messages %}{{ message['role'] + ':' + message['content'] }}{% endfor %}"
PATIENCE_S = 120.0  # after which a wait counts as one for ever


def toy(**options: object) -> Model:
    weights = ToyWeights(vocab_size=N_TOKENS, context_length=512, seed=3)
    session = weights.session(64)
    measured = calibrate(session)
    session.close()
    settings: dict[str, object] = {"policy": None, **options}
    return Model(weights, byte_tokenizer(), ChatTemplate(TEMPLATE), measured, **settings)  # type: ignore[arg-type]


@pytest.fixture
def model() -> Iterator[Model]:
    with toy() as made:
        yield made


def in_thread(work: Callable[[], _T]) -> Callable[[], _T]:
    """Begin the work in a thread of its own; what comes back waits for its result and fails where there is none."""
    found: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> _T:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "still waiting"
        if failed:
            raise failed[0]
        return found[0]

    return result


def soon(work: Callable[[], _T]) -> _T:
    """The result of work that might wait for ever."""
    return in_thread(work)()


def begun(model: Model, n_pieces: int = 2, **options: object) -> tuple[Stream, str]:
    """A stream that is left after some pieces, and their text."""
    stream = model.stream(PROMPT, max_new_tokens=30, **options)  # type: ignore[arg-type]
    return stream, "".join(next(stream) for _ in range(n_pieces))


# -- one thread ------------------------------------------------------------------------------------------------------


def test_the_next_request_of_the_same_thread_ends_an_unfinished_stream(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=30)

    def work() -> None:
        stream, text = begun(model)
        assert model.generate(PROMPT, max_new_tokens=30).token_ids == expected.token_ids
        assert stream.result is not None and stream.result.finish_reason == "cancelled"
        assert text + "".join(stream) == stream.result.text and expected.text.startswith(stream.result.text)
        assert stream.result.token_ids == expected.token_ids[: len(stream.result.token_ids)]
        assert len(stream.result.token_ids) < 30 and list(stream) == []

    soon(work)


def test_a_request_in_the_loop_over_a_stream_ends_the_loop(model: Model) -> None:
    def work() -> None:
        turns = 0
        stream = model.stream(PROMPT, max_new_tokens=30)
        shown = ""
        for piece in stream:
            shown += piece
            turns += 1
            assert model.generate("and this", max_new_tokens=3).finish_reason == "length"
        assert turns <= 2 and stream.result is not None and stream.result.finish_reason == "cancelled"
        assert shown == stream.result.text

    soon(work)


def test_of_two_streams_the_one_that_is_read_has_the_model(model: Model) -> None:
    def work() -> None:
        first, second = (model.stream(PROMPT, max_new_tokens=30) for _ in range(2))
        assert model.generate(PROMPT, max_new_tokens=3).finish_reason == "length"  # neither has begun
        next(second)
        next(first)
        assert second.result is not None and second.result.finish_reason == "cancelled"
        list(first)
        assert first.result is not None and first.result.finish_reason == "length"

    soon(work)


def test_an_answer_that_was_whole_when_it_was_left_stays_so(model: Model) -> None:
    def work() -> None:
        whole = model.generate(PROMPT, max_new_tokens=30)
        stream = model.stream(PROMPT, max_new_tokens=30)
        n_pieces = len(list(model.stream(PROMPT, max_new_tokens=30)))
        for _ in range(n_pieces):
            next(stream)
        model.generate("another", max_new_tokens=2)
        assert stream.result is not None
        assert (stream.result.text, stream.result.finish_reason) == (whole.text, whole.finish_reason)

    soon(work)


def test_an_exception_in_the_loop_leaves_a_usable_model(model: Model) -> None:
    def work() -> None:
        kept: list[BaseException] = []
        with pytest.raises(ZeroDivisionError) as caught:
            for _ in model.stream(PROMPT, max_new_tokens=30):
                raise ZeroDivisionError
        kept.append(caught.value)  # and with it the frame, and its stream
        assert model.generate(PROMPT, max_new_tokens=3).finish_reason == "length"

    soon(work)


def test_a_closed_stream_yields_nothing_more_and_says_what_it_had(model: Model) -> None:
    def work() -> None:
        stream, _ = begun(model)
        stream.close()
        stream.close()
        assert list(stream) == [] and stream.result is not None and stream.result.finish_reason == "cancelled"
        unread = model.stream(PROMPT)
        unread.close()
        assert list(unread) == [] and unread.result is None and unread.rounds == []
        assert model.generate(PROMPT, max_new_tokens=3).finish_reason == "length"

    soon(work)


def test_a_stream_that_fails_gives_its_turn_back(model: Model) -> None:
    def work() -> None:
        def broken(logits: np.ndarray, context: np.ndarray) -> np.ndarray:
            raise ZeroDivisionError

        stream = model.stream(PROMPT, sampling=Sampling(processors=(broken,)))
        with pytest.raises(ZeroDivisionError):
            next(stream)
        assert model.generate(PROMPT, max_new_tokens=3).finish_reason == "length"
        assert list(stream) == []

    soon(work)


# -- asked from inside a step ----------------------------------------------------------------------------------------


def test_what_a_step_calls_cannot_ask_the_same_model(model: Model) -> None:
    asked: list[str] = []

    def refused(call: Callable[[], object]) -> None:
        with pytest.raises(OptionError, match="in the middle of a step"):
            call()
        asked.append("refused")

    def processor(logits: np.ndarray, context: np.ndarray) -> np.ndarray:
        for call in (
            lambda: model.generate("inside", max_new_tokens=2),
            lambda: model.save_cache(context),
            model.close,
            lambda: next(stream),
        ):
            refused(call)
        return logits

    def work() -> None:
        list(stream)

    options = {"max_new_tokens": 3, "sampling": Sampling(processors=(processor,))}
    stream = model.stream(PROMPT, progress=lambda done, total: refused(lambda: model.generate("x")), **options)  # type: ignore[arg-type]
    soon(work)
    assert stream.result is not None and stream.result.finish_reason == "length"
    assert len(asked) == 4 * 3 + 1  # the processor of every token, and the prompt's one chunk


def test_a_proposer_cannot_ask_the_same_model_but_a_sibling_answers() -> None:
    class Asking:
        name = "asking"

        def propose(self, context: np.ndarray, budget: Budget) -> Draft:
            with pytest.raises(OptionError, match="sibling"):
                made.generate("inside", max_new_tokens=2)
            return Draft(np.array(sibling.generate("x", max_new_tokens=1).token_ids[:1], dtype=np.int64))

    with toy(policy=Fixed(1), proposers=[Asking()]) as made:
        sibling = made.sibling(policy=None)
        result = soon(lambda: made.generate(PROMPT, max_new_tokens=5))
        assert result.stats.drafted > 0
        sibling.close()


def test_a_stream_closed_by_what_its_own_step_calls_ends_with_that_step(model: Model) -> None:
    def closing(logits: np.ndarray, context: np.ndarray) -> np.ndarray:
        stream.close()
        return logits

    stream = model.stream(PROMPT, max_new_tokens=30, sampling=Sampling(processors=(closing,)))
    soon(lambda: list(stream))
    assert stream.result is not None and stream.result.finish_reason == "cancelled"
    assert stream.result.stats.n_tokens == 1


# -- several threads -------------------------------------------------------------------------------------------------


class Gate:
    """A logits processor that stops in its first step until it is let through."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, logits: np.ndarray, context: np.ndarray) -> np.ndarray:
        self.reached.set()
        assert self.open.wait(PATIENCE_S)
        return logits


def test_another_thread_waits_until_the_stream_is_read_or_closed_or_dropped(model: Model) -> None:
    for ending in ("read", "closed", "dropped"):
        read_on, two_read = threading.Event(), threading.Event()

        def reads(ending: str = ending, go: threading.Event = read_on, ready: threading.Event = two_read) -> int:
            stream, _ = begun(model)
            ready.set()
            assert go.wait(PATIENCE_S)
            n_read = 0
            if ending == "read":
                n_read = sum(1 for _ in stream)
            elif ending == "closed":
                stream.close()
            else:
                del stream
            assert go.wait(PATIENCE_S)
            return n_read

        reader = in_thread(reads)
        assert two_read.wait(PATIENCE_S)
        order: list[str] = []
        asker = in_thread(lambda: (model.generate(PROMPT, max_new_tokens=3), order.append("answered"))[0])  # noqa: B023
        order.append("reading on")
        read_on.set()
        assert asker().finish_reason == "length" and order == ["reading on", "answered"]
        assert reader() > 2 or ending != "read"


def test_a_stream_whose_thread_has_ended_is_ended_by_whoever_asks_next(model: Model) -> None:
    stream, _ = soon(lambda: begun(model))  # kept here, read there
    assert soon(lambda: model.generate(PROMPT, max_new_tokens=3)).finish_reason == "length"
    assert stream.result is not None and stream.result.finish_reason == "cancelled"


def test_a_stream_dropped_by_another_thread_than_its_reader_is_gone(model: Model) -> None:
    held: list[Stream] = []
    ready, done = threading.Event(), threading.Event()

    def reads() -> bool:
        stream, _ = begun(model)
        held.append(stream)
        del stream
        ready.set()
        return done.wait(PATIENCE_S)  # the thread lives on

    reader = in_thread(reads)
    assert ready.wait(PATIENCE_S)
    gc.disable()
    try:
        held.clear()  # no cycle keeps it
        assert soon(lambda: model.generate(PROMPT, max_new_tokens=3)).finish_reason == "length"
    finally:
        gc.enable()
        done.set()
        assert reader()


def test_a_stream_in_a_cycle_is_gone_once_it_is_collected_wherever_that_happens(model: Model) -> None:
    ready, done = threading.Event(), threading.Event()

    def reads() -> bool:
        stream, _ = begun(model)
        stream.itself = stream  # type: ignore[attr-defined]
        del stream
        ready.set()
        return done.wait(PATIENCE_S)

    gc.disable()
    try:
        reader = in_thread(reads)
        assert ready.wait(PATIENCE_S)
        asker = in_thread(lambda: model.generate(PROMPT, max_new_tokens=3))
        soon(gc.collect)
        assert asker().finish_reason == "length"
    finally:
        gc.enable()
        done.set()
        assert reader()


def test_a_stream_begun_in_one_thread_is_read_on_in_another(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=30)
    stream, text = begun(model)
    rest = soon(lambda: "".join(stream))
    assert text + rest == expected.text and stream.result is not None
    assert stream.result.token_ids == expected.token_ids


def test_two_threads_that_read_one_stream_share_its_pieces(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=30)
    stream = model.stream(PROMPT, max_new_tokens=30)
    readers = [in_thread(lambda: list(stream)) for _ in range(3)]
    pieces = [piece for reader in readers for piece in reader()]
    assert stream.result is not None and stream.result.token_ids == expected.token_ids
    assert sorted("".join(pieces)) == sorted(expected.text)


def test_closing_while_another_thread_is_in_a_step_ends_it_with_that_step(model: Model) -> None:
    gate = Gate()
    stream = model.stream(PROMPT, max_new_tokens=30, sampling=Sampling(processors=(gate,)))
    reader = in_thread(lambda: list(stream))
    assert gate.reached.wait(PATIENCE_S)
    closer = in_thread(stream.close)
    while not stream.gives_up:
        pass
    gate.open.set()
    closer()
    reader()
    assert stream.result is not None and stream.result.finish_reason == "cancelled"
    assert stream.result.stats.n_tokens == 1


def test_who_waits_for_the_turn_can_be_cancelled(model: Model) -> None:
    gate, cancel = Gate(), threading.Event()
    busy = in_thread(lambda: model.generate(PROMPT, max_new_tokens=3, sampling=Sampling(processors=(gate,))))
    assert gate.reached.wait(PATIENCE_S)
    waiting = in_thread(lambda: model.generate(PROMPT, max_new_tokens=3, cancel=cancel))
    closed = model.stream(PROMPT)
    reader = in_thread(lambda: list(closed))
    cancel.set()
    result = waiting()
    assert result.finish_reason == "cancelled" and result.token_ids == () and result.stats.ttft_s is None
    soon(closed.close)
    assert reader() == []
    gate.open.set()
    assert busy().finish_reason == "length"


# -- event loops and pools -------------------------------------------------------------------------------------------


def test_pieces_taken_through_a_pool_are_not_ended_by_other_requests_of_its_threads(model: Model) -> None:
    """The same thread serves both: only the contexts of its calls differ."""
    expected = model.generate(PROMPT, max_new_tokens=30)
    other = model.generate("and you", max_new_tokens=30)

    async def read(prompt: str, first: asyncio.Event, both: asyncio.Event) -> str:
        stream = await asyncio.to_thread(lambda: model.stream(prompt, max_new_tokens=30))
        pieces = [await asyncio.to_thread(next, stream, None)]
        first.set()
        await both.wait()
        while pieces[-1] is not None:
            pieces.append(await asyncio.to_thread(next, stream, None))
        assert stream.result is not None and stream.result.finish_reason == "length"
        return "".join(pieces[:-1])  # type: ignore[arg-type]

    async def both(threads: int) -> tuple[str, str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads))
        begun, go = asyncio.Event(), asyncio.Event()
        one = asyncio.create_task(read(PROMPT, begun, go))
        await begun.wait()
        two = asyncio.create_task(asyncio.to_thread(lambda: model.generate("and you", max_new_tokens=30).text))
        await asyncio.sleep(0)  # its call is in the pool
        go.set()
        return await one, await two

    for threads in (2, 8):
        assert soon(lambda: asyncio.run(both(threads))) == (expected.text, other.text)  # noqa: B023


def test_a_task_that_reads_in_the_event_loop_gives_way_to_another(model: Model) -> None:
    async def reads() -> Stream:
        stream, _ = begun(model)
        await asyncio.sleep(0)
        return stream

    async def main() -> Stream:
        reader = asyncio.create_task(reads())
        await asyncio.sleep(0)
        assert model.generate(PROMPT, max_new_tokens=3).finish_reason == "length"  # of another task, in the same thread
        return await reader

    stream = soon(lambda: asyncio.run(main()))
    assert stream.result is not None and stream.result.finish_reason == "cancelled"


def test_an_event_loop_does_not_wait_for_a_stream_that_it_has_to_read_itself(model: Model) -> None:
    async def main() -> None:
        stream = model.stream(PROMPT, max_new_tokens=30)
        await asyncio.to_thread(next, stream)
        with pytest.raises(OptionError, match="to_thread"):
            model.generate(PROMPT)
        stream.close()
        assert model.generate(PROMPT, max_new_tokens=3).finish_reason == "length"

    soon(lambda: asyncio.run(main()))


# -- closing the model -----------------------------------------------------------------------------------------------


def test_a_model_that_is_closed_ends_the_unfinished_stream() -> None:
    def work() -> None:
        made = toy()
        stream, text = begun(made)
        unread = made.stream(PROMPT)
        made.close()
        made.close()
        assert stream.result is not None and stream.result.finish_reason == "cancelled"
        pieces = [text]
        with pytest.raises(OptionError, match="was closed before the answer was complete"):
            pieces += stream
        assert "".join(pieces) == stream.result.text
        with pytest.raises(OptionError, match="closed"):
            next(unread)
        with pytest.raises(OptionError, match="closed"):
            made.generate(PROMPT)
        with pytest.raises(OptionError, match="closed"):
            made.save_cache(np.array([1]))

    soon(work)


def test_closing_says_nothing_of_answers_that_are_complete_or_were_given_up() -> None:
    def work() -> None:
        made, cancel = toy(), threading.Event()
        whole = made.stream(PROMPT, max_new_tokens=3)
        given_up, _ = begun(made)
        given_up.close()
        left, _ = begun(made)
        assert list(whole) and not list(given_up)  # reading the first has ended the other
        last = made.stream(PROMPT, max_new_tokens=30, cancel=cancel)
        next(last)
        cancel.set()
        made.close()
        for stream in (whole, given_up, last):
            list(stream)
        assert left.result is not None and left.result.finish_reason == "cancelled" and len(list(left)) <= 1

    soon(work)


def test_closing_waits_for_the_step_of_another_thread_and_tells_those_who_wait() -> None:
    made, gate = toy(), Gate()
    session = made._sequence.session
    stream = made.stream(PROMPT, max_new_tokens=30, sampling=Sampling(processors=(gate,)))
    busy = in_thread(lambda: list(stream))
    assert gate.reached.wait(PATIENCE_S)
    waiting = in_thread(lambda: made.generate(PROMPT))
    closer = in_thread(made.close)
    with pytest.raises(OptionError, match="closed"):
        waiting()
    assert not session.closed  # type: ignore[attr-defined]  # a step is using it
    gate.open.set()
    closer()
    with pytest.raises(OptionError, match="was closed before the answer was complete"):
        busy()
    assert session.closed and stream.result is not None  # type: ignore[attr-defined]
    assert stream.result.finish_reason == "cancelled" and stream.result.stats.n_tokens == 1


def test_a_failing_step_does_not_keep_a_model_from_being_closed() -> None:
    made = toy()
    stream, _ = begun(made)
    made._sequence.session.close()
    with pytest.raises(EngineError):
        soon(lambda: list(stream))
    soon(made.close)


# -- conversations ---------------------------------------------------------------------------------------------------


def test_a_turn_left_half_way_is_forgotten_and_the_next_one_is_answered(model: Model) -> None:
    def work() -> None:
        chat = model.chat()
        stream = chat.stream("hello", max_new_tokens=30)
        next(stream), next(stream)
        answer = chat.send("and now", max_new_tokens=5)
        assert [m["content"] for m in chat.messages] == ["and now", answer.text]
        assert stream.result is not None and stream.result.finish_reason == "cancelled"
        list(stream)
        assert [m["content"] for m in chat.messages] == ["and now", answer.text]
        fresh = model.chat().send("and now", max_new_tokens=5)
        assert fresh.token_ids == answer.token_ids

    soon(work)


def test_a_turn_is_remembered_once_its_stream_was_read_to_the_end(model: Model) -> None:
    chat = model.chat()
    stream = chat.stream("hello", max_new_tokens=8)
    text = "".join(stream)
    assert [m["content"] for m in chat.messages] == ["hello", text]
    assert stream.result is not None and stream.result.text == text


def test_a_turn_ends_at_a_stop_that_is_a_text_alone(model: Model) -> None:
    whole = model.chat().send("hello", max_new_tokens=30).text
    chat = model.chat()
    assert chat.send("hello", max_new_tokens=30, stop=whole[5:8]).text == whole[: whole.index(whole[5:8])]
    assert chat.messages[-1]["content"] == whole[: whole.index(whole[5:8])]


def test_a_conversation_is_saved_and_resumed_while_a_stream_is_open(model: Model, tmp_path: Path) -> None:
    def work() -> None:
        chat = model.chat(seed=7)
        chat.send("hello", max_new_tokens=6)
        stream = chat.stream("and now", max_new_tokens=30)
        next(stream)
        chat.save(tmp_path / "talk")
        assert stream.result is not None and stream.result.finish_reason == "cancelled"
        again = chat.stream("and now", max_new_tokens=30)
        next(again)
        resumed = model.resume(tmp_path / "talk")
        assert again.result is not None and again.result.finish_reason == "cancelled"
        assert resumed.messages == chat.messages and len(chat.messages) == 2

    soon(work)


def test_no_stop_is_no_stop_and_one_proposer_is_one(model: Model) -> None:
    whole = model.generate(PROMPT, max_new_tokens=20)
    assert model.generate(PROMPT, max_new_tokens=20, stop=None).token_ids == whole.token_ids
    assert "".join(model.stream(PROMPT, max_new_tokens=20, stop=None)) == whole.text
    assert model.chat().send(PROMPT, max_new_tokens=20, stop=None).finish_reason == "length"
    with pytest.raises(OptionError, match="a stop token is None"):
        model.generate(PROMPT, stop=[None])  # type: ignore[list-item]
    with toy(policy=Fixed(2), proposers=Suffix()) as drafting:
        assert drafting.generate(PROMPT, max_new_tokens=20).token_ids == whole.token_ids
