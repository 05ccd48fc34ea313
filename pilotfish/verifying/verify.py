"""verify(): how far each format of a bundle is from its source, measured on the engines themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import backends
from ..exporters.formats import FORMATS
from ..exporters.parity.parity import Answers, Parity, Tally
from ..exporters.parity.thresholds import thresholds_of
from ..loading.choosing import Wish, first_threads
from ..loading.opening import Place, open_weights, source_folder
from ..runtime.encoder_input import prepare
from ..runtime.errors import EngineMissingError, ModelFileError, OptionError
from ..runtime.files.bundle import Bundle, open_bundle
from ..runtime.files.manifest import Manifest
from ..runtime.interfaces import Floats, ModelInfo, Session, Tokens
from ..runtime.profiling.canary import WRONG, canary_error
from ..runtime.profiling.teacher_forced import logits_along_text
from ..runtime.progress import Progress, Share
from ..runtime.several import several
from .report import FormatReport, Report

if TYPE_CHECKING:
    from ..exporters.sources.model_source import ModelSource

_WIDTH = 16  # rows of a step that reads a text; its answers are read a row at a time
_CHUNK = 64  # rows of a step whose logits nobody wants


def verify(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    formats: str | Sequence[str] | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """How far the formats of a bundle are from their source, on this machine's engines.

    source: the model it was made from, which is asked anew and needs the packages of the extra "export"; None compares
        with the answers stored in the bundle, and needs nothing but the engines.
    formats: some of those in the bundle; the default is all whose engine is installed.
    device: one of the engines' own names; None is each engine's default.

    Raises OptionError, ModelNotFoundError, ModelFileError, and EngineMissingError where no engine for any is here.
    """
    wish = Wish(device=device, threads=threads).with_environment()
    bundle = open_bundle(_bundle_place(folder))
    tell: Progress = progress or (lambda what, share: None)
    wanted, left_out = _wanted(bundle, None if formats is None else several(formats))
    if source is None:
        answers, logits = stored_answers(bundle), None
    else:
        answers, logits = _ask(bundle, source, tell)
    reports = []
    for form in wanted:
        place = Place(backends.get(FORMATS[form].engine), device, wish.threads or first_threads())
        reports.append(verify_format(bundle, form, place, answers, logits, tell))
    return Report(bundle.path, tuple(reports), left_out, source is not None)


def _bundle_place(folder: str | os.PathLike[str]) -> Path:
    from ..fetching.catalogue import NAMES

    place = Path(folder).expanduser()
    if str(folder) in NAMES and not place.exists():
        raise OptionError(
            f"{folder} is a model of the catalogue, and no bundle with answers of its source to compare with. Make one "
            f"and verify that: pilotfish export {folder} -o {folder}-bundle"
        )
    return place


def own_threads() -> int:
    """PILOTFISH_THREADS, or one for every core."""
    return Wish().with_environment().threads or first_threads()


def stored_answers(bundle: Bundle) -> Answers:
    """What the source answered when the bundle was made. Raises OptionError where that was not stored."""
    if bundle.manifest.answers is None:
        raise OptionError(f"{bundle} holds no answers of its source; name the source to compare with it.")
    return Answers.load(bundle.file(bundle.manifest.answers))


def verify_format(
    bundle: Bundle,
    form: str,
    place: Place,
    answers: Answers,
    logits: Mapping[str, Floats] | None,
    tell: Progress,
) -> FormatReport:
    """One format opened by its engine and compared. logits: the source's, text by text, where it was asked anew."""
    what, began, manifest = f"verifying {form}", time.perf_counter(), bundle.manifest
    tell(what, 0.0)
    thresholds = thresholds_of(manifest, form)
    weights, _ = open_weights(bundle, place, tell)
    try:
        device, version = weights.info.device, weights.info.engine_version
        if weights.info.encoder is None:  # a format may hold less than the source: llama.cpp knows few windows
            answers = answers.within(weights.info.context_length)
        session = weights.session(min(weights.info.context_length, _room(answers) + n_started(weights.info)))
        parity = _compare(session, answers, logits, lambda share: tell(what, share))
        error = None if manifest.canary is None else canary_error(session, manifest.canary)
        session.close()
    finally:
        weights.close()
    tell(what, 1.0)
    problems = thresholds.problems(parity)
    if error is not None and error >= WRONG:
        problems += (f"the canary's answer is wrong: error {error:.2f}, at most {WRONG}",)
    return FormatReport(
        form=form,
        engine=place.backend.name,
        engine_version=version,
        device=device,
        n_bytes=format_bytes(manifest, form),
        seconds=time.perf_counter() - began,
        parity=parity,
        canary_error=error,
        thresholds=thresholds,
        problems=problems,
    )


def format_bytes(manifest: Manifest, form: str) -> int:
    """Bytes of the files of one format: its folder's, or, at the top of a bundle, those named like its file."""
    first = manifest.formats[form]
    folder, _, name = first.rpartition("/")
    stem = name.split(".")[0]
    prefix = f"{folder}/" if folder else stem
    return sum(fact.bytes for path, fact in manifest.files.items() if path.startswith(prefix))


def _wanted(bundle: Bundle, formats: tuple[str, ...] | None) -> tuple[tuple[str, ...], dict[str, str]]:
    listed = bundle.manifest.formats
    for form in formats or ():
        if form not in listed:
            raise OptionError(f"{bundle} holds no {form}; it holds {', '.join(listed)}.")
        if form not in FORMATS:
            raise OptionError(f"{form} is run by no engine of Pilotfish; those that are: {', '.join(FORMATS)}.")
    wanted, left_out, ways = [], {}, []
    for form in formats or listed:
        if form not in FORMATS:
            left_out[form] = "not run here, no engine of Pilotfish runs it"
            continue
        engine = backends.get(FORMATS[form].engine)
        problem = engine.problem()
        if engine.version() is None:
            ways.append(f"Add an engine with: {engine.install}")
            left_out[form] = f"not run here, the {engine.name} engine is not installed"
        elif problem is not None:
            ways.append(problem)
            left_out[form] = f"not run here: {problem}"
        else:
            wanted.append(form)
    if ways and (formats or not wanted):
        raise EngineMissingError(f"nothing here runs {', '.join(left_out)}. {' or '.join(dict.fromkeys(ways))}")
    if not wanted:
        raise OptionError(f"{bundle} holds {', '.join(listed)}, and no engine of Pilotfish runs any of it.")
    return tuple(wanted), left_out


def _ask(bundle: Bundle, source: str | os.PathLike[str], tell: Progress) -> tuple[Answers, Mapping[str, Floats]]:
    from ..exporters.open_source import open_source

    found = open_source(source_folder(source, tell))
    made_from = bundle.manifest.source
    if found.sha256 != made_from.sha256:
        raise ModelFileError(
            f"{bundle} was made from another model: {made_from.name} with sha256 {made_from.sha256[:12]}..., "
            f"and {source} has {found.sha256[:12]}...; name its source, or none to compare with the stored answers."
        )
    return ask_source(found, tell)


def ask_source(source: ModelSource, tell: Progress) -> tuple[Answers, Mapping[str, Floats]]:
    """The source's answers to the evaluation, from torch."""
    from ..exporters.parity.evaluation import evaluation_of
    from ..exporters.parity.reference_logits import judge_answers, judge_of

    what = "asking the source"
    tell(what, 0.0)
    model = source.torch_model(progress=lambda share: tell("reading the source", share))
    return judge_answers(judge_of(source, model), evaluation_of(source), lambda share: tell(what, share))


def _room(answers: Answers) -> int:
    longest = max(len(text.tokens) for text in answers.texts.values())
    return max([longest, *(len(run.prompt) + len(run.ids) for run in answers.runs)])


def _compare(session: Session, answers: Answers, logits: Mapping[str, Floats] | None, tell: Share) -> Parity:
    tally, done, steps = Tally(answers), 0, len(answers.texts) + len(answers.runs)
    for name, text in answers.texts.items():
        rows = read_text(session, text.tokens, len(text.top_ids))
        tally.add_text(name, rows, None if logits is None else logits[name][: len(rows)])
        done += 1
        tell(done / steps)
    for number, run in enumerate(answers.runs):
        tally.add_answer(number, read_answer(session, run.prompt, run.ids))
        done += 1
        tell(done / steps)
    return tally.result()


def read_text(session: Session, tokens: Tokens, n_logits: int) -> Floats:
    """Logits after each of the last n_logits tokens of a text, (n_logits, vocab_size). The session is left empty."""
    _begin(session, tokens)
    logits = logits_along_text(session, tokens, n_logits, widths=(_WIDTH,), chunk=_CHUNK)
    session.truncate(0)
    return logits


def read_answer(session: Session, prompt: Tokens, ids: Tokens) -> Tokens:
    """The best token at each place of an answer, if all before it is as given. The session is left empty.

    Up to the first place where it differs from `ids` this is what greedy decoding would have given.
    """
    started = _begin(session, prompt, held_back=1)
    given = prompt if started is None else started
    if started is None and len(prompt) > 1:
        session.forward(prompt[:-1], n_logits=0)
    best = []
    for token in (given[-1], *ids[:-1]):
        best.append(int(session.forward(np.array([token], np.int64), n_logits=1).logits[0].argmax()))
    session.truncate(0)
    return np.array(best, np.int64)


def n_started(info: ModelInfo) -> int:
    """How many tokens the answers of this model begin with."""
    return 0 if info.encoder is None else len(info.encoder.decoder_start)


def _begin(session: Session, text: Tokens, held_back: int = 0) -> Tokens | None:
    """Let an encoder read the text, or silence, and start an answer but for its last tokens; what it begins with.

    None for a decoder, which reads the text itself.
    """
    encoder = session.info.encoder
    if encoder is None:
        return None
    if encoder.source_kind == "audio":
        prepare(session)
    else:
        session.encode(text)
    start = np.array(encoder.decoder_start, np.int64)
    if len(start) > held_back:
        session.forward(start[: len(start) - held_back], n_logits=0)
    return start
