"""The command lines of `pilotfish run` and `pilotfish chat`; what they do is imported when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.errors import OptionError
from .inputs import read_document, read_prompt, require_conversation, require_input
from .options import (
    Cache,
    Device,
    DraftCache,
    DraftEngine,
    DraftOption,
    Engine,
    EngineOption,
    Exact,
    KvDtype,
    MaxContext,
    MaxNewTokens,
    ModelArgument,
    Plain,
    Quality,
    Temperature,
    Thinking,
    Threads,
)
from .room import require_room
from .told import check_beams, check_drafts, check_prompt, engine_options, load_told


def run(
    model: Annotated[str | None, typer.Argument(show_default=False)] = None,
    prompt: Annotated[str | None, typer.Argument()] = None,
    demo: Annotated[
        str | None, typer.Option(help="Run a demo's own model on the prompt, without MODEL: correct.")
    ] = None,
    engine: Engine = None,
    device: Device = None,
    draft: DraftOption = None,
    draft_engine: DraftEngine = None,
    draft_cache: DraftCache = None,
    plain: Plain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most probable tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the most probable tokens that make up this share, 0 to 1.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens at least this share as probable as the best, 0 to 1.")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens seen before become less likely.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Subtracted from tokens generated before.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, for every time that they were.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    beams: Annotated[
        int | None, typer.Option(help="Search for the most probable answer with so many beginnings at a time.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Of the answer (fr_XX), or of a recording (fr), by the model's own name.")
    ] = None,
    source_language: Annotated[
        str | None, typer.Option(help="Of the text, by the model's own name; default: the tokenizer's.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="With a recording: transcribe, or translate into English.")] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="What of a recording was said when.")] = False,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    special: Annotated[
        bool, typer.Option("--special", help='With --raw: "<|fim_prefix|>" in the prompt means the token.')
    ] = False,
    document: Annotated[
        Path | None, typer.Option(help="A text of any length that the prompt asks about.", show_default=False)
    ] = None,
    max_context: MaxContext = None,
    threads: Threads = None,
    cache: Cache = None,
    quality: Quality = None,
    kv_dtype: KvDtype = None,
    option: EngineOption = None,
    exact: Exact = True,
    thinking: Thinking = None,
) -> None:
    """Answer one prompt.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.

    PROMPT: a text; default: standard input.
    """
    from ..runtime.model.request import ANSWER, check_request
    from ..runtime.model.rules import AnswerOptions
    from ..runtime.sampling.sampling import Sampling
    from .answer import answer
    from .demo_models import of_demo

    if demo is not None:
        model, prompt = of_demo(demo, model, prompt)
    if model is None:
        raise OptionError("name a model (`pilotfish run MODEL PROMPT`), or a demo: --demo correct.")
    check_drafts(plain, draft)
    check_prompt(raw, special, system, document)
    if temperature == 0 and any(x is not None for x in (top_k, top_p, min_p, seed)):
        raise OptionError("--top-k, --top-p, --min-p and --seed need --temperature above 0; greedy has no choice.")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
    )
    n_tokens = ANSWER if max_new_tokens is None else max_new_tokens or None
    check_request(max_new_tokens=n_tokens, seed=seed, stop=stop or ())
    if beams is not None:
        check_beams(beams, sampling, stop, draft, cache or quality)
    text = _asked(prompt, demo, document)
    if cache is None:  # whose policy makes room
        require_room(model, None if document else text, system, n_tokens, max_context, raw=raw, special=special)
    loaded = load_told(
        model,
        engine=engine,
        device=device,
        draft=draft,
        draft_engine=draft_engine,
        draft_cache=draft_cache,
        plain=plain or beams is not None,  # beam search does not draft
        max_context=max_context,
        threads=threads,
        cache=cache,
        quality=quality,
        kv_dtype=kv_dtype,
        options=engine_options(option),
        exact=exact,
    )
    with loaded:
        answer(
            loaded,
            text,
            sampling=sampling,
            seed=seed,
            stop=tuple(stop or ()),
            system=system,
            raw=raw,
            special=special,
            document=document,
            max_new_tokens=n_tokens,
            beams=beams,
            options=AnswerOptions(language, task, timestamps, source_language),
            as_json=as_json,
            thinking=thinking,
        )


def chat(
    model: ModelArgument,
    engine: Engine = None,
    device: Device = None,
    draft: DraftOption = None,
    draft_engine: DraftEngine = None,
    draft_cache: DraftCache = None,
    plain: Plain = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the conversation in this file, and keep it there.")
    ] = None,
    reread: Annotated[bool, typer.Option("--reread", help="Take its messages alone: for another model.")] = False,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    max_context: MaxContext = None,
    threads: Threads = None,
    cache: Cache = None,
    quality: Quality = None,
    kv_dtype: KvDtype = None,
    option: EngineOption = None,
    exact: Exact = True,
    thinking: Thinking = None,
) -> None:
    """Talk to a model. Ctrl-C stops an answer; Ctrl-D or /bye ends.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.
    """
    from ..runtime.model.chat import TURN
    from ..runtime.model.request import check_request
    from ..runtime.sampling.sampling import Sampling
    from .answer import converse

    check_drafts(plain, draft)
    if reread and resume is None:
        raise OptionError("--reread is about the file of --resume; give one, or drop it.")
    require_input("that is where a conversation comes from")
    Sampling(temperature=temperature)  # checks the number
    n_tokens = TURN if max_new_tokens is None else max_new_tokens or None
    check_request(max_new_tokens=n_tokens)
    if resume is not None:
        require_conversation(resume, system)
    if cache is None:
        require_room(model, None, None, n_tokens, max_context)
    with load_told(
        model,
        engine=engine,
        device=device,
        draft=draft,
        draft_engine=draft_engine,
        draft_cache=draft_cache,
        plain=plain,
        max_context=max_context,
        threads=threads,
        cache=cache,
        quality=quality,
        kv_dtype=kv_dtype,
        options=engine_options(option),
        exact=exact,
    ) as loaded:
        converse(
            loaded,
            system=system,
            temperature=temperature,
            max_new_tokens=n_tokens,
            resume=resume,
            reread=reread,
            thinking=thinking,
        )


def _asked(prompt: str | None, demo: str | None, document: Path | None) -> str:
    """The prompt. Raises OptionError for one, or a document, that cannot be read, or that the demo does not know."""
    from .demo_models import require_known

    if document is not None:
        read_document(document)
    text = read_prompt(prompt)
    if demo is not None:
        require_known(demo, text)
    return text
