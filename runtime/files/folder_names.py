"""Which tensor of transformers is which tensor of GGUF. Names as in the gguf package's TensorNameMap."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_model_projection": "per_layer_model_proj",
    "model.per_layer_projection_norm": "per_layer_proj_norm",
}
_BARE = {"layer_scalar": "layer_output_scale.weight"}  # whose names end without a kind
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
}
_NORMS_AFTER = {  # of families with a norm after attention and MLP, too
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_NORMS_BEFORE = {"input_layernorm", "pre_feedforward_layernorm"}


class TensorNames:
    """Names of a family's tensors.

    packed: q, k and v are one; norms_after, norms_before: of attention and MLP; mlp_norm: the GGUF name of that before
    the MLP; more: of layers, as transformers and GGUF have them.
    """

    def __init__(
        self,
        *,
        packed: bool,
        norms_after: bool,
        norms_before: bool = True,
        mlp_norm: str = "ffn_norm",
        more: Mapping[str, str] | None = None,
    ) -> None:
        apart = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"}
        left_out = apart if packed else {"self_attn.qkv_proj", "mlp.gate_up_proj"}
        layer = {hf: gguf for hf, gguf in _LAYER.items() if hf not in left_out}
        layer |= {"post_attention_layernorm": mlp_norm, **(more or {})}
        if norms_after:
            layer |= _NORMS_AFTER
        self._layer: Mapping[str, str] = {
            hf: gguf for hf, gguf in layer.items() if norms_before or hf not in _NORMS_BEFORE
        }

    def gguf(self, name: str) -> str | None:
        """The GGUF name of a tensor of transformers, what stands behind the last dot kept; None for an unknown one."""
        stem, _, kind = name.rpartition(".")
        if stem in _TOP:
            return f"{_TOP[stem]}.{kind}"
        bare = re.fullmatch(r"model\.layers\.(\d+)\.(\w+)", name)
        if bare is not None and bare[2] in _BARE:
            return f"blk.{bare[1]}.{_BARE[bare[2]]}"
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        inner = None if match is None else self._layer.get(match[2])
        return None if match is None or inner is None else f"blk.{match[1]}.{inner}.{kind}"

    def transformers(self, name: str) -> str | None:
        """The name that transformers gives a tensor of GGUF; None for an unknown one."""
        stem, _, kind = name.rpartition(".")
        top = {gguf: hf for hf, gguf in _TOP.items()}
        if stem in top:
            return f"{top[stem]}.{kind}"
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        bare = {gguf: hf for hf, gguf in _BARE.items()}
        if match is not None and f"{match[2]}.{kind}" in bare:
            return f"model.layers.{match[1]}.{bare[f'{match[2]}.{kind}']}"
        inner = None if match is None else {gguf: hf for hf, gguf in self._layer.items()}.get(match[2])
        return None if match is None or inner is None else f"model.layers.{match[1]}.{inner}.{kind}"
