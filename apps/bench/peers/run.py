"""`pilotfish bench peers`: Pilotfish beside every runtime that is installed, on the same prompts, in turns."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .... import __version__
from ....loading.choosing import Wish, first_threads
from ....loading.load import resolve
from ....loading.vocabulary import read_tokenizer
from ....runtime.errors import OptionError
from ....runtime.files.model_file import ModelFile
from ....runtime.sampling.finite import for_json
from ....runtime.sampling.sampling import Sampling
from ....runtime.storage import write_atomically
from ....runtime.text.chat_template import ChatTemplate, turn_end
from ....runtime.text.prompts import encode_prompt
from ... import machine
from ...terminal import LoadProgress, console, print_json
from ..plotting import require_plots
from ..run import choose_prompts, read_prompts
from .contestants import FAMILIES, Contestant, chosen, contestants, interpreters, named_paths, weights
from .contract import Question, Setup
from .energy import EnergyMeter
from .figures import figures
from .measure import Row, measure
from .report import page, show

_DAY_S = 86400
_SLACK = 16  # tokens of room beyond prompt and answer, for drafts that run ahead


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    peers: str = "all"
    draft: str | None = None
    sets: str = "all"
    prompts: Path | None = None
    per_set: int = 4
    n_tokens: int = 96
    repeats: int = 3
    engine: str | None = None
    threads: int | None = None
    temperature: float = 0.0
    seed: int = 0
    weights: Sequence[str] = ()
    pythons: Sequence[str] = ()
    limit_s: float = 600.0


def bench_peers(model: str, options: Options, *, out: Path | None, as_json: bool) -> None:
    """Measure and show tables; with `out`, write peers.json and peers.html there. Raises OptionError where no row ran,
    and what resolve() raises."""
    require_plots(out)
    report = _measured(model, options)
    if as_json:
        print_json(report)
    else:
        show(report)
    if out is not None:
        write_atomically(out / "peers.json", json.dumps(for_json(report), indent=1).encode())
        write_atomically(out / "peers.html", page(report).encode())
        console().print(f"wrote {out / 'peers.json'} and {out / 'peers.html'}", soft_wrap=True)


def _measured(model: str, options: Options) -> dict[str, object]:
    families = chosen(options.peers, FAMILIES)
    given = named_paths("--weights", options.weights, FAMILIES)
    pythons = interpreters(named_paths("--python", options.pythons, FAMILIES))
    wish = Wish(engine=options.engine, threads=options.threads)
    _check_numbers(options)
    asked = choose_prompts(read_prompts(options.prompts), options.sets, options.per_set)
    with LoadProgress() as progress:
        file = resolve(model, progress)
        draft = None if options.draft is None else resolve(options.draft, progress).path.resolve()
        questions, ends = _questions(file, [each.prompt for each in asked], options.n_tokens)
        room = max(len(q.ids) for q in questions) + options.n_tokens + _SLACK
        if room > file.context_length:
            raise OptionError(f"--tokens is {options.n_tokens}: the model knows {file.context_length}, not {room}.")
        threads = wish.threads or first_threads()
        given = weights(given, file.is_encoder_decoder, families)
        rows, without = contestants(
            families,
            file.path.resolve(),
            draft,
            encoder_decoder=file.is_encoder_decoder,
            weights=given,
            pythons=pythons,
        )

        def setup(row: Contestant) -> Setup:
            return Setup(
                variant=row.variant,
                path=row.weights,
                draft=row.draft,
                threads=threads,
                room=room,
                ends=ends,
                encoder_decoder=file.is_encoder_decoder,
                engine=options.engine,
                temperature=options.temperature,
                seed=options.seed,
            )

        meter = EnergyMeter.find()
        found = measure(
            rows,
            questions,
            setup,
            repeats=options.repeats,
            limit_s=options.limit_s,
            meter=meter,
            progress=progress,
        )
    if not any(row.ran for row in found):
        raise OptionError(f"no row ran; the first says: {found[0].contestant.name} {found[0].state}")
    return {
        "pilotfish": __version__,
        "machine": machine.describe(),
        "instruction_sets": machine.instruction_sets(),
        "date": time.strftime("%Y-%m-%d"),
        "model": file.path.name,
        "digest": file.digest[:16],
        "draft": None if draft is None else draft.name,
        "threads": threads,
        "new_tokens": options.n_tokens,
        "repeats": options.repeats,
        "temperature": options.temperature,
        "seed": options.seed,
        "energy": None if meter is None else "RAPL packages",
        "peers": _peers(found, without),
        "sets": figures(found, [each.set for each in asked], greedy=options.temperature == 0),
    }


def _check_numbers(options: Options) -> None:
    """Raises OptionError for numbers with which nothing can be measured."""
    Sampling(temperature=options.temperature)
    if options.n_tokens < 2:
        raise OptionError(f"--tokens is {options.n_tokens}, but a speed takes 2 or more: the first is the prompt's.")
    if not 0 < options.limit_s <= _DAY_S:
        raise OptionError(f"--limit is {options.limit_s:g}, but must be seconds above 0, and no more than {_DAY_S}.")


def _questions(file: ModelFile, prompts: Sequence[str], n_tokens: int) -> tuple[list[Question], tuple[int, ...]]:
    """The prompts as text and as tokens, and the tokens that end an answer."""
    tokenizer = read_tokenizer(file)
    template = None if file.chat_template is None else ChatTemplate(file.chat_template)
    source = file.is_encoder_decoder
    read = [encode_prompt(text, False, tokenizer, template, source=source) for text in prompts]
    behind = None if template is None else turn_end(tokenizer, template)
    ends = tokenizer.eos_ids if behind is None else tokenizer.eos_ids | {behind}
    asked = [Question(text, tuple(ids.tolist()), n_tokens) for text, ids in zip(prompts, read, strict=True)]
    return asked, tuple(sorted(ends))


def _peers(rows: Sequence[Row], without: dict[str, str]) -> dict[str, dict[str, object]]:
    """How every contestant fared, with those that had no weights."""
    none: dict[str, object] = {"version": "", "load_s": 0.0, "peak_bytes": None, "weights": None, "python": None}
    found: dict[str, dict[str, object]] = {
        row.contestant.name: {
            "state": row.state,
            "version": row.version,
            "load_s": row.load_s,
            "peak_bytes": row.peak_bytes,
            "weights": Path(row.contestant.weights).name,
            "python": row.contestant.python,
        }
        for row in rows
    }
    return found | {name: {**none, "state": why} for name, why in without.items()}
