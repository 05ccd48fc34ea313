"""load(): from a name or a path to a Model. The one place where backends, exporters and runtime meet."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from .. import backends
from ..runtime.cache.policies import CachePolicy
from ..runtime.checks import whole
from ..runtime.errors import (
    AbilityError,
    NotFiniteError,
    OptionError,
    PilotfishError,
    PilotfishWarning,
)
from ..runtime.files.folder_model import FolderModel
from ..runtime.files.generation_settings import warn_of
from ..runtime.files.model_file import ModelFile
from ..runtime.interfaces import DraftLengthPolicy, ModelInfo, Proposer, Weights
from ..runtime.model.model import DraftWeights, Model
from ..runtime.profiling.calibrate import Calibration
from ..runtime.profiling.engine_trial import Choice, Job
from ..runtime.progress import Progress
from ..runtime.speculation.proposers import default_proposers
from ..runtime.text.chat_template import ChatTemplate
from .broken_weights import explained, naming
from .choosing import choose, open_first_right, refuse_impossible
from .draft import open_draft, pays_here
from .load_options import DraftModel, LoadOptions, NamedDraft, SelfCopy, draft_of, policy_of, quality_of
from .measuring import calibration, narrow_steps
from .opening import Place, resolve, rules_of
from .options import Wish
from .speech import kept_speech
from .vocabulary import read_tokenizer
from .way_out import naming_others, with_way_out

__all__ = ["load", "load_with", "resolve"]


def load(
    path: str | os.PathLike[str],
    engine: str | None = None,
    device: str | None = None,
    draft: str | os.PathLike[str] | None = "auto",
    speculate: bool | DraftLengthPolicy = True,
    *,
    draft_engine: str | None = None,
    draft_cache: CachePolicy | str | None = None,
    cache: CachePolicy | str | None = None,
    quality: float | str | None = None,
    kv_dtype: str | None = None,
    max_context: int | None = None,
    threads: int | None = None,
    exact: bool = True,
    narrow: bool | None = None,
    options: Mapping[str, object] | None = None,
    job: Job | None = None,
    proposers: Sequence[Proposer] | None = None,
    progress: Progress | None = None,
    suppress: bool = True,
) -> Model:
    """A model, ready to generate.

    path: a catalogue name ("smollm2-135m"), a .gguf file, a folder (a bundle, a Hugging Face folder, or a decoder for
        OpenVINO or ONNX Runtime that another tool made), "hf:ORG/NAME[:FILE]" or "ollama:NAME" (docs/models.md).
    engine: "onnx", "openvino", "llamacpp", "reference"; None tries every installed engine that can open the model
        briefly, once, and takes the one that does the job soonest. PILOTFISH_ENGINE does the same as the argument.
    device: "cpu", or an engine's own name for a device; None is every real device in turn.
    draft: path or name of a smaller model, best one with the same vocabulary (docs/drafts.md); "auto" is what the
        bundle names, unless it is known not to pay here; "self", or "self:" and a cache policy, drafts with the model
        itself over a compressed copy of its cache (docs/kv-cache.md); None is none.
    speculate: False is plain decoding; a DraftLengthPolicy replaces the default (RenewalReward).
    draft_engine: runs the draft; None is the target's engine, on the same device.
    draft_cache: how the draft model's own cache is compressed, as `cache`; it changes no answer.
    cache: how the KV cache is compressed once it is full: a policy or its name, "snapkv" or "snapkv:budget=512"
        (docs/kv-cache.md); None keeps everything. It changes the answers; drafts still do not.
    quality: how often, from 0 to 1, a smaller cache must say what the full one says; "auto" is 0.98. With `cache`,
        the full cache is kept until that is known to hold, and then dropped; with draft="self" alone, the size of the
        drafts' cache follows it (docs/kv-cache.md).
    kv_dtype: how it is stored, "int8" (onnx), "f16" or, keys and values apart, "u8/u4"; None is the engine's exact
        default.
    max_context: entries the cache may hold; the default is what the model was trained for.
    threads: None is measured. PILOTFISH_THREADS does the same as the argument.
    exact: the widths of steps follow from the text, so that drafts cannot change a bit; False lifts it for speed.
    narrow: whether steps where the text repeats nothing are one row wide and carry no draft (docs/exactness.md); None
        is where a step with room for a draft costs clearly more, as was measured once.
    options: settings of one engine alone, see its page in docs.
    job: what the choice is made for; the default is a prompt of 256 tokens and an answer of 128.
    proposers: who drafts besides a draft model; the default looks the text's end up in the text before it, and copies
        from the source of an encoder-decoder model.
    progress: called while files are fetched and converted, which happens once.
    suppress: False leaves out what the model's own settings for generating do to its answers, such as tokens that are
        never to be said (docs/encoder-decoder.md).

    Before an answer is trusted, the device answers a question with a known answer. A wrong one moves on to the next
    device with a PilotfishWarning, or is an EngineError where engine and device were named.

    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError, EngineMissingError, EngineError, OptionError,
    AbilityError, DownloadError or CacheWriteError, each with the way out.
    """
    return load_with(
        path,
        LoadOptions(
            engine=engine,
            device=device,
            draft=draft_of(draft),
            speculate=speculate,
            draft_engine=draft_engine,
            draft_cache=policy_of(draft_cache),
            cache=policy_of(cache),
            quality=quality_of(quality),
            kv_dtype=kv_dtype,
            max_context=max_context,
            threads=threads,
            exact=exact,
            narrow=narrow,
            options=options or {},
            job=job,
            proposers=proposers,
            suppress=suppress,
        ),
        progress,
    )


def load_with(path: str | os.PathLike[str], options: LoadOptions, progress: Progress | None = None) -> Model:
    """A model, ready to generate: load() with its parameters as one value."""
    report = progress or (lambda what, share: None)
    wish = options.wish()
    refuse_impossible(wish)
    if options.draft_engine is not None:
        backends.installed(options.draft_engine)
    target = resolve(path, report)
    if options.max_context is not None and not target.is_encoder_decoder:
        known = target.context_length
        whole("max_context", options.max_context, 2, known, hint="the model was trained for no more")
    if isinstance(target, FolderModel):  # of a bundle its export has told it
        warn_of(target.generation, str(target), stacklevel=4)
    draft = _draft_file(target, options, report)
    if draft is None:
        options.require_draft()
    with naming_others(target, wish.engine):
        places, choice = choose(target, wish, report)
        weights, opened, place, notes = open_first_right(target, places, report)
    assistant: DraftWeights | None = None
    try:
        with naming(target):
            measured = calibration(weights, report)
        why = _no_drafts(weights.info, measured, options.exact)
        if why and options.length_policy is not None:
            options = replace(options, speculate=False, draft=None)
            warnings.warn(f"{target} is decoded without drafts: {why}", PilotfishWarning, stacklevel=3)
        narrow = _narrow(options, weights, measured)
        named = isinstance(options.draft, NamedDraft)
        if narrow and not options.narrow and isinstance(options.draft, DraftModel | SelfCopy):
            warnings.warn(_hardly_drafts(weights.info, measured), PilotfishWarning, stacklevel=3)
        if named and narrow:
            draft = None
        if named and draft is not None and pays_here(target, draft, weights.info) is False:
            draft = None
        if draft is not None and options.length_policy is not None:
            beside = _beside(wish, options, place)
            assistant, more = open_draft(target, read_tokenizer(opened), draft, beside, report, named=named)
            assistant = replace(assistant, cache=options.draft_cache)
            notes += more
        model = _model(target, opened, weights, measured, assistant, options, narrow, choice)
    except AbilityError as error:
        told = with_way_out(error, weights.info, target)
        _close(weights, assistant)
        raise told from error
    except BaseException:
        _close(weights, assistant)
        raise
    for note in notes:
        warnings.warn(
            f"{note}; went on with {model.info.engine} on {model.info.device}", PilotfishWarning, stacklevel=3
        )
    return model


def _draft_file(target: ModelFile, options: LoadOptions, report: Progress) -> ModelFile | None:
    """The draft model that was asked for, or that the target names."""
    if isinstance(options.draft, DraftModel):
        return resolve(options.draft.path, report)
    if isinstance(options.draft, NamedDraft) and options.speculate and (named := target.named_draft()) is not None:
        return resolve(named, report)
    return None


def _beside(wish: Wish, options: LoadOptions, place: Place) -> Wish:
    """What is asked of the engine that runs the draft of a target that runs at a place."""
    beside = replace(
        wish, engine=options.draft_engine or place.backend.name, threads=place.threads, cache=None, copied=None
    )
    if options.draft_engine is None:
        return beside
    return replace(beside, device=None, kv_dtype=None, options={})  # those are of the target's engine


def _model(
    target: ModelFile,
    opened: ModelFile,
    weights: Weights,
    measured: Calibration,
    assistant: DraftWeights | None,
    options: LoadOptions,
    narrow: bool,
    choice: Choice,
) -> Model:
    """The model over opened weights. opened: what they were read from, which may have been made of the target."""
    rules = rules_of(target, weights.info.vocab_size)
    template = opened.chat_template
    return Model(
        weights,
        read_tokenizer(opened),
        None if template is None else ChatTemplate(template),
        measured,
        draft=assistant,
        policy=options.length_policy,
        proposers=_lookups(target, weights.info, narrow) if options.proposers is None else options.proposers,
        exact=options.exact,
        narrow=narrow,
        self_draft=options.self_draft,
        cache=options.cache,
        quality=options.quality,
        max_context=options.max_context,
        choice=choice,
        rules=rules if options.suppress else rules.lifted(),
        explain=partial(_explained, target=target, info=weights.info),
    )


def _lookups(target: ModelFile, info: ModelInfo, narrow: bool) -> Sequence[Proposer]:
    """Who drafts by default; with what is known of the own speech of a model that has one."""
    speaks = not narrow and not target.is_encoder_decoder
    return default_proposers(info, kept_speech(target, info.vocab_size) if speaks else None, narrow=narrow)


def _no_drafts(info: ModelInfo, measured: Calibration, exact: bool) -> str:
    """Why these weights are decoded without drafts, in words; empty where they are not."""
    if info.rewinds == 0:
        return (
            f"it keeps a state of all it has read, and {info.engine} cannot take rejected drafts out of that of this "
            "architecture"
        )
    if exact and not measured.rows.drafts and measured.rows.free().maximum > 1:
        return (
            f"on {info.engine} a row of its graph has other bits beside other rows, so that a draft, even a rejected "
            "one, would change the answer. exact=False (--no-exact) drafts all the same"
        )
    return ""


def _narrow(options: LoadOptions, weights: Weights, measured: Calibration) -> bool:
    """Whether steps where the text repeats nothing are one row wide. Raises OptionError where they cannot be.

    The draft has no say in it: what is drafted would change the answer otherwise, if only by its last bits.
    """
    has_single = 1 in measured.curve.measured
    if options.narrow and weights.info.encoder is not None:
        raise OptionError("narrow=True is for decoders, and this model is an encoder-decoder; leave it out.")
    if options.narrow and not has_single:
        info = weights.info
        raise OptionError(f"narrow=True needs steps of one row, which {info.engine} on {info.device} does not run.")
    can = options.exact and not options.gated and weights.info.encoder is None and has_single
    if not can or options.narrow is False or measured.rows.rule().minimum == 1:
        return False
    return options.narrow or narrow_steps(weights, measured)


def _hardly_drafts(info: ModelInfo, measured: Calibration) -> str:
    """What is said to whoever gave a draft model where it has little to do."""
    return (
        f"on {info.engine} two rows take {measured.price_of_exactness:.2f} times as long as one here, so that the "
        "draft model drafts only where the text repeats itself; narrow=False (--no-narrow) lets it draft everywhere, "
        "in steps whose last bits may differ"
    )


def _explained(error: PilotfishError, target: ModelFile, info: ModelInfo) -> PilotfishError:
    """What an answer's error says to who loaded the model."""
    if isinstance(error, NotFiniteError):
        return explained(error, target)
    return with_way_out(error, info, target) if isinstance(error, AbilityError) else error


def _close(weights: Weights, assistant: DraftWeights | None) -> None:
    weights.close()
    if assistant is not None:
        assistant.weights.close()
