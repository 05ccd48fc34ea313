"""The command lines of `pilotfish run` and `pilotfish chat`; what they do is imported when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import OptionError
from .flags import LoadFlags, SamplingFlags, spread
from .inputs import read_document, read_prompt, require_conversation, require_input
from .options import MaxNewTokens, ModelArgument, Temperature, Thinking
from .room import require_known, require_room

if TYPE_CHECKING:
    from ..runtime.sampling.sampling import Sampling


@spread
def run(
    *,
    model: Annotated[str | None, typer.Argument(show_default=False)] = None,
    prompt: Annotated[str | None, typer.Argument()] = None,
    demo: Annotated[
        str | None, typer.Option(help="Run a demo's own model on the prompt, without MODEL: correct.")
    ] = None,
    load: LoadFlags,
    drawn: SamplingFlags,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    max_new_tokens: MaxNewTokens = None,
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
    thinking: Thinking = None,
) -> None:
    """Answer one prompt.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle or Hugging Face folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.

    PROMPT: a text; default: standard input.
    """
    from ..runtime.model.request import ANSWER, check_request
    from ..runtime.model.rules import AnswerOptions
    from .answer import answer
    from .demo_models import of_demo

    if demo is not None:
        model, prompt = of_demo(demo, model, prompt)
    if model is None:
        raise OptionError("name a model (`pilotfish run MODEL PROMPT`), or a demo: --demo correct.")
    check_prompt(raw, special, system, document)
    sampling = drawn.sampling()
    n_tokens = ANSWER if max_new_tokens is None else max_new_tokens or None
    check_request(max_new_tokens=n_tokens, seed=drawn.seed, stop=stop or ())
    if beams is not None:
        check_beams(beams, sampling, stop, load)
    text = _asked(prompt, demo, document)
    require_known(model, options := AnswerOptions(language, task, timestamps, source_language))
    if load.cache is None:  # whose policy makes room
        require_room(model, None if document else text, system, n_tokens, load.max_context, raw=raw, special=special)
    with load.load(model, speculate=beams is None) as loaded:  # beam search does not draft
        answer(
            loaded,
            text,
            sampling=sampling,
            seed=drawn.seed,
            stop=tuple(stop or ()),
            system=system,
            raw=raw,
            special=special,
            document=document,
            max_new_tokens=n_tokens,
            beams=beams,
            options=options,
            as_json=as_json,
            thinking=thinking,
        )


@spread
def chat(
    *,
    model: ModelArgument,
    load: LoadFlags,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the conversation in this file, and keep it there.")
    ] = None,
    reread: Annotated[bool, typer.Option("--reread", help="Take its messages alone: for another model.")] = False,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    thinking: Thinking = None,
) -> None:
    """Talk to a model. Ctrl-C stops an answer; Ctrl-D or /bye ends.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle or Hugging Face folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.
    """
    from ..runtime.model.chat import TURN
    from ..runtime.model.request import check_request
    from ..runtime.sampling.sampling import Sampling
    from .answer import converse

    if reread and resume is None:
        raise OptionError("--reread is about the file of --resume; give one, or drop it.")
    require_input("that is where a conversation comes from")
    Sampling(temperature=temperature)  # checks the number
    n_tokens = TURN if max_new_tokens is None else max_new_tokens or None
    check_request(max_new_tokens=n_tokens)
    if resume is not None:
        require_conversation(resume, system)
    if load.cache is None:
        require_room(model, None, None, n_tokens, load.max_context)
    with load.load(model) as loaded:
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


def check_prompt(raw: bool, special: bool, system: str | None, document: Path | None) -> None:
    """Raise OptionError for ways of writing a prompt that contradict each other."""
    if raw and system is not None:
        raise OptionError("--raw takes no chat template, so --system has no place; drop one of the two.")
    if special and (not raw or document is not None):
        why = "no document" if raw else "no message"
        raise OptionError(f"--special is for a prompt of --raw alone: {why} may hold special tokens. Drop one of them.")


def check_beams(beams: int, sampling: Sampling, stop: list[str] | None, load: LoadFlags) -> None:
    """Raise OptionError for what cannot be combined with --beams, before a model is opened."""
    from ..runtime.decoding.beam_search import Beams
    from ..runtime.sampling.sampling import Sampling

    Beams(beams)
    for names, given in (
        ("--temperature and penalties", sampling != Sampling()),
        ("--stop", bool(stop)),
        ("--draft", load.draft is not None),
        ("--cache or --quality", bool(load.cache or load.quality)),
    ):
        if given:
            raise OptionError(
                f"--beams looks for the most probable answer as a whole and cannot be had with {names}; drop one of "
                "the two."
            )
