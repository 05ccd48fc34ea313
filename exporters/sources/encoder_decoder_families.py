"""The encoder-decoder families that can be exported, and what a manifest says of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.files.generation_settings import listed, numbers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ENCODER_DECODERS = (  # model_type of transformers
    *("t5", "mt5", "umt5", "bart", "mbart", "m2m_100", "pegasus", "marian", "plbart", "blenderbot"),
    *("blenderbot-small", "whisper"),
)
_IN_BLOCKS = "its encoder attends in blocks of a long text, which are not traced here"
_EXPERTS = "mixtures of experts in an encoder or a decoder beside one are not traced here"
NOT_YET: Mapping[str, str] = {  # encoder-decoders by their model_type, and why they cannot be exported
    "longt5": f"{_IN_BLOCKS}, nor the averages of blocks that it attends to beside them",
    "led": f"{_IN_BLOCKS}, nor the tokens that are chosen to see and be seen by all (Longformer)",
    "pegasus_x": f"{_IN_BLOCKS}, nor the global tokens that it learns beside them",
    "bigbird_pegasus": f"{_IN_BLOCKS}, some of them drawn at random",
    "t5gemma": "its attention rotates positions, shares keys among heads, caps scores and has windows, and the graphs "
    "of encoder-decoders have none of that",
    "t5gemma2": "its decoder attends to source and answer at once, and the graphs of encoder-decoders do not",
    "prophetnet": "its decoder computes several next tokens at once, and one is traced here",
    "switch_transformers": _EXPERTS,
    "nllb-moe": _EXPERTS,
}
_RELATIVE = ("t5", "mt5", "umt5")  # whose positions are distances, with no end

_REFUSED = {  # entries that, where they are set, change the computation in ways not built
    "quantization_config": "its weights are quantized already; give the model that it was made from",
    "auto_map": "it brings program code of its own, which is never run",
}
_SIZES = ("vocab_size", "d_model", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "num_heads")
_MOST = 1 << 30
_UNBOUNDED = 2048  # entries offered where positions are relative and the configuration names no length


@dataclass(frozen=True, slots=True)
class EncoderDecoderFacts:
    """An encoder-decoder, as a manifest describes it. source_limit: tokens or frames; None where there is none."""

    context_length: int
    source_kind: Literal["text", "audio"]
    source_limit: int | None
    decoder_start: tuple[int, ...]
    eos_ids: tuple[int, ...]


def encoder_decoder_settings(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The entries of config.json of an encoder-decoder of a known family.

    Raises UnsupportedModelError for what cannot be exported yet, and ModelFileError for what cannot be.
    """
    kind = settings["model_type"]
    for name, why in _REFUSED.items():
        if settings.get(name):
            raise UnsupportedModelError(
                f"{path} holds a {kind} that cannot be exported: not yet, because {why} ({name})."
            )
    if settings.get("is_encoder_decoder") is False:
        raise UnsupportedModelError(f"{path} holds one half of a {kind}: not yet, only encoder and decoder together.")
    for name in _SIZES:
        value = settings.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MOST):
            raise ModelFileError(f"{path}: {name} is {value!r}, but must be a positive whole number.")
    return dict(settings)


def encoder_decoder_facts(config: PretrainedConfig, said: Mapping[str, Any]) -> EncoderDecoderFacts:
    """What a configuration and the settings for generating say. Raises UnsupportedModelError without a start token.

    said: the settings for generating, as said_by() finds them.
    """
    settings: Any = config
    kind, start = settings.model_type, _decoder_start(settings, said)
    if kind == "m2m_100" and settings.pad_token_id in start:
        raise UnsupportedModelError(
            f"the m2m_100's answers start from its padding ({settings.pad_token_id}), which has no position: not yet. "
            "See decoder_start_token_id in config.json."
        )
    if kind == "whisper":
        length, limit = settings.max_target_positions, 2 * settings.max_source_positions
    elif kind in _RELATIVE:
        length, limit = getattr(settings, "n_positions", None) or _UNBOUNDED, None
    else:
        length = limit = settings.max_position_embeddings
    return EncoderDecoderFacts(
        context_length=int(length),
        source_kind="audio" if kind == "whisper" else "text",
        source_limit=limit,
        decoder_start=start,
        eos_ids=tuple(int(end) for end in numbers(_either(said, settings, "eos_token_id"))),
    )


def _decoder_start(settings: Any, said: Mapping[str, Any]) -> tuple[int, ...]:
    """Start token and whatever is forced to follow it: a language, or what a transcript is asked for."""
    start = _either(said, settings, "decoder_start_token_id")
    if start is None:
        raise UnsupportedModelError(
            f"the {settings.model_type} does not say which token its answers start from (decoder_start_token_id in "
            "config.json). Add it there."
        )
    found = [int(start)]
    forced = said.get("forced_bos_token_id")
    if forced is not None:
        found.append(int(forced))
    for pair in listed({"forced_decoder_ids": _either(said, settings, "forced_decoder_ids")}, "forced_decoder_ids"):
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and pair[1] is not None:
            found.append(int(pair[1]))
    silent = said.get("no_timestamps_token_id")
    if silent is not None and silent not in found:
        found.append(int(silent))
    return tuple(found)


def _either(said: Mapping[str, Any], settings: Any, name: str) -> Any:
    """Of tokens that a model cannot do without config.json is believed, too."""
    return said[name] if said.get(name) is not None else getattr(settings, name, None)
