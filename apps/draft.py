"""`pilotfish draft`: whether a draft model pays here, and drafts made of the target itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import OptionError
from .options import DraftEngine, Exact, NewTokens, Threads
from .terminal import LoadProgress, output, print_json, show_table, show_text

if TYPE_CHECKING:
    from ..drafts.check import DraftCheck
    from ..drafts.make import MadeDraft

draft_app = typer.Typer(
    help="Draft models: whether one pays here, and making one.", no_args_is_help=True, rich_markup_mode=None
)

Target = Annotated[str, typer.Argument(show_default=False)]
Engine = Annotated[str | None, typer.Option(help="Engine of the target; default: the fastest here.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
PerSet = Annotated[int, typer.Option(min=1, max=4, help="Prompts of each kind.")]


@draft_app.command()
def check(
    target: Target,
    draft: Annotated[str, typer.Argument(show_default=False)],
    engine: Engine = None,
    draft_engine: DraftEngine = None,
    threads: Threads = None,
    tokens: NewTokens = 64,
    per_set: PerSet = 4,
    exact: Exact = True,
    measure: Annotated[bool, typer.Option("--measure", help="Also run with and without it, in turns.")] = False,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Turns of --measure.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure how often a draft's tokens are accepted, and whether that is worth its time on this machine.

    TARGET: the model that answers: a catalogue name, a .gguf file, or a bundle or Hugging Face folder.

    DRAFT: a smaller one, likewise.
    """
    from ..drafts.check import check_draft

    with LoadProgress() as progress:
        result = check_draft(
            target,
            draft,
            engine=engine,
            draft_engine=draft_engine,
            threads=threads,
            n_tokens=tokens,
            per_set=per_set,
            exact=exact,
            measure=measure,
            repeats=repeats,
            progress=progress,
        )
    show(result, as_json)


@draft_app.command()
def make(
    target: Target,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the draft.")],
    drop: Annotated[
        int | None, typer.Option(help="Blocks (attention or MLP) to leave out; default: what promises most speed.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Instead: the same layers, stored as a smaller GGUF type, such as Q4_0.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="The same by bits a weight: 2, 3 or 4.")] = None,
    draft: Annotated[
        str | None,
        typer.Option(help="For --weights and --bits: a draft that you have, stored anew instead of the target."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Where a draft of --weights or --bits is checked; default: llamacpp.")
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Make a draft of the target itself, and check whether it pays: fewer layers, or fewer bits a weight.

    TARGET: the model that answers: a catalogue name, a .gguf file, or a bundle or Hugging Face folder.
    """
    from ..drafts.make import drop_layers, lower_bits

    lower = weights is not None or bits is not None
    if drop is not None and lower:
        raise OptionError("--drop makes another kind of draft than --weights and --bits; leave one of them out.")
    if not lower and (draft is not None or engine is not None):
        raise OptionError("--draft and --engine are for drafts of fewer bits; give --weights or --bits with them.")
    with LoadProgress() as progress:
        if lower:
            made = lower_bits(
                target, out, weights, bits=bits, draft=draft, engine=engine, threads=threads, progress=progress
            )
        else:
            made = drop_layers(target, out, n_dropped=drop, threads=threads, progress=progress)
    if as_json:
        print_json(made.as_dict())
        return
    _show_options(made)
    show(made.check, False)
    output().print(f"{made.folder}: {made.what}", soft_wrap=True)


@draft_app.command()
def speech(
    target: Target,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of its answers to learn, beside those known.")] = 50_000,
    again: Annotated[bool, typer.Option("--again", help="Forget what is known of its speech.")] = False,
    engine: Engine = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Learn what the target tends to say, so that drafts cost nothing: it invents questions and answers them.

    TARGET: the model that answers: a catalogue name, a .gguf file or a folder. Ctrl-C keeps what is learned.
    """
    from ..drafts.speech import learn_speech

    with LoadProgress() as progress:
        learned = learn_speech(target, n_tokens=tokens, engine=engine, threads=threads, again=again, progress=progress)
    if as_json:
        print_json(asdict(learned))
        return
    ended = "; ended early, a later call goes on" if learned.ended_early else ""
    show_text(output(), f"{learned.n_tokens} tokens of {learned.n_answers} answers learned{ended}")
    output().print(f"{learned.file}: drafts of every later load of this model begin with it", soft_wrap=True)


def _show_options(made: MadeDraft) -> None:
    if not made.options:
        return
    rows = [(str(o.n_dropped), f"{o.agreement:.0%}", f"{o.cost:.2f}", f"{o.expected:.2f}") for o in made.options]
    out = output()
    show_table(out, ("blocks left out", "agreement", "cost of a token", "expected speed"), rows)
    show_text(out, "On the texts of the search; a token's cost, and the speed, over those of the whole model.")


def show(result: DraftCheck, as_json: bool) -> None:
    """Print a check."""
    if as_json:
        print_json(result.as_dict())
        return
    out = output()
    shared = (
        "the same tokens" if result.pairing == "identical" else f"{result.pairing}, {result.n_shared} tokens shared"
    )
    place = f"{result.engine}, {result.threads} threads"
    show_text(out, f"{result.draft} drafting for {result.target} ({shared}); {place}")
    steps = ", ".join(f"{rows}: {ms:.1f}" for rows, ms in result.step_ms.items())
    show_text(out, f"a draft token takes {result.draft_ms:.1f} ms; a step of the target, by rows: {steps}")
    measured = any(s.measured for s in result.sets.values())
    more = ("measured: draft", "lookup", "both") if measured else ()
    heads = ("text", "agreement", "sampled", "drafts a round", "accepted", "expected", "lookup", *more, "pays")
    rows = []
    for name, row in result.sets.items():
        shares = f"{row.agreement:.0%}", f"{row.overlap:.0%}", str(row.draft.k), f"{row.draft.acceptance:.0%}"
        speeds = [row.draft.speed_up, row.lookup]
        if row.measured is not None:
            speeds += [row.measured[k] for k in ("draft", "lookup", "both")]
        rows.append((name, *shares, *(f"{x:.2f}" for x in speeds), "yes" if row.pays else "no"))
    show_table(out, heads, rows)
    show_text(out, "Expected, lookup and measured: speed, plain decoding is 1. Sampled: accepted at temperature 1.")
    show_text(out, result.verdict)
    if result.doubt:
        show_text(out, f"This is not remembered: {result.doubt}. Check again when it is quiet.")
