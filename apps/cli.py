"""The `pilotfish` command. Every error a user can cause ends in one line and exit code 2."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from ..exporters.catalogue import CATALOGUE
from ..runtime.errors import OptionError, PilotfishError, PilotfishWarning
from .answer_command import chat, run
from .bench_command import bench_app
from .draft import draft_app
from .export_command import export, verify
from .options import ModelArgument, Threads
from .terminal import LoadProgress, console

app = typer.Typer(
    name="pilotfish",
    help="On-device language models: the same text sooner, in less memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench_app, name="bench")
app.add_typer(draft_app, name="draft")
app.command()(run)
app.command()(chat)
app.command()(export)
app.command()(verify)

_shown_by_python = warnings.showwarning


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="Another model than the demo's.")] = "smollm2-135m",
    prompt: Annotated[str | None, typer.Option(help="Another prompt than the demo's.")] = None,
    threads: Threads = None,
) -> None:
    """Fetch a small model, answer a prompt with and without speculation, and show what it did."""
    from .demo import run_demo

    with LoadProgress() as progress:
        from ..loading import load

        loaded = load(model, threads=threads, progress=progress)
    with loaded:
        run_demo(loaded, prompt)


@app.command(
    help=f"Fetch a model of the catalogue into the cache and print where it is.\n\nNAME: one of {', '.join(CATALOGUE)}."
)
def pull(name: Annotated[str, typer.Argument()]) -> None:
    from ..loading import resolve

    if name not in CATALOGUE:
        raise OptionError(f"there is no model {name!r} in the catalogue; it has {', '.join(CATALOGUE)}.")
    with LoadProgress() as progress:
        path = resolve(name, progress)
    print(path)


@app.command()
def inspect(
    model: ModelArgument, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Show what a .gguf file or a bundle holds, without loading it.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file or a bundle folder.
    """
    from .inspection import inspect_model

    inspect_model(model, as_json)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument()] = None,
    job: Annotated[
        str | None, typer.Option(help="What to choose for: PROMPTxANSWER in tokens; default: 256x128.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Forget earlier trials of the model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show engines, versions and devices of this machine, what is missing, and which engine a model would run on.

    MODEL: what to try every engine on: a catalogue name, a .gguf file or a bundle folder; default: none.
    """
    from ..runtime.choice import Job
    from .doctor import report

    if model is None and (job is not None or again):
        raise OptionError("--job and --again are about a model; name one.")
    wanted = Job()
    if job is not None:
        numbers = job.split("x")
        if len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
            raise OptionError(f"--job is {job!r}, but must be two numbers of tokens, as in 2000x100.")
        wanted = Job(int(numbers[0]), int(numbers[1]))
    report(model, job=wanted, again=again, as_json=as_json)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Ours are for the user; those of libraries are for developers, who ask for them with `python -W`."""
    if issubclass(category, PilotfishWarning):
        console().print(f"pilotfish: {message}", style="yellow", soft_wrap=True)
    elif sys.warnoptions:
        _shown_by_python(message, category, *where, **more)


def main() -> None:
    """Entry point. Exit codes: 0, 2 for anything a user can mend, 130 for Ctrl-C."""
    warnings.showwarning = _show_warning
    try:
        app()
    except PilotfishError as error:
        console().print(f"pilotfish: {error}", style="red", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console().print("stopped", style="dim")
        sys.exit(130)
    except BrokenPipeError:  # `pilotfish run ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
