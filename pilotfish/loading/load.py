"""load(): from a name or a path to a Model. The one place where backends, exporters and runtime meet."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from .. import backends
from ..runtime.cache.policies import CachePolicy, policy_by_name
from ..runtime.cache.quality_gate import AUTO, tried_policy
from ..runtime.checks import real, whole
from ..runtime.errors import AbilityError, NotFiniteError, OptionError, PilotfishError, PilotfishWarning
from ..runtime.files.bundle import DraftEntry
from ..runtime.files.model_file import context_length, named_draft, reads_source
from ..runtime.interfaces import DraftLengthPolicy, ModelInfo, Proposer, Weights
from ..runtime.model.model import DraftWeights, Model
from ..runtime.profiling.engine_trial import Choice, Job
from ..runtime.speculation.draft_length import RenewalReward
from ..runtime.speculation.proposers import SelfDraft
from ..runtime.text.chat_template import ChatTemplate
from .broken_weights import explained, naming
from .choosing import Wish, choose, open_first_right, refuse_impossible
from .draft import open_draft, remembered_verdict
from .measuring import calibration
from .opening import Place, Progress, read_rules, resolve
from .vocabulary import read_tokenizer
from .way_out import naming_others, with_way_out

__all__ = ["load", "resolve"]

SELF_POLICY = "sinks:budget=512,every=128"  # of draft="self"


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
    options: Mapping[str, object] | None = None,
    job: Job | None = None,
    proposers: Sequence[Proposer] | None = None,
    progress: Progress | None = None,
    suppress: bool = True,
) -> Model:
    """A model, ready to generate.

    path: a catalogue name ("smollm2-135m"), a .gguf file, or a bundle folder.
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
    exact: all steps in one row class, so that drafts cannot change a bit; False lifts it for speed.
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
    if max_context is not None:
        whole("max_context", max_context, 2)
    if speculate is False and draft not in (None, "auto"):
        raise OptionError("a draft model is given together with speculate=False; drop one of the two.")
    compression = policy_by_name(cache) if isinstance(cache, str) else cache
    wanted = _quality(quality)
    self_draft, draft = _self_draft(draft)
    report = progress or (lambda what, share: None)
    draft_policy = policy_by_name(draft_cache) if isinstance(draft_cache, str) else draft_cache
    job = job or (Job() if speculate else Job(acceptance=0.0))
    copied = (self_draft if speculate else None) or (None if wanted is None else compression)
    wish = Wish(engine, device, threads, kv_dtype, options or {}, job, exact, compression, copied).with_environment()
    refuse_impossible(wish)
    if draft_engine is not None:
        backends.installed(draft_engine)
    if wanted is not None:
        tried_policy(compression, self_draft)
    found = resolve(path, report)
    if max_context is not None and not reads_source(found):
        known = context_length(found)
        whole("max_context", max_context, 2, known, hint="the model was trained for no more")
    if draft not in (None, "auto"):
        draft = resolve(draft, report)
    named = named_draft(found) if draft == "auto" and speculate else None
    if draft_engine is not None and named is None and draft in (None, "auto"):
        raise OptionError(f"draft_engine is {draft_engine!r}, but there is no draft model; give one, or drop it.")
    if draft_cache is not None and named is None and draft in (None, "auto"):
        raise OptionError(f"draft_cache is {draft_cache!r}, but there is no draft model; give one, or drop it.")
    weights, location, place, notes, choice = _opened(found, wish, report)
    policy = _length_policy(speculate, found, weights.info)
    assistant: DraftWeights | None = None
    try:
        tokenizer, template = read_tokenizer(location)
        rules = read_rules(found, weights.info.vocab_size)
        if draft == "auto":  # what the bundle names, unless it was found not to pay here
            draft = None if named is None or _does_not_pay(found, named, weights.info) else named[0]
        if draft is not None and policy is not None:
            beside = replace(wish, engine=draft_engine or place.backend.name, threads=place.threads)
            beside = replace(beside, cache=None, copied=None)
            if draft_engine is not None:  # whose devices, types and options are not the target's
                beside = replace(beside, device=None, kv_dtype=None, options={})
            entry = None if named is None else named[1]
            assistant, more = open_draft(found, tokenizer, draft, beside, report, entry)
            assistant = replace(assistant, cache=draft_policy)
            notes += more
        with naming(found):
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
            self_draft=self_draft,
            cache=compression,
            quality=wanted,
            max_context=max_context,
            choice=choice,
            rules=rules if rules is None or suppress else rules.lifted(),
            explain=partial(_explained, path=found, info=weights.info),
        )
    except AbilityError as error:
        told = with_way_out(error, weights.info, found)
        _close(weights, assistant)
        raise told from error
    except BaseException:
        _close(weights, assistant)
        raise
    for note in notes:
        warnings.warn(
            f"{note}; went on with {model.info.engine} on {model.info.device}", PilotfishWarning, stacklevel=2
        )
    return model


def _opened(path: Path, wish: Wish, report: Progress) -> tuple[Weights, Path, Place, tuple[str, ...], Choice]:
    """What open_first_right() gives of the places that are chosen, and the choice."""
    with naming_others(path, wish.engine):
        places, choice = choose(path, wish, report)
        return *open_first_right(path, places, report), choice


def _length_policy(speculate: bool | DraftLengthPolicy, path: Path, info: ModelInfo) -> DraftLengthPolicy | None:
    """How many tokens are drafted; None: none, and a warning says so where drafts were wished for."""
    policy: DraftLengthPolicy | None = RenewalReward() if speculate is True else (speculate or None)
    if policy is None or info.rewinds != 0:
        return policy
    warnings.warn(
        f"{path} is decoded without drafts: it keeps a state of all it has read, and {info.engine} cannot take "
        "rejected drafts out of that of this architecture",
        PilotfishWarning,
        stacklevel=3,
    )
    return None


def _explained(error: PilotfishError, path: Path, info: ModelInfo) -> PilotfishError:
    """What an answer's error says to who loaded the model."""
    if isinstance(error, NotFiniteError):
        return explained(error, path)
    return with_way_out(error, info, path) if isinstance(error, AbilityError) else error


def _close(weights: Weights, assistant: DraftWeights | None) -> None:
    weights.close()
    if assistant is not None:
        assistant.weights.close()


def _self_draft(draft: str | os.PathLike[str] | None) -> tuple[CachePolicy | None, str | os.PathLike[str] | None]:
    """The policy of draft="self:POLICY", and what is left of `draft`: a model, "auto" or None."""
    if not isinstance(draft, str) or draft.partition(":")[0] != SelfDraft.name:
        return None, draft
    return policy_by_name(draft.partition(":")[2] or SELF_POLICY), None


def _quality(given: float | str | None) -> float | None:
    """A number between 0 and 1, which "auto" stands for, too."""
    if given is None:
        return None
    with contextlib.suppress(ValueError):
        given = AUTO if given == "auto" else float(given) if isinstance(given, str) else given
    return real("quality", given, "between 0 and 1 (0.98, say), or auto", lambda x: 0 < x < 1)


def _does_not_pay(target: Path, named: tuple[Path, DraftEntry], info: ModelInfo) -> bool:
    """Whether the bundle's draft is known to be a waste: by a check on this machine, else by its maker's."""
    path, entry = named
    here = remembered_verdict(target, path, info)
    return (entry.pays if here is None else here) is False
