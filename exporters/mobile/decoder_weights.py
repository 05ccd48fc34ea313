"""Weights for the graph of fixed shapes: of a GGUF file as it stores them, or of a torch model, quantized."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import UnsupportedModelError
from ...runtime.files.decoder_description import DecoderShape, LayerKind
from ...runtime.files.decoder_family import Family
from ...runtime.files.rotation import Rotation
from ..onnx.decoder import Decoder, Layer, Linear, Mlp
from ..quantize.blocks import Blocks, Floats
from ..quantize.nearest import quantize
from ..quantize.weight_form import Stored, WeightForm
from ..sources.families import SUPPORTED, window_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..sources.model_source import ModelSource

_SMALLEST_BLOCK = 16


def beyond_llama(family: Family) -> str | None:
    """What a family's layers do that llama's do not, in words; None where they are made of the same parts."""
    llama = Family()
    reasons = {
        "it normalizes queries and keys": family.query_key_norm is not None,
        "its projections lie in one matrix": family.packed,
        "its norms lie elsewhere": (family.norms_before, family.norms_after) != (True, False),
        "it is a mixture of experts": family.mixture is not None and family.mixture.always,
        "its attention has sinks": family.sinks,
        "its activation is another": family.activation != llama.activation,
        "not all of its layers rotate": family.unrotated_every is not None,
        "it scales or caps what others do not": family.embedding_root or bool(family.scalars),
        "its layers see windows": family.windows is not None,
    }
    return next((why for why, so in reasons.items() if so), None)


STATIC_FAMILIES = tuple(name for name, exported in SUPPORTED.items() if beyond_llama(exported.family) is None)


def refuse_family(source: ModelSource) -> None:
    """Raise UnsupportedModelError where the graph of fixed shapes cannot express a family."""
    family = source.architecture
    why = beyond_llama(SUPPORTED[family].family)
    if why is None and window_of(source.config()) is not None:
        why = "its layers see windows (sliding_window)"
    if why is None:
        return
    raise UnsupportedModelError(
        f"the graph of fixed shapes cannot express this {family} yet, because {why}. Families it can: "
        f"{', '.join(STATIC_FAMILIES)}. Leave out the target onnx-static (and qnn, which is made of it)."
    )


def torch_decoder(model: PreTrainedModel, form: WeightForm) -> Decoder:
    """The decoder of a llama-like torch model; layers are quantized one at a time, as they are asked for."""
    config: Any = model.config
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def floats(name: str) -> Floats:
        values: Floats = parameters[name].detach().float().numpy()
        return values

    def matrix(name: str, stored: Stored) -> Blocks | Floats:
        return _stored(floats(name), stored, form)

    def layer(i: int) -> Layer:
        at = f"model.layers.{i}."

        def linear(name: str) -> Linear:
            bias = f"{at}{name}.bias"
            return Linear(matrix(f"{at}{name}.weight", form.layers), floats(bias) if bias in parameters else None)

        return Layer(
            attention_norm=floats(f"{at}input_layernorm.weight"),
            query=linear("self_attn.q_proj"),
            key=linear("self_attn.k_proj"),
            value=linear("self_attn.v_proj"),
            output=linear("self_attn.o_proj"),
            mlp_norm=floats(f"{at}post_attention_layernorm.weight"),
            mlp=Mlp(linear("mlp.gate_proj"), linear("mlp.up_proj"), linear("mlp.down_proj")),
        )

    shared = parameters["lm_head.weight"] is parameters["model.embed_tokens.weight"]
    tied = shared and form.embedding_form == form.output_form
    return Decoder(
        _shape(model, config),
        matrix("model.embed_tokens.weight", form.embedding_form),
        layer,
        floats("model.norm.weight"),
        None if tied else matrix("lm_head.weight", form.output_form),
    )


def dense(decoder: Decoder) -> Decoder:
    """The same decoder with every weight in f32."""

    def whole(weight: Blocks | Floats) -> Floats:
        return weight.dequantized() if isinstance(weight, Blocks) else weight

    def layer(i: int) -> Layer:
        made = decoder.layer(i)
        parts: dict[str, Any] = {
            name: Linear(whole(linear.weight), linear.bias)
            for name in ("query", "key", "value", "output", "gate", "up", "down")
            if isinstance(linear := getattr(made, name), Linear)
        }
        return replace(made, **parts)

    head = None if decoder.head is None else whole(decoder.head)
    return Decoder(decoder.shape, whole(decoder.embedding), layer, decoder.final_norm, head)


def _stored(values: Floats, stored: Stored, form: WeightForm) -> Blocks | Floats:
    """A matrix as the form says; floats stay f32, which is what this graph computes in."""
    if stored in ("fp32", "fp16"):
        return values if stored == "fp32" else values.astype(np.float16).astype(np.float32)
    block = form.block
    while block > _SMALLEST_BLOCK and values.shape[1] % block:
        block //= 2
    if values.shape[1] % block:
        return values
    return quantize(values, bits=8 if stored == "int8" else 4, block=block, symmetric=form.symmetric)


def _shape(model: PreTrainedModel, config: Any) -> DecoderShape:
    rotary: Any = model.get_submodule("model.rotary_emb")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotation = Rotation(rotary.inv_freq.detach().double().numpy(), float(rotary.attention_scaling))
    return DecoderShape(
        architecture=config.model_type,
        n_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        n_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        ffn_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        norm_epsilon=config.rms_norm_eps,
        layers=(LayerKind(rotation),) * config.num_hidden_layers,
    )
