"""The command lines of `pilotfish bench`; what they do is imported when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...runtime.errors import OptionError
from ..options import Cache, DraftOption, Engine, MaxContext, NewTokens, Repeats, Temperature, Threads, numbers_of

bench_app = typer.Typer(
    help="Measure speed, engines, caches and long texts on this machine.", no_args_is_help=True, rich_markup_mode=None
)

Sets = Annotated[
    str,
    typer.Option(
        help="Prompt sets, comma-separated: chat, code, edit, extract, json, math, reasoning, rewrite, summary, tools; "
        "or all."
    ),
]
Prompts = Annotated[Path | None, typer.Option(help="A JSONL file of your own: {set, prompt} a line.")]
PerSet = Annotated[int, typer.Option(min=1, help="Prompts per set.")]


@bench_app.command("run")
def bench_run(
    model: Annotated[str, typer.Argument()] = "smollm2-135m",
    sets: Sets = "all",
    prompts: Prompts = None,
    per_set: PerSet = 4,
    tokens: NewTokens = 96,
    repeats: Repeats = 3,
    engine: Engine = None,
    draft: DraftOption = None,
    cache: Cache = None,
    document: Annotated[
        int | None, typer.Option(min=1, help="Ask one prompt of so many tokens, a manual that Python brings, instead.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json and a plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
    max_context: MaxContext = 4096,
) -> None:
    """Plain against speculative decoding, A B A B on the same prompts, and llama.cpp beside them where installed.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle or Hugging Face folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.
    """
    from .run import bench

    bench(
        model,
        sets=sets,
        prompts=prompts,
        per_set=per_set,
        n_tokens=tokens,
        repeats=repeats,
        engine=engine,
        draft=draft,
        cache=cache,
        document=document,
        out=out,
        as_json=as_json,
        threads=threads,
        max_context=max_context,
    )


@bench_app.command("curve")
def bench_curve_command(
    model: Annotated[str, typer.Argument()] = "smollm2-135m",
    engines: Annotated[str, typer.Option(help="Engines, comma-separated; all: every installed one.")] = "all",
    context: Annotated[int, typer.Option(min=1, help="Tokens in the cache before the step.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Turns of every engine.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for curve.json and a plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """The time of a step of n rows on every engine, in turns, and how fast prompts are read.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle or Hugging Face folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.
    """
    from .curve import bench_curve

    bench_curve(model, engines=engines, context=context, repeats=repeats, threads=threads, out=out, as_json=as_json)


@bench_app.command("engines")
def bench_engines_command(
    model: Annotated[str, typer.Argument()] = "smollm2-135m",
    engines: Annotated[str, typer.Option(help="Engines, comma-separated; all: every installed one.")] = "all",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts.")] = 5,
    tokens: NewTokens = 96,
    repeats: Repeats = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Our plain decoding over each engine against the same engine driven by its own API, A B A B.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle or Hugging Face folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.
    """
    from .engines import bench_engines

    bench_engines(
        model, engines=engines, n_prompts=prompts, n_tokens=tokens, repeats=repeats, threads=threads, as_json=as_json
    )


@bench_app.command("peers")
def bench_peers_command(
    model: Annotated[str, typer.Argument()] = "smollm2-135m",
    peers: Annotated[
        str,
        typer.Option(
            help="Peers, comma-separated: openvino-genai, llama-cpp-python, llama-server, onnxruntime-genai, "
            "transformers, ctranslate2; all: every installed one."
        ),
    ] = "all",
    draft: Annotated[str | None, typer.Option(help="A smaller model that drafts, for all who take one.")] = None,
    sets: Sets = "all",
    prompts: Prompts = None,
    per_set: PerSet = 4,
    tokens: NewTokens = 96,
    repeats: Repeats = 3,
    engine: Engine = None,
    temperature: Temperature = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="What drawing begins with, with --temperature.")] = 0,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="The same weights as this peer reads them; several times."),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Interpreter of the environment that has this peer; several times."),
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds that a peer may take to open, or for one answer.")] = 600.0,
    out: Annotated[Path | None, typer.Option(help="Folder for peers.json and peers.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Pilotfish beside every runtime that is installed: the same prompts, in turns, a process each.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle or Hugging Face folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.
    """
    from .peers.run import Options, bench_peers

    options = Options(
        peers=peers,
        draft=draft,
        sets=sets,
        prompts=prompts,
        per_set=per_set,
        n_tokens=tokens,
        repeats=repeats,
        engine=engine,
        threads=threads,
        temperature=temperature,
        seed=seed,
        weights=weights or (),
        pythons=python or (),
        limit_s=limit,
    )
    bench_peers(model, options, out=out, as_json=as_json)


@bench_app.command("cache")
def bench_cache_command(
    model: Annotated[str, typer.Argument()] = "smollm2-135m",
    policy: Annotated[list[str] | None, typer.Option(help="A cache policy; several times; default: all.")] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(help="Share of the text's entries that stay; several times; default: 1/2, 1/4 and 1/8."),
    ] = None,
    length: Annotated[int, typer.Option(min=3, help="Tokens of the text.")] = 1024,
    predicted: Annotated[
        int | None, typer.Option(min=2, help="Tokens at its end that are predicted; default: half of it, at most 512.")
    ] = None,
    needle_lengths: Annotated[
        str, typer.Option(help="Tokens around a needle, comma-separated; '': none.")
    ] = "512,1024",
    depths: Annotated[int, typer.Option(min=1, max=100, help="Places of the needle in each length.")] = 3,
    keys: Annotated[int, typer.Option(min=0, help="Numbers hidden in one text and all asked for; 0: none.")] = 4,
    text: Annotated[Path | None, typer.Option(help="A text of your own; default: a manual that Python brings.")] = None,
    engine: Engine = None,
    kv_dtype: Annotated[
        list[str] | None, typer.Option(help="A cache type to compare with the exact one; several times.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for cache.json, two plots, and rows.jsonl, from which a later run goes on."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """What cache policies forget and save: perplexity, KL, needles, memory and speed, against the full cache.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle or Hugging Face folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.
    """
    from .cache import bench_cache
    from .inputs import MAX_KEYS, Settings

    lengths = numbers_of("--needle-lengths", needle_lengths, 64)
    if not 0 <= keys <= MAX_KEYS:
        raise OptionError(f"--keys is {keys}, but must lie in 0..{MAX_KEYS}.")
    n_predicted = min(length // 2, 512) if predicted is None else predicted
    if not 2 <= n_predicted < max(length, 3):
        raise OptionError(f"--predicted is {n_predicted}, but must lie in 2..{length - 1}, within --length.")
    bench_cache(
        model,
        policies=policy or [],
        shares=share or [],
        settings=Settings(length, n_predicted, lengths, depths, keys),
        text=text,
        engine=engine,
        kv_dtypes=kv_dtype or [],
        threads=threads,
        out=out,
        as_json=as_json,
    )


@bench_app.command("long")
def bench_long_command(
    model: Annotated[str, typer.Argument()] = "smollm2-135m",
    times: Annotated[str, typer.Option(help="Lengths of texts with a needle, in contexts; '': none.")] = "2,4",
    depths: Annotated[int, typer.Option(min=1, max=100, help="Places of the needle in each text.")] = 5,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the prompt; default: as for run --document.")
    ] = None,
    segment: Annotated[int, typer.Option(min=16, help="Tokens of a segment.")] = 256,
    curve: Annotated[int, typer.Option(min=0, help="Tokens of a text to read to its end; 0: none.")] = 0,
    policy: Annotated[
        str, typer.Option(help="Cache policy that reads the text of --curve.")
    ] = "sinks:budget=1024,every=256",
    text: Annotated[Path | None, typer.Option(help="A text of your own; default: a manual that Python brings.")] = None,
    engine: Engine = None,
    max_context: MaxContext = None,
    out: Annotated[Path | None, typer.Option(help="Folder for long.json and a plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Texts longer than the context: needles by excerpts and by truncation, and perplexity without end.

    MODEL: a catalogue name (`pilotfish pull --help` lists them), a .gguf file, a bundle or Hugging Face folder,
    hf:ORG/NAME[:FILE] of the Hugging Face hub, or ollama:NAME of Ollama's store.
    """
    from .long import Settings, bench_long

    lengths = numbers_of("--times", times, 2)
    bench_long(
        model,
        settings=Settings(lengths, depths, budget, segment, curve, policy),
        max_context=max_context,
        text=text,
        engine=engine,
        threads=threads,
        out=out,
        as_json=as_json,
    )
