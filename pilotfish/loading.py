"""load(): from a name or a path to a Model. The one place where backends, exporters and runtime meet."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .choosing import Wish, choose, open_first_right
from .measuring import calibration, keep_calibration
from .opening import Progress, read_tokenizer, resolve
from .runtime.chat_template import ChatTemplate
from .runtime.choice import Job
from .runtime.draft_length import RenewalReward
from .runtime.errors import OptionError
from .runtime.interfaces import DraftLengthPolicy, Proposer
from .runtime.model import DraftWeights, Model
from .runtime.proposers import Suffix
from .runtime.tokenizer import Tokenizer

__all__ = ["load", "resolve"]


def load(
    path: str | os.PathLike[str],
    engine: str | None = None,
    device: str | None = None,
    draft: str | os.PathLike[str] | None = "auto",
    speculate: bool | DraftLengthPolicy = True,
    *,
    draft_engine: str | None = None,
    cache: None = None,
    kv_dtype: str | None = None,
    max_context: int | None = None,
    threads: int | None = None,
    exact: bool = True,
    options: Mapping[str, object] | None = None,
    job: Job | None = None,
    proposers: Sequence[Proposer] = (Suffix(),),
    progress: Progress | None = None,
) -> Model:
    """A model, ready to generate.

    path: a catalogue name ("smollm2-135m"), a .gguf file, or a bundle folder.
    engine: "onnx", "openvino", "llamacpp", "reference"; None tries every installed engine that can open the model
        briefly, once, and takes the one that does the job soonest. PILOTFISH_ENGINE does the same as the argument.
    device: "cpu", or an engine's own name for a device; None is every real device in turn.
    draft: path or name of a smaller model with the same vocabulary; "auto" is what the bundle holds; None is none.
    speculate: False is plain decoding; a DraftLengthPolicy replaces the default (RenewalReward).
    draft_engine: runs the draft; None is the target's engine, on the same device.
    cache: how the KV cache is compressed. Only the full cache exists so far.
    kv_dtype: how it is stored, "f16" or, keys and values apart, "u8/u4"; None is the engine's exact default.
    max_context: entries the cache may hold; the default is what the model was trained for.
    threads: None is measured. PILOTFISH_THREADS does the same as the argument.
    exact: all steps in one row class, so that drafts cannot change a bit; False lifts it for speed.
    options: settings of one engine alone, see its page in docs.
    job: what the choice is made for; the default is a prompt of 256 tokens and an answer of 128.
    proposers: who drafts besides a draft model; the default looks the text's end up in the text before it.
    progress: called while files are fetched and converted, which happens once.

    Before an answer is trusted, the device answers a question with a known answer. A wrong one moves on to the next
    device with a RuntimeWarning, or is an EngineError where engine and device were named.

    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError, EngineMissingError, EngineError, OptionError,
    DownloadError or CacheWriteError, each with the way out.
    """
    _check(cache, max_context, threads, speculate, draft, draft_engine)
    report = progress or (lambda what, share: None)
    found = resolve(path, report)
    job = job or (Job() if speculate else Job(acceptance=0.0))
    wish = Wish(engine, device, threads, kv_dtype, options or {}, job, exact).with_environment()
    places, choice = choose(found, wish, report)
    weights, location, place, notes = open_first_right(found, places, report)
    policy: DraftLengthPolicy | None = RenewalReward() if speculate is True else (speculate or None)
    assistant: DraftWeights | None = None
    try:
        tokenizer, template = read_tokenizer(location)
        if draft is not None and draft != "auto" and policy is not None:
            beside = replace(wish, engine=draft_engine or place.backend.name, threads=place.threads)
            if draft_engine is not None:  # whose devices, types and options are not the target's
                beside = replace(beside, device=None, kv_dtype=None, options={})
            assistant, more = _open_draft(tokenizer, draft, beside, report)
            notes += more
        measured = calibration(weights, report)
        model = Model(
            weights,
            tokenizer,
            None if template is None else ChatTemplate(template),
            measured,
            draft=assistant,
            policy=policy,
            proposers=proposers,
            exact=exact,
            max_context=max_context,
            choice=choice,
        )
    except BaseException:
        weights.close()
        if assistant is not None:
            assistant.weights.close()
        raise
    for note in notes:
        warnings.warn(f"{note}; went on with {model.info.engine} on {model.info.device}", RuntimeWarning, stacklevel=2)
    model.on_close(lambda: keep_calibration(measured, weights))
    return model


def _open_draft(
    target: Tokenizer, path: str | os.PathLike[str], wish: Wish, report: Progress
) -> tuple[DraftWeights, tuple[str, ...]]:
    """The draft model and the measured time of its single-token step; what was wrong with other places."""
    found = resolve(path, report)
    places, _ = choose(found, wish, report)
    weights, location, _, notes = open_first_right(found, places, report)
    try:
        tokenizer, _ = read_tokenizer(location)
        _check_pair(target, tokenizer, found)
        token_s = calibration(weights, report).curve.seconds(1)
    except BaseException:
        weights.close()
        raise
    return DraftWeights(weights, token_s), notes


def _check_pair(target: Tokenizer, draft: Tokenizer, path: Path) -> None:
    """Raise OptionError at the first token that means something else to the draft than to the target."""
    for i in range(target.vocab_size):
        token, other = target.token(i), draft.token(i)
        if other != token:
            raise OptionError(
                f"{path} cannot draft for this model: token {i} is {token!r} in the target and {other!r} in the draft. "
                "A draft must share the target's vocabulary; use draft=None to speculate without one."
            )


def _check(
    cache: object,
    max_context: int | None,
    threads: int | None,
    speculate: bool | DraftLengthPolicy,
    draft: object,
    draft_engine: str | None,
) -> None:
    if cache is not None:
        raise OptionError(f"cache={cache!r}: cache policies do not exist yet; leave cache out for the full cache.")
    if max_context is not None and max_context < 2:
        raise OptionError(f"max_context is {max_context}, but must be 2 or more.")
    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}, but must be 1 or more.")
    if draft_engine is not None and draft in (None, "auto"):
        raise OptionError(f"draft_engine is {draft_engine!r}, but there is no draft model; give one, or drop it.")
    if speculate is False and draft not in (None, "auto"):
        raise OptionError("a draft model is given together with speculate=False; drop one of the two.")
