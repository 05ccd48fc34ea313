"""The `pilotfish` command. Every error a user can cause ends in one line and exit code 2."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from typing import Annotated, Any

import typer

from ..fetching.catalogue import NAMES, ON_HUB, listing
from ..runtime.checks import shown
from ..runtime.errors import OptionError, PilotfishError, PilotfishWarning
from .answer_command import chat, run
from .bench.command import bench_app
from .draft import draft_app
from .export_command import export, verify
from .options import Command, ModelArgument, Threads, whole_text
from .streams import ReaderGoneError, standard_streams
from .terminal import LoadProgress, console

app = typer.Typer(
    name="pilotfish",
    help="On-device language models: the same text sooner, in less memory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich cuts long option names short at 80 columns
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench_app, name="bench")
app.add_typer(draft_app, name="draft")
app.command()(run)
app.command()(chat)
app.command()(export)
app.command()(verify)

_UsageError: Any = typer.BadParameter.__base__  # click's, which may be typer's own copy
_shown_by_python = warnings.showwarning


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Option(help="A model; default: the best of the catalogue that is here or comes soon.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Another prompt than the demo's.")] = None,
    threads: Threads = None,
) -> None:
    """Fetch a small model, answer a prompt with and without speculation, and show what it did."""
    from .demo import chosen_demo, run_demo

    loaded, name = chosen_demo(model, threads)
    with loaded:
        run_demo(loaded, name, prompt)


@app.command(
    help="Fetch a model into the cache and print where it is.\n\n"
    "NAME: hf:ORG/NAME[:FILE] of the Hugging Face hub, or one of these:\n\n"
    + "\n\n".join(f"{name}: {about}" for name, about in listing())
)
def pull(name: Annotated[str, typer.Argument()]) -> None:
    from ..loading.opening import resolve, source_folder

    if name not in NAMES and not name.startswith("hf:"):
        known = ", ".join(NAMES)
        raise OptionError(
            f"there is no model {name!r} in the catalogue; it has {known}. hf:ORG/NAME is one of the hub."
        )
    with LoadProgress() as progress:
        exported = name in ON_HUB and ON_HUB[name].filename is None
        path = source_folder(name, progress) if exported else resolve(name, progress).path
    print(path)


@app.command()
def inspect(
    model: ModelArgument, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Show what a .gguf file, a folder of safetensors or a bundle holds, without loading it.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle or Hugging Face folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.
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

    MODEL: what to try every engine on: a catalogue name, a .gguf file, a bundle or Hugging Face folder; default: none.
    """
    from ..runtime.profiling.engine_trial import Job
    from .doctor import report

    if model is None and (job is not None or again):
        raise OptionError("--job and --again are about a model; name one.")
    wanted = Job()
    if job is not None:
        prompt_tokens, _, new_tokens = map(whole_text, job.partition("x"))
        if not prompt_tokens or not new_tokens:
            raise OptionError(f"--job is {shown(job)}, but must be two numbers of tokens from 1 on, as in 2000x100.")
        wanted = Job(prompt_tokens, new_tokens)
    report(model, job=wanted, again=again, as_json=as_json)


for _group in (app, bench_app, draft_app):
    for _registered in _group.registered_commands:
        _registered.cls = Command


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Ours are for the user; those of libraries are for developers, who ask for them with `python -W`."""
    if issubclass(category, PilotfishWarning):
        console().print(f"pilotfish: {_as_typed(str(message))}", style="yellow", soft_wrap=True)
    elif sys.warnoptions:
        _shown_by_python(message, category, *where, **more)


def main() -> None:
    """Entry point. Exit codes: 0, 2 for anything a user can mend, with one line that says how, 130 for Ctrl-C."""
    warnings.showwarning = _show_warning
    code, said = 0, ""
    try:
        with standard_streams():
            code = app(prog_name="pilotfish", standalone_mode=False) or 0
    except PilotfishError as error:
        code, said = 2, _as_typed(str(error))
    except _UsageError as error:
        code, said = 2, _usage(error)
    except OSError as error:  # of a path that no one had thought of; any other is a fault of ours
        if error.filename is None:
            raise
        code, said = 2, f"{shown(os.fspath(error.filename))}: {error.strerror}. Give another path."
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except ReaderGoneError:
        code = 0
    with contextlib.suppress(OSError):  # standard error may be full
        if said:
            console().print(f"pilotfish: {' '.join(said.split())}", style="red", soft_wrap=True)
        if code == 130:
            console().print("stopped", style="dim")
    sys.exit(code)


_TYPED = {  # what the library's messages name as its callers write it: what is typed here in its place
    "draft=None": "no draft (--plain)",
    "draft='self'": "--draft self",
    "speculate=False": "--plain",
    "exact=False": "--no-exact",
    "exact=True": "--exact",
    "narrow=True": "--narrow",
    "narrow=False": "--no-narrow",
    "quality=": "--quality",
    "raw=True": "--raw",
    "special=True": "--special",
}
_PARAMETER = re.compile(rf"\b({'|'.join(map(re.escape, _TYPED))})(?: \(--[a-z-]+\))?")


def _as_typed(message: str) -> str:
    """A message of the library in the words of the command line: an option in the place of a parameter."""
    return _PARAMETER.sub(lambda found: _TYPED[found[1]], message)


def _usage(error: Any) -> str:
    """What is wrong with a command line, in one line; nothing for a bare group of commands, whose help is printed."""
    if type(error).__name__ == "NoArgsIsHelpError":
        with contextlib.suppress(OSError):  # standard output may be full
            print(error.format_message())
        return ""
    command = error.ctx.command_path if error.ctx is not None else app.info.name
    said = error.format_message()
    return f"{said}{'' if said.endswith(('.', '?', '!')) else '.'} `{command} --help` says what there is."


if __name__ == "__main__":
    main()
