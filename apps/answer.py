"""`run` and `chat`: answers on standard output, everything else on standard error."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ..runtime.cache.shadow import QualityReport
from ..runtime.errors import OptionError, PilotfishError
from ..runtime.model.chat import Chat
from ..runtime.model.model import Model, Prompt
from ..runtime.model.result import Result, Stats
from ..runtime.model.rules import AnswerOptions
from ..runtime.model.stream import Stream
from ..runtime.sampling.sampling import Sampling
from ..runtime.text.audio_features import read_wav
from .document import excerpt_of, facts_of, show_kept
from .terminal import LoadProgress, console, print_json

_READING, _PATIENCE_S = "reading the prompt", 1.0


def answer(
    model: Model,
    text: str,
    *,
    sampling: Sampling,
    seed: int | None,
    stop: tuple[str, ...],
    system: str | None,
    raw: bool,
    special: bool,
    max_new_tokens: int | None,
    beams: int | None,
    as_json: bool,
    document: Path | None = None,
    options: AnswerOptions = AnswerOptions(),  # noqa: B008 - it is frozen
    thinking: bool | None = None,
) -> None:
    """Stream one answer, or print it as one JSON object. document: what the text asks about."""
    found = None
    if document is not None:
        found = excerpt_of(model, document, text, raw=raw, max_new_tokens=max_new_tokens)
        text = found.prompt
    prompt: Prompt = text
    if model.info.encoder is not None and model.info.encoder.source_kind == "audio":
        if system is not None:
            raise OptionError("this model listens, and takes no system message; drop --system.")
        if raw:
            raise OptionError("this model listens, and has no template to leave out; drop --raw.")
        prompt = read_wav(text.strip())
    elif system is not None:
        prompt = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    reading = LoadProgress(patience_s=_PATIENCE_S)
    stream = model.stream(
        prompt,
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop=stop,
        sampling=sampling,
        raw=raw,
        special=special,
        beams=beams,
        language=options.language,
        source_language=options.source_language,
        task=options.task,
        timestamps=options.timestamps,
        progress=reading.tokens(_READING),
        thinking=thinking,
    )
    for piece in _pieces(stream, reading, thoughts=not as_json):
        if not as_json:
            _show(piece)
    result = stream.result
    assert result is not None
    if as_json:
        about = {} if found is None else {"document": facts_of(found)}
        print_json({**as_object(result), **about})
    else:
        _show("\n")
        if found is not None:
            show_kept(found)
        console().print(summary(result.stats), style="dim")


def as_object(result: Result) -> dict[str, object]:
    """The JSON form of an answer."""
    head = {"text": result.text, "token_ids": list(result.token_ids), "finish_reason": result.finish_reason}
    heard: dict[str, object] = {} if result.language is None else {"language": result.language}
    if result.thinking is not None:
        heard["thinking"] = result.thinking
    if result.spoken:
        heard["spoken"] = [asdict(one) for one in result.spoken]
    return {**head, **heard, **result.stats.as_dict()}


def summary(stats: Stats) -> str:
    """One line on what an answer took."""
    drafts = f"{stats.accepted} of {stats.drafted} drafts accepted" if stats.drafted else "no drafts"
    if stats.self_acceptance is not None:
        drafts += f", the smaller cache agrees on {stats.self_acceptance:.0%}"
    if stats.trial is not None:
        drafts += f", {_found(stats.trial)}"
    first = "" if stats.ttft_s is None else f"first after {stats.ttft_s:.2f} s, "
    return (
        f"{stats.n_tokens} tokens, {stats.decode_tok_s:.1f} tokens/s, {first}{drafts}, "
        f"KV cache {stats.kv_bytes / 2**20:.0f} MiB, {stats.engine} on {stats.device}"
    )


def _found(trial: QualityReport) -> str:
    """What became of the full cache, in words."""
    if trial.dropped_at is not None:
        return (
            f"full cache dropped after {trial.dropped_at} tokens (at least {trial.at_least:.1%} agreement over "
            f"{trial.compared} tokens): from there on the answer is that of {trial.policy}:budget={trial.budget}"
        )
    compared = f"agreed on {trial.agreed:.0f} of {trial.compared} tokens" if trial.compared else "was not compared"
    return f"{trial.policy}:budget={trial.budget} {compared}, the full cache is kept"


def converse(
    model: Model,
    *,
    system: str | None,
    temperature: float,
    max_new_tokens: int | None,
    resume: Path | None = None,
    reread: bool = False,
    thinking: bool | None = None,
) -> None:
    """A conversation on the terminal, or line by line from a pipe. resume: the file it is kept in, however it ends."""
    if resume is None:
        _talk(model.chat(system), temperature, max_new_tokens, thinking)
        return
    if not resume.exists():
        talk = model.chat(system)
        talk.save(resume)  # whether that works should not come out at the end
    else:
        talk = model.resume(resume, reread=reread)
        console().print(f"{sum(m['role'] == 'user' for m in talk.messages)} turns so far", style="dim")
    try:
        _talk(talk, temperature, max_new_tokens, thinking)
    finally:
        talk.save(resume)


def _talk(talk: Chat, temperature: float, max_new_tokens: int | None, thinking: bool | None) -> None:
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            console().print("> ", style="bold", end="")
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise OptionError(
                f"standard input is no {sys.stdin.encoding} text ({error.reason}). Convert it first."
            ) from None
        except OSError as error:
            raise OptionError(f"standard input cannot be read: {error.strerror}. Pipe in something else.") from None
        if not line or line.strip() == "/bye":
            return
        if not line.strip():
            continue
        if terminal and line.startswith("/"):
            console().print("the one command there is is /bye, which ends the conversation", style="dim")
            continue
        reading = LoadProgress(patience_s=_PATIENCE_S)
        stream = talk.stream(
            line.rstrip("\n"),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            progress=reading.tokens(_READING),
            thinking=thinking,
        )
        try:
            for piece in _pieces(stream, reading):
                _show(piece)
            _show("\n")
            if stream.result is not None:
                console().print(summary(stream.result.stats), style="dim")
        except KeyboardInterrupt:
            stream.close()
            console().print(" stopped; this turn is forgotten", style="dim")
            if not terminal:
                raise
        except PilotfishError as error:
            if not terminal:
                raise
            console().print(f"pilotfish: {error}", style="red", soft_wrap=True)


def _pieces(stream: Stream, reading: LoadProgress, *, thoughts: bool = True) -> Iterator[str]:
    """The pieces of an answer; what shows how far its prompt is read is gone before the first.

    thoughts: whether a terminal shows them as they come.
    """
    pieces = iter(stream)
    with reading:
        first = next(pieces, "")
    shown, thoughts = 0, thoughts and console().is_terminal
    for piece in itertools.chain([first], pieces):
        if thoughts and (thought := stream.thinking or "")[shown:]:
            console().print(thought[shown:], style="dim", end="", soft_wrap=True, markup=False, highlight=False)
            shown = len(thought)
        if piece and shown and thoughts:
            console().print("\n")
            thoughts = False
        yield piece


def _show(piece: str) -> None:
    data = piece.encode(sys.stdout.encoding or "utf-8", "replace")  # a terminal that cannot show it must not crash us
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
