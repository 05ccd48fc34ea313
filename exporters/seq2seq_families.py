"""The encoder-decoder families that can be exported, and what a manifest says of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig

ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "pegasus", "marian", "whisper")  # model_type of transformers

_UNBOUNDED = 2048  # entries offered where positions are relative and the configuration names no length


@dataclass(frozen=True, slots=True)
class PairFacts:
    """An encoder-decoder, as a manifest describes it. source_limit: tokens or frames; None where there is none."""

    context_length: int
    source_kind: Literal["text", "audio"]
    source_limit: int | None
    decoder_start: tuple[int, ...]
    eos_ids: tuple[int, ...]


def pair_facts(config: PretrainedConfig, generation: GenerationConfig | None) -> PairFacts:
    """What a configuration and the settings for generating say. Raises UnsupportedModelError without a start token."""
    said: Any = generation
    settings: Any = config
    kind = settings.model_type
    if kind == "whisper":
        length, limit = settings.max_target_positions, 2 * settings.max_source_positions
    elif kind in ("t5", "mt5"):
        length, limit = getattr(settings, "n_positions", None) or _UNBOUNDED, None
    else:
        length = limit = settings.max_position_embeddings
    ends = _either(said, settings, "eos_token_id")
    return PairFacts(
        context_length=int(length),
        source_kind="audio" if kind == "whisper" else "text",
        source_limit=limit,
        decoder_start=_decoder_start(settings, said),
        eos_ids=tuple(ends) if isinstance(ends, (list, tuple)) else () if ends is None else (int(ends),),
    )


def _decoder_start(settings: Any, said: Any) -> tuple[int, ...]:
    """Start token and whatever is forced to follow it: a language, or what a transcript is asked for."""
    start = _either(said, settings, "decoder_start_token_id")
    if start is None:
        raise UnsupportedModelError(
            f"the {settings.model_type} does not say which token its answers start from (decoder_start_token_id in "
            "config.json). Add it there."
        )
    found = [int(start)]
    forced = _either(said, settings, "forced_bos_token_id")
    if forced is not None:
        found.append(int(forced))
    for _, token in _either(said, settings, "forced_decoder_ids") or ():
        if token is not None:
            found.append(int(token))
    silent = getattr(said, "no_timestamps_token_id", None)
    if silent is not None and silent not in found:
        found.append(int(silent))
    return tuple(found)


def _either(said: Any, settings: Any, name: str) -> Any:
    value = getattr(said, name, None)
    return value if value is not None else getattr(settings, name, None)
