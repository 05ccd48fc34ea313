"""From generation_config.json, or config.json of older folders, to what a bundle keeps of it.

What transformers' generate() does to logits is kept, how tokens are drawn is the caller's, and what changes an answer
in another way is named (`Generation.unheeded`): nothing that is set is dropped in silence.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ..errors import ModelFileError, PilotfishWarning
from ..sampling.generation import Generation
from ..text.tokenizer import Tokenizer

_KEPT = (  # as they are
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "max_length",
    "max_new_tokens",
    "exponential_decay_length_penalty",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "no_timestamps_token_id",
    "max_initial_timestamp_index",
)
_READ_ELSEWHERE = frozenset(
    {
        *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "forced_eos_token_id"),
        *("decoder_start_token_id", "forced_bos_token_id", "forced_decoder_ids", "eos_token_id"),
        *("is_multilingual", "lang_to_id", "task_to_id"),
    }
)
_DRAWING = frozenset(  # how tokens are drawn, which whoever asks decides
    {
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        "num_return_sequences",
    }
)
_HARMLESS = frozenset(  # which change no text, or only how it is computed
    {
        *("transformers_version", "_from_model_config", "_commit_hash", "pad_token_id", "bos_token_id", "use_cache"),
        *("cache_implementation", "cache_config", "compile_config", "disable_compile", "low_memory"),
        *("prefill_chunk_size", "continuous_batching_config", "output_attentions", "output_hidden_states"),
        *("output_scores", "output_logits", "return_dict_in_generate", "remove_invalid_values", "is_assistant"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens"),
        *("max_matching_ngram_size", "alignment_heads", "median_filter_width", "prev_sot_token_id"),
    }
)
_OFF = {"guidance_scale": 1.0, "num_beam_groups": 1}  # values that do nothing, where it is not a false one
_LEGACY = (*_KEPT, *_READ_ELSEWHERE, *_DRAWING, *_OFF, "diversity_penalty", "renormalize_logits", "penalty_alpha")
_LANGUAGE = re.compile(r"(?P<code>[a-z]{2,3}_[A-Z][A-Za-z]{1,3})")  # a special token of mBART or NLLB: fr_XX
_M2M100 = re.compile(r"__(?P<code>[a-z]{2,3})__")
_MARIAN = re.compile(r">>(?P<code>[^<>]+)<<")  # no special token, and no piece of a text


@dataclass(frozen=True, slots=True)
class Generating:
    """The settings for generating, as a manifest has them."""

    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    generation: Generation = field(default_factory=Generation)


@dataclass(frozen=True, slots=True)
class Languages:
    """Languages and their tokens. in_source: a token stands before the source, else before the answer."""

    tokens: Mapping[str, int]
    in_source: bool = False


def said_by(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers would take for the settings for generating: all of generation_config.json, or, in a folder
    without one, those of config.json.

    settings: the former, empty where there is none; config: the latter, as it is in the file.
    """
    if settings:
        return dict(settings)
    found = {name: config[name] for name in _LEGACY if config.get(name) is not None}
    if config.get("force_bos_token_to_be_generated") and "forced_bos_token_id" not in found:
        found["forced_bos_token_id"] = config.get("bos_token_id")
    return found


def checked_settings(said: Mapping[str, Any], vocab_size: int, languages: Languages | None = None) -> Generating:
    """What said_by() gave, checked. languages: those of the tokenizer. Raises ModelFileError."""
    ends = numbers(said.get("eos_token_id"))
    words = [word for word in listed(said, "bad_words_ids") if isinstance(word, (list, tuple)) and word]
    forbidden = [tuple(word) for word in words if list(word) not in [[end] for end in ends]]
    values: dict[str, Any] = {name: said[name] for name in _KEPT if said.get(name) is not None}
    values["bad_words_ids"] = [word for word in forbidden if len(word) > 1 and _all_known(word, vocab_size)]
    values["sequence_bias"] = [
        (word, bias) for word, bias in _biases(listed(said, "sequence_bias")) if _all_known(word, vocab_size)
    ]
    values["forced_eos_token_id"] = known(numbers(said.get("forced_eos_token_id")), vocab_size)
    values["languages"] = {} if languages is None else dict(languages.tokens)
    values["language_in_source"] = languages is not None and languages.in_source
    if said.get("is_multilingual") is not False:
        values["languages"] |= {name.strip("<|>"): token for name, token in _named(said, "lang_to_id").items()}
        values["tasks"] = dict(_named(said, "task_to_id"))
    values["unheeded"] = unheeded(said)
    try:
        found = Generation.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelFileError(
            f"the settings for generating hold {first['loc'][0]} = {said.get(str(first['loc'][0]))!r}: {first['msg']}. "
            "Correct it in generation_config.json (or config.json)."
        ) from error
    single = [word[0] for word in forbidden if len(word) == 1]
    return Generating(
        suppress_tokens=known([*listed(said, "suppress_tokens"), *single], vocab_size),
        begin_suppress_tokens=known(listed(said, "begin_suppress_tokens"), vocab_size),
        generation=found,
    )


def unheeded(said: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that are set and that nothing here does."""
    covered = _READ_ELSEWHERE | _DRAWING | _HARMLESS | set(_KEPT)
    return tuple(
        sorted(name for name, value in said.items() if name not in covered and value and value != _OFF.get(name))
    )


def warn_of(generation: Generation, model: str, stacklevel: int = 3) -> None:
    """Name what is left out."""
    if generation.unheeded:
        warnings.warn(
            f"{model} sets {', '.join(generation.unheeded)} for generating, and that is not done here: answers may "
            "differ from those of transformers.",
            PilotfishWarning,
            stacklevel=stacklevel,
        )


def languages_of(tokenizer: Tokenizer) -> Languages:
    """The languages that a translator's vocabulary has tokens for, by the names that a user gives."""
    codes = {m["code"]: i for text, i in tokenizer.named_tokens.items() if (m := _MARIAN.fullmatch(text))}
    if codes:
        return Languages(dict(sorted(codes.items())), in_source=True)
    named = {}
    for text in sorted(tokenizer.special_tokens):
        for pattern in (_LANGUAGE, _M2M100):
            if (m := pattern.fullmatch(text)) and (i := tokenizer.id_of(text)) is not None:
                named[m["code"]] = i
    return Languages(named)


def listed(said: Mapping[str, Any], name: str) -> Sequence[Any]:
    """A setting that is a list, or nothing. Raises ModelFileError."""
    value = said.get(name)
    if value is not None and not isinstance(value, (list, tuple)):
        raise ModelFileError(f"{name} is {value!r} in the settings for generating, but must be a list or null.")
    return value or ()


def _named(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A setting that names tokens, or nothing. Raises ModelFileError."""
    value = said.get(name)
    if value is not None and not isinstance(value, dict):
        raise ModelFileError(f"{name} is {value!r} in the settings for generating, but must name tokens, or be null.")
    return value or {}


def numbers(value: Any) -> tuple[Any, ...]:
    """A setting that is a token, several or none."""
    return tuple(value) if isinstance(value, (list, tuple)) else () if value is None else (value,)


def known(ids: Iterable[Any], vocab_size: int) -> tuple[int, ...]:
    """Those that are tokens; -1 stands for none."""
    whole = {i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size}
    return tuple(sorted(whole))


def _all_known(word: Sequence[Any], vocab_size: int) -> bool:
    """Whether a run of tokens can be said at all. What is no number stays, to be named by the checks that follow."""
    return not any(isinstance(i, int) and i >= vocab_size for i in word)


def _biases(pairs: Sequence[Any]) -> list[tuple[tuple[Any, ...], Any]]:
    found = []
    for pair in pairs:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], (list, tuple))):
            raise ModelFileError(f"sequence_bias holds {pair!r}, but must hold pairs of a list of tokens and a number.")
        found.append((tuple(pair[0]), pair[1]))
    return found
