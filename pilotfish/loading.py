"""load(): from a name or a path to a Model. The one place where backends, exporters and runtime meet."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import backends
from .backends import Backend
from .runtime.bundle import MANIFEST_NAME, cache_dir, open_bundle, read_json, write_json_atomically
from .runtime.chat_template import ChatTemplate
from .runtime.cost import Calibration, CostCurve, calibrate, facts_key
from .runtime.draft_length import RenewalReward
from .runtime.errors import ModelFileError, ModelNotFoundError, OptionError, UnsupportedModelError
from .runtime.interfaces import DraftLengthPolicy, Proposer, Weights
from .runtime.model import DraftWeights, Model
from .runtime.proposers import Suffix
from .runtime.rows import RowClasses
from .runtime.tokenizer import Tokenizer

Progress = Callable[[str, float], None]
"""(what is being done, share done from 0 to 1)"""


def load(
    path: str | os.PathLike[str],
    engine: str | None = None,
    device: str | None = None,
    draft: str | os.PathLike[str] | None = "auto",
    speculate: bool | DraftLengthPolicy = True,
    *,
    cache: None = None,
    kv_dtype: str | None = None,
    max_context: int | None = None,
    threads: int | None = None,
    exact: bool = True,
    proposers: Sequence[Proposer] = (Suffix(),),
    progress: Progress | None = None,
) -> Model:
    """A model, ready to generate.

    path: a catalogue name ("smollm2-135m"), a .gguf file, or a bundle folder.
    engine: "onnx" or "reference"; None picks the first installed one that can open the model.
    device: "cpu", or an engine's own name for a device; None is the engine's default.
    draft: path or name of a smaller model with the same vocabulary; "auto" is what the bundle holds; None is none.
    speculate: False is plain decoding; a DraftLengthPolicy replaces the default (RenewalReward).
    cache, kv_dtype: how the KV cache is compressed and stored. Only the full cache in f32 exists so far.
    max_context: entries the cache may hold; the default is what the model was trained for.
    threads: None is the number of usable cores.
    exact: all steps in one row class, so that drafts cannot change a bit; False lifts it for speed.
    proposers: who drafts besides a draft model; the default looks the text's end up in the text before it.
    progress: called while files are fetched and converted, which happens once.

    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError, EngineMissingError, OptionError, DownloadError
    or CacheWriteError, each with the way out.
    """
    _check(cache, kv_dtype, max_context, threads, speculate, draft)
    report = progress or (lambda what, share: None)
    opened = _open(resolve(path, report), engine, device, threads, kv_dtype, report)
    policy: DraftLengthPolicy | None = RenewalReward() if speculate is True else (speculate or None)
    assistant: DraftWeights | None = None
    try:
        if draft is not None and draft != "auto" and policy is not None:
            assistant = _open_draft(opened, draft, device, threads, report)
        calibration = _calibration(opened.weights, report)
        template = None if opened.template is None else ChatTemplate(opened.template)
        model = Model(
            opened.weights,
            opened.tokenizer,
            template,
            calibration,
            draft=assistant,
            policy=policy,
            proposers=proposers,
            exact=exact,
            max_context=max_context,
        )
    except BaseException:
        opened.weights.close()
        if assistant is not None:
            assistant.weights.close()
        raise
    model.on_close(lambda: _keep(calibration, opened.weights))
    return model


@dataclass(frozen=True, slots=True)
class _Opened:
    weights: Weights
    tokenizer: Tokenizer
    template: str | None
    backend: Backend


def resolve(path: str | os.PathLike[str], report: Progress | None = None) -> Path:
    """The .gguf file or bundle folder that a name or path stands for; fetches a catalogue model that is not here yet.

    Raises ModelNotFoundError naming what is close, UnsupportedModelError for folders of another kind.
    """
    tell = report or (lambda what, share: None)
    found = Path(path).expanduser()
    if found.is_file():
        if found.suffix.lower() != ".gguf":
            raise ModelFileError(f"{found} is not a .gguf file; give one, or a bundle folder or a catalogue name.")
        return found
    if found.is_dir():
        return _resolve_folder(found)
    from .exporters.catalogue import CATALOGUE
    from .exporters.fetch import fetch  # needed for names only

    name = str(path)
    if name in CATALOGUE:
        return fetch(name, progress=lambda done, total: tell(f"fetching {name}", done / total if total else 0.0))
    close = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ModelNotFoundError(
        f"there is no file or folder {name}, and no model of that name.{hint} Known names: {', '.join(CATALOGUE)}."
    )


def _resolve_folder(folder: Path) -> Path:
    if (folder / MANIFEST_NAME).exists():
        return folder
    models = sorted(folder.glob("*.gguf"))
    if len(models) == 1:
        return models[0]
    if models:
        raise OptionError(f"{folder} holds {len(models)} .gguf files; name one: {', '.join(m.name for m in models)}.")
    if (folder / "config.json").exists():
        raise UnsupportedModelError(
            f"{folder} is a Hugging Face folder, which cannot be opened directly yet. Give a .gguf file of the model."
        )
    raise ModelNotFoundError(f"{folder} holds no model: no {MANIFEST_NAME} and no .gguf file.")


def _open(
    path: Path, engine: str | None, device: str | None, threads: int | None, kv_dtype: str | None, report: Progress
) -> _Opened:
    backend = backends.pick(path, engine)
    location = path
    if backend.name == "onnx" and path.is_file():
        from .exporters.import_gguf import import_gguf  # needs the onnx package, which other engines do not

        location = import_gguf(path, progress=lambda share, what: report(f"preparing {path.name}: {what}", share))
    tokenizer, template = _tokenizer(location)
    weights = backend.open(location, device=device, threads=threads or usable_cores(), kv_dtype=kv_dtype)
    return _Opened(weights, tokenizer, template, backend)


def _tokenizer(location: Path) -> tuple[Tokenizer, str | None]:
    if location.is_dir():
        bundle = open_bundle(location)
        manifest = bundle.manifest
        if manifest.tokenizer is None:
            raise ModelFileError(f"{location} holds no tokenizer; build the bundle again from its source.")
        tokenizer = Tokenizer.from_file(
            bundle.file(manifest.tokenizer),
            eos_ids=manifest.eos_ids,
            bos_id=manifest.bos_id,
            add_bos=manifest.add_bos,
        )
        return tokenizer, manifest.chat_template
    from .runtime.gguf_file import read_gguf
    from .runtime.tokenizer_gguf import tokenizer_from_gguf

    metadata = read_gguf(location).metadata
    template = metadata.get("tokenizer.chat_template")
    return tokenizer_from_gguf(metadata), template if isinstance(template, str) else None


def _open_draft(
    target: _Opened, path: str | os.PathLike[str], device: str | None, threads: int | None, report: Progress
) -> DraftWeights:
    """The draft model, on the target's engine, and the measured time of its single-token step."""
    found = resolve(path, report)
    opened = _open(found, target.backend.name, device, threads, None, report)
    try:
        _check_pair(target.tokenizer, opened.tokenizer, found)
        token_s = _calibration(opened.weights, report).curve.seconds(1)
    except BaseException:
        opened.weights.close()
        raise
    return DraftWeights(opened.weights, token_s)


def _check_pair(target: Tokenizer, draft: Tokenizer, path: Path) -> None:
    """Raise OptionError at the first token that means something else to the draft than to the target."""
    for i in range(target.vocab_size):
        token, other = target.token(i), draft.token(i)
        if other != token:
            raise OptionError(
                f"{path} cannot draft for this model: token {i} is {token!r} in the target and {other!r} in the draft. "
                "A draft must share the target's vocabulary; use draft=None to speculate without one."
            )


def _calibration(weights: Weights, report: Progress) -> Calibration:
    """Costs and row classes of these weights here: as remembered, or measured now and remembered."""
    path = _facts_path(weights)
    facts = read_json(path)
    if isinstance(facts, dict):
        try:
            classes = tuple(tuple(int(w) for w in c) for c in facts["classes"])
            return Calibration(CostCurve.from_facts(facts), RowClasses(classes))
        except (KeyError, TypeError, ValueError):
            pass  # damaged, or of an older version: measured again
    report("measuring this machine", 0.0)
    session = weights.session(min(weights.info.context_length, 256))
    try:
        calibration = calibrate(session)
    finally:
        session.close()
    report("measuring this machine", 1.0)
    _keep(calibration, weights)
    return calibration


def _keep(calibration: Calibration, weights: Weights) -> None:
    facts = calibration.curve.to_facts()
    if facts is not None:
        classes = [list(c) for c in calibration.rows.classes]
        write_json_atomically(_facts_path(weights), {**facts, "classes": classes, "measured": time.strftime("%F")})


def _facts_path(weights: Weights) -> Path:
    return cache_dir() / "costs" / f"{facts_key(weights.info)}.json"


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check(
    cache: object,
    kv_dtype: str | None,
    max_context: int | None,
    threads: int | None,
    speculate: bool | DraftLengthPolicy,
    draft: object,
) -> None:
    if cache is not None:
        raise OptionError(f"cache={cache!r}: cache policies do not exist yet; leave cache out for the full cache.")
    if kv_dtype not in (None, "f32"):
        raise OptionError(f"kv_dtype={kv_dtype!r}: only 'f32' exists so far.")
    if max_context is not None and max_context < 2:
        raise OptionError(f"max_context is {max_context}, but must be 2 or more.")
    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}, but must be 1 or more.")
    if speculate is False and draft not in (None, "auto"):
        raise OptionError("a draft model is given together with speculate=False; drop one of the two.")
