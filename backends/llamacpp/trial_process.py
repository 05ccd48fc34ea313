"""Run as a process: does with a model whatever sessions do, and tells what came of it, or dies of it.

Reads a Request from standard input; prints one JSON object a line: {"stage"} before each thing that is tried, and at
last {"findings"}, or {"refused", "why"}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeVar, get_args

import numpy as np

from ...runtime.errors import EngineError, PilotfishError
from ...runtime.files.gguf_file import read_gguf
from ...runtime.files.gguf_model import GgufModel
from ...runtime.interfaces import Ability, Floats, Indices, Tokens, as_tokens
from ...runtime.profiling.canary import TEXT, Canary, make_canary
from .context import Context
from .findings import Findings
from .loaded_model import LlamaCppModel
from .placement import Placement, parse_options
from .probe import build_verdict
from .rereading import RereadingSession
from .session import LlamaCppSession
from .shape import claimed_shape
from .trial import LOADING, STEPPING, Request
from .vocabulary import LlamaCppTokenizer

_N = 12  # tokens that come before what is tried, and after it
_ENTRIES = 64  # of the sessions: a canary has room
_THREADS = max(1, (os.cpu_count() or 2) // 2)  # other programs compute, too
_NEAR = 0.1  # of the largest logit: apart by other sums, and by activations rounded to int8
_SPARE_TYPE = "f16"  # of the cache, for models whose attention the usual pair of types does not fit
_ALL: frozenset[Ability] = frozenset(get_args(Ability))
_REFUSALS = ("ModelFileError", "UnsupportedModelError")

T = TypeVar("T")


def main() -> None:
    request = Request.model_validate_json(sys.stdin.read())
    try:
        _say({"findings": _Trial(request).findings().model_dump(mode="json")})
    except PilotfishError as error:
        kind, why = type(error).__name__, str(error)
        named = why if str(request.path) in why else f"{request.path}: {why}"
        _say({"refused": kind if kind in _REFUSALS else EngineError.__name__, "why": named})


def _say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


class _Trial:
    """What is found out about one file."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._shape = claimed_shape(read_gguf(request.path))
        self._tokens = (np.arange(4 * _N, dtype=np.int64) * 37 + 11) % self._shape.vocab_size

    def findings(self) -> Findings:
        """Raises PilotfishError for a file that cannot be used."""
        text = self._tried("reading its vocabulary", self._text)
        spare, self._model = self._computing_model()
        entry_bytes, state_bytes = _memory(self._model, self._tokens)
        rewinds = self._rewinds()
        self._state = rewinds is not None
        kinds: dict[Ability, Callable[[], bool]] = {
            "hidden": self._shows_hidden,
            "fork": self._forks,
            "save": self._saves,
            "attention": self._shows_attention,
        }
        if not self._state:
            kinds |= {"tree": self._verifies_trees, "evict_tokens": self._evicts}
        able = [kind for kind, what in kinds.items() if self._tried(f"trying {kind}", what)]
        return Findings(
            abilities=tuple(able),
            kv_dtype=spare,
            flash=self._model.context(1).flash is not False,
            rewinds=rewinds,
            entry_bytes=entry_bytes,
            state_bytes=state_bytes * (1 + (rewinds or 0)),
            vocabulary=text is not None,
            canary=self._tried("answering row by row", lambda: self._answer(text)),
        )

    def _tried(self, stage: str, what: Callable[[], T]) -> T | None:
        """What came of it; None where it failed, or ended a process before this one."""
        if stage in self._request.left_out:
            return None
        _say({"stage": stage})
        try:
            return what()
        except PilotfishError:
            return None

    def _text(self) -> Tokens:
        return LlamaCppTokenizer(self._request.path).encode(TEXT)

    def _computing_model(self) -> tuple[str | None, LlamaCppModel]:
        """The model after its first steps, and the type of the cache, if it is not the usual one."""
        asked = self._request.kv_dtype
        if asked is None:
            usual = self._tried("computing steps over the usual cache", lambda: self._stepping(self._loaded(None)))
            if usual is not None:
                return None, usual
        kind = asked or _SPARE_TYPE
        _say({"stage": LOADING})
        model = self._loaded(kind)
        _say({"stage": STEPPING})
        return (kind if asked is None else None), self._stepping(model)

    def _loaded(self, kv_dtype: str | None) -> LlamaCppModel:
        request, options = self._request, parse_options(self._request.options)
        place = Placement(request.device, options)
        verdict = build_verdict()
        file = GgufModel(request.path)
        return LlamaCppModel(file, place, _THREADS, kv_dtype, options, verdict, self._shape, findings=None)

    def _stepping(self, model: LlamaCppModel) -> LlamaCppModel:
        session = RereadingSession(model, self._most)
        for width in (1, 2, 8):
            if not np.isfinite(session.forward(self._tokens[:width], n_logits=width).logits).all():
                raise EngineError(f"{self._request.path}: the first steps of the model give no numbers.")
        session.close()
        return model

    @property
    def _most(self) -> int:
        return min(self._shape.context_length, _ENTRIES)

    def _session(self, context: Tokens) -> LlamaCppSession:
        """A session that covers a context."""
        session = (RereadingSession if self._state else LlamaCppSession)(self._model, self._most)
        session.abilities = _ALL
        if len(context):
            session.forward(context, n_logits=0)
        return session

    def _rewinds(self) -> int | None:
        """How many entries can be taken back without a trace; None: any number."""
        asked = self._model.info.rewinds
        if asked is None:
            self._state = False
            fine = self._tried("forgetting entries", lambda: self._forgets() and self._forks())
            self._state = not fine
            return None if fine else 0
        self._state = True
        most = min(asked, self._model.context(1).rewinds)
        for n in range(most, 0, -1):
            if self._tried(f"taking back {n} entries", partial(self._takes_back, n)):
                return n
        return 0

    def _forgets(self) -> bool:
        """Whether forgotten entries leave no trace."""
        start, after = self._tokens[:_N], self._tokens[_N : 2 * _N]
        one, other = self._session(start), self._session(start)
        one.forward(self._tokens[2 * _N :], n_logits=1)
        one.truncate(_N)
        return _alike(one, other, after)

    def _takes_back(self, n: int) -> bool:
        """Whether n and fewer rows of a step of n + 1 leave no trace in the state, step after step."""
        expected = self._stepped(n + 1, 0)
        return all(np.array_equal(self._stepped(n + 1, gone), expected) for gone in range(1, n + 1))

    def _stepped(self, width: int, gone: int) -> Floats:
        """Logits of the tokens behind a context, in steps of which the last rows are wrong and taken back."""
        session = _NotReading(self._model, self._most)
        session.forward(self._tokens[:_N], n_logits=0)
        rows, at = [], _N
        while at < 2 * _N:
            step = self._tokens[at : at + width].copy()
            step[width - gone :] = self._tokens[3 * _N :][:gone]
            rows.append(session.forward(step, n_logits=width).logits[: width - gone].copy())
            at += width - gone
            session.truncate(at)
        return np.concatenate(rows)[:_N]

    def _shows_hidden(self) -> bool:
        one, other = self._session(self._tokens[:_N]), self._session(self._tokens[:_N])
        step = one.forward(self._tokens[_N : 2 * _N], n_logits=_N, observe=frozenset({"hidden"}))
        plain = other.forward(self._tokens[_N : 2 * _N], n_logits=_N)
        shown = step.hidden is not None and bool(np.isfinite(step.hidden).all() and step.hidden.any())
        return shown and np.array_equal(step.logits, plain.logits)

    def _shows_attention(self) -> bool:
        session = self._session(self._tokens[:_N])
        step = session.forward(self._tokens[_N : 2 * _N], n_logits=0, observe=frozenset({"attention"}))
        return step.attention is not None and bool(np.allclose(step.attention.sum(axis=-1), 1.0, atol=1e-2))

    def _forks(self) -> bool:
        """Also behind what was forgotten, and of a context that grows."""
        one = self._forgotten()
        return _alike(one.fork(), one, self._tokens[_N : 2 * _N])

    def _saves(self) -> bool:
        one, other = self._forgotten(), self._session(self._tokens[: _N // 2])
        other.restore(one.save())
        return _alike(other, one, self._tokens[_N : 2 * _N])

    def _forgotten(self) -> LlamaCppSession:
        """A session that has forgotten a token."""
        session = self._session(self._tokens[: _N + 1])
        session.truncate(_N)
        return session

    def _verifies_trees(self) -> bool:
        """Whether two branches of a tree say nearly what chains say, and the accepted one goes on like a chain."""
        tree, chain = self._session(self._tokens[:_N]), self._session(self._tokens[:_N])
        rows = self._tokens[_N : _N + 4]  # 0 - 1 - 3, and 0 - 2
        found = tree.forward(rows, n_logits=4, parents=as_tokens([0, 0, 0, 1])).logits.copy()
        path: Indices = as_tokens([0, 1, 3])
        tree.accept(path)
        expected = chain.forward(rows[path], n_logits=3).logits.copy()
        return _near(found[path], expected) and _near(*(_next(s, self._tokens[2 * _N :]) for s in (tree, chain)))

    def _evicts(self) -> bool:
        """Whether a session goes on without some entries, and a copy of what it holds says the same."""
        session = self._session(self._tokens[: 2 * _N])
        session.keep(as_tokens([0, 1, *range(_N, 2 * _N)]))
        return _alike(session.fork(), session, self._tokens[2 * _N : 3 * _N])

    def _answer(self, text: Tokens | None) -> Canary:
        return make_canary(self._session(self._tokens[:0]), self._tokens if text is None else text, rows=1)


class _NotReading(RereadingSession):
    """Fails where something would have to be read again."""

    def _read_again(self, context: Context, end: int) -> None:
        raise EngineError("this cannot be taken back")


def _next(session: LlamaCppSession, tokens: Tokens) -> Floats:
    logits = session.forward(tokens, n_logits=len(tokens)).logits.copy()
    if not np.isfinite(logits).all():
        raise EngineError("a step gives no numbers")
    return logits


def _alike(one: LlamaCppSession, other: LlamaCppSession, tokens: Tokens) -> bool:
    return np.array_equal(_next(one, tokens), _next(other, tokens))


def _near(ours: Floats, theirs: Floats) -> bool:
    return bool(np.abs(ours - theirs).max() <= _NEAR * np.abs(theirs).max())


def _memory(model: LlamaCppModel, tokens: Tokens) -> tuple[float, int]:
    """Bytes of an entry, and of what is there beside the entries."""
    context = model.context(_ENTRIES)
    sizes = []
    for n in (_N, 2 * _N):
        context.clear()
        context.decode(tokens[:n], np.arange(n), 0, None, False)
        sizes.append(len(context.state()))
    entry = max(sizes[1] - sizes[0], 0) / _N
    return entry, max(int(sizes[0] - _N * entry), 0)


if __name__ == "__main__":
    main()
