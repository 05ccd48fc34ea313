"""The `pilotfish` command. Every error a user can cause ends in one line and exit code 2."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..exporters.catalogue import CATALOGUE
from ..runtime.errors import OptionError, PilotfishError, PilotfishWarning
from .draft import draft_app
from .export_command import export, verify

if TYPE_CHECKING:  # imported when it is needed: `--help` should not wait for it
    from ..runtime.model import Model

app = typer.Typer(
    name="pilotfish",
    help="On-device language models: the same text sooner, in less memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench_app = typer.Typer(help="Measure, interleaved and in one process.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
app.add_typer(draft_app, name="draft")
app.command()(export)
app.command()(verify)

ModelArgument = Annotated[str, typer.Argument(help="Catalogue name, .gguf file or bundle folder.", show_default=False)]
Engine = Annotated[
    str | None,
    typer.Option(help="onnx, openvino, llamacpp or reference; default: the fastest here, which is measured once."),
]
Device = Annotated[str | None, typer.Option(help="cpu, or an engine's own name for a device.")]
Threads = Annotated[int | None, typer.Option(help="Threads; default: measured.")]
MaxContext = Annotated[int | None, typer.Option(help="Entries the cache may hold; default: the model's context.")]
Cache = Annotated[
    str | None, typer.Option(help="What stays of a full KV cache: sinks, snapkv:budget=512, ...; default: everything.")
]
KvDtype = Annotated[
    str | None, typer.Option(help="Cache type: int8, f16, or keys/values apart: u8/u4; default: exact.")
]
EngineOption = Annotated[
    list[str] | None, typer.Option("--option", help="A setting of the engine, NAME=VALUE; may be given several times.")
]
DraftEngine = Annotated[str | None, typer.Option(help="Engine of the draft model; default: the target's.")]
DraftOption = Annotated[
    str | None,
    typer.Option(help="A smaller model that drafts; or self, self:POLICY: the model itself over a smaller cache."),
]
Plain = Annotated[bool, typer.Option("--plain", help="No speculation.")]
Exact = Annotated[
    bool, typer.Option("--exact/--no-exact", help="Stay in one row class, so that drafts cannot change a bit.")
]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", "-n", help="0: until the context is full.")]


_shown_by_python = warnings.showwarning


def console() -> Console:
    """Where everything that is not the answer goes."""
    return Console(stderr=True, highlight=False, markup=False)


class LoadProgress:
    """Shows long steps of loading, on a terminal and only if there are any."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> Callable[[str, float], None]:
        return self._report

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _report(self, what: str, share: float) -> None:
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._progress = Progress(*columns, TimeRemainingColumn(), console=console(), transient=True)
            self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=1.0)
        self._progress.update(self._tasks[what], completed=share)  # type: ignore[arg-type]


@app.command()
def run(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; default: standard input.")] = None,
    engine: Engine = None,
    device: Device = None,
    draft: DraftOption = None,
    draft_engine: DraftEngine = None,
    plain: Plain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the smallest set with this mass.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Keep tokens of at least this share of the best.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens seen before become less likely.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Subtracted from tokens generated before.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, per occurrence.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    max_context: MaxContext = None,
    threads: Threads = None,
    cache: Cache = None,
    kv_dtype: KvDtype = None,
    option: EngineOption = None,
    exact: Exact = True,
) -> None:
    """Answer one prompt."""
    from ..runtime.sampling import Sampling
    from .answer import answer

    if plain and draft is not None:
        raise OptionError("--plain and --draft contradict each other; drop one of the two.")
    if raw and system is not None:
        raise OptionError("--raw takes no chat template, so --system has no place; drop one of the two.")
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
    text = read_prompt(prompt)
    loaded = _load(
        model,
        engine=engine,
        device=device,
        draft=draft,
        draft_engine=draft_engine,
        plain=plain,
        max_context=max_context,
        threads=threads,
        cache=cache,
        kv_dtype=kv_dtype,
        options=_options(option),
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
            max_new_tokens=max_new_tokens or None,
            as_json=as_json,
        )


@app.command()
def chat(
    model: ModelArgument,
    engine: Engine = None,
    device: Device = None,
    draft: DraftOption = None,
    draft_engine: DraftEngine = None,
    plain: Plain = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the conversation in this file, and keep it there.")
    ] = None,
    reread: Annotated[bool, typer.Option("--reread", help="Take its messages alone: for another model.")] = False,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = 512,
    max_context: MaxContext = None,
    threads: Threads = None,
    cache: Cache = None,
    kv_dtype: KvDtype = None,
    option: EngineOption = None,
    exact: Exact = True,
) -> None:
    """Talk to a model. Ctrl-C stops an answer; Ctrl-D or /bye ends."""
    from .answer import converse

    if plain and draft is not None:
        raise OptionError("--plain and --draft contradict each other; drop one of the two.")
    if reread and resume is None:
        raise OptionError("--reread is about the file of --resume; give one, or drop it.")
    with _load(
        model,
        engine=engine,
        device=device,
        draft=draft,
        draft_engine=draft_engine,
        plain=plain,
        max_context=max_context,
        threads=threads,
        cache=cache,
        kv_dtype=kv_dtype,
        options=_options(option),
        exact=exact,
    ) as loaded:
        converse(
            loaded,
            system=system,
            temperature=temperature,
            max_new_tokens=max_new_tokens or None,
            resume=resume,
            reread=reread,
        )


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


@app.command()
def pull(name: Annotated[str, typer.Argument(help=f"One of: {', '.join(CATALOGUE)}.")]) -> None:
    """Fetch a model of the catalogue into the cache and print where it is."""
    from ..loading import resolve

    if name not in CATALOGUE:
        raise OptionError(f"there is no model {name!r} in the catalogue; it has {', '.join(CATALOGUE)}.")
    with LoadProgress() as progress:
        path = resolve(name, progress)
    print(path)


@app.command()
def inspect(model: ModelArgument, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show what a .gguf file or a bundle holds, without loading it."""
    from .inspection import inspect_model

    inspect_model(model, as_json)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="Also try every engine on this model.")] = None,
    job: Annotated[str | None, typer.Option(help="What to choose for: PROMPTxANSWER in tokens, as 2000x100.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Forget earlier trials of the model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show engines, versions and devices of this machine, what is missing, and which engine a model would run on."""
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


@bench_app.command("run")
def bench_run(
    model: Annotated[str, typer.Argument(help="Catalogue name, .gguf file or bundle folder.")] = "smollm2-135m",
    sets: Annotated[str, typer.Option(help="Prompt sets, comma-separated; all: every one.")] = "all",
    prompts: Annotated[Path | None, typer.Option(help="A JSONL file of your own: {set, prompt} a line.")] = None,
    per_set: Annotated[int, typer.Option(help="Prompts per set.")] = 4,
    tokens: Annotated[int, typer.Option(help="New tokens per prompt.")] = 96,
    repeats: Annotated[int, typer.Option(help="Interleaved passes over every prompt.")] = 3,
    engine: Engine = None,
    draft: DraftOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json and a plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
    max_context: MaxContext = 4096,
) -> None:
    """Plain against speculative decoding, A B A B on the same prompts, and llama.cpp beside them where installed."""
    from .bench import bench

    for name, value in (("--per-set", per_set), ("--tokens", tokens), ("--repeats", repeats)):
        if value < 1:
            raise OptionError(f"{name} is {value}, but must be 1 or more.")
    bench(
        model,
        sets=sets,
        prompts=prompts,
        per_set=per_set,
        n_tokens=tokens,
        repeats=repeats,
        engine=engine,
        draft=draft,
        out=out,
        as_json=as_json,
        threads=threads,
        max_context=max_context,
    )


@bench_app.command("curve")
def bench_curve_command(
    model: Annotated[str, typer.Argument(help="Catalogue name, .gguf file or bundle folder.")] = "smollm2-135m",
    engines: Annotated[str, typer.Option(help="Engines, comma-separated; all: every installed one.")] = "all",
    context: Annotated[int, typer.Option(help="Tokens in the cache before the step.")] = 256,
    repeats: Annotated[int, typer.Option(help="Turns of every engine.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for curve.json and a plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """The time of a step of n rows on every engine, in turns, and how fast prompts are read."""
    from .bench_curve import bench_curve

    for name, value in (("--context", context), ("--repeats", repeats)):
        if value < 1:
            raise OptionError(f"{name} is {value}, but must be 1 or more.")
    bench_curve(model, engines=engines, context=context, repeats=repeats, threads=threads, out=out, as_json=as_json)


@bench_app.command("engines")
def bench_engines_command(
    model: Annotated[str, typer.Argument(help="Catalogue name, .gguf file or bundle folder.")] = "smollm2-135m",
    engines: Annotated[str, typer.Option(help="Engines, comma-separated; all: every installed one.")] = "all",
    prompts: Annotated[int, typer.Option(help="Prompts.")] = 5,
    tokens: Annotated[int, typer.Option(help="New tokens per prompt.")] = 96,
    repeats: Annotated[int, typer.Option(help="Interleaved passes over every prompt.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Our plain decoding over each engine against the same engine driven by its own API, A B A B."""
    from .bench_peers import bench_engines

    for name, value in (("--prompts", prompts), ("--tokens", tokens), ("--repeats", repeats)):
        if value < 1:
            raise OptionError(f"{name} is {value}, but must be 1 or more.")
    bench_engines(
        model, engines=engines, n_prompts=prompts, n_tokens=tokens, repeats=repeats, threads=threads, as_json=as_json
    )


@bench_app.command("cache")
def bench_cache_command(
    model: Annotated[str, typer.Argument(help="Catalogue name, .gguf file or bundle folder.")] = "smollm2-135m",
    policy: Annotated[list[str] | None, typer.Option(help="A cache policy; several times; default: all.")] = None,
    share: Annotated[list[str] | None, typer.Option(help="Of the text's entries; default: 1/2, 1/4 and 1/8.")] = None,
    length: Annotated[int, typer.Option(help="Tokens of the text; the second half is predicted.")] = 1024,
    needle_lengths: Annotated[
        str, typer.Option(help="Tokens around a needle, comma-separated; '': none.")
    ] = "512,1024",
    depths: Annotated[int, typer.Option(help="Places of the needle in each length.")] = 3,
    text: Annotated[Path | None, typer.Option(help="A text of your own; default: a manual that Python brings.")] = None,
    engine: Engine = None,
    kv_dtype: KvDtype = None,
    out: Annotated[Path | None, typer.Option(help="Folder for cache.json and two plots.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """What cache policies forget and save: perplexity, KL, needles, memory and speed, against the full cache."""
    from .bench_cache import Settings, bench_cache

    lengths = [n for n in needle_lengths.split(",") if n]
    if depths < 1 or not all(n.isdecimal() and int(n) >= 64 for n in lengths):
        raise OptionError(f"--depths {depths} and --needle-lengths {needle_lengths!r}: give 1 or more, and 64 or more.")
    bench_cache(
        model,
        policies=policy or [],
        shares=share or ["1/2", "1/4", "1/8"],
        settings=Settings(length, tuple(map(int, lengths)), depths),
        text=text,
        engine=engine,
        kv_dtype=kv_dtype,
        threads=threads,
        out=out,
        as_json=as_json,
    )


def read_prompt(prompt: str | None) -> str:
    """The prompt given, or standard input. Raises OptionError where there is none, or it is not UTF-8."""
    if prompt is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise OptionError("no prompt: give one as an argument, or pipe it in.")
        data = sys.stdin.buffer.read()
        try:
            prompt = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise OptionError(
                f"standard input is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}. Convert it first."
            ) from None
    if not prompt.strip():
        raise OptionError("the prompt is empty.")
    return prompt


def _load(
    model: str,
    engine: str | None,
    device: str | None,
    draft: str | None,
    draft_engine: str | None,
    plain: bool,
    max_context: int | None,
    threads: int | None,
    cache: str | None,
    kv_dtype: str | None,
    options: dict[str, str],
    exact: bool,
) -> Model:
    from ..loading import load

    with LoadProgress() as progress:
        return load(
            model,
            engine,
            device,
            draft=draft if draft is not None else "auto",
            speculate=not plain,
            draft_engine=draft_engine,
            max_context=max_context,
            threads=threads,
            cache=cache,
            kv_dtype=kv_dtype,
            options=options,
            exact=exact,
            progress=progress,
        )


def _options(given: list[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs. Raises OptionError for anything else."""
    pairs = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise OptionError(f"--option {text!r} must be NAME=VALUE.")
        pairs[name] = value
    return pairs


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
