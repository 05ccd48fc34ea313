"""Which tensor of transformers is which tensor of GGUF, in which order of rows and with which offset.

One table for both directions. Names as in the `gguf` package's TensorNameMap; a test compares them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..sources.families import SUPPORTED, Exported

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
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
}
_BEFORE = {"input_layernorm", "pre_feedforward_layernorm"}
_AFTER = {  # where norms follow attention and MLP, post_attention_layernorm is what it says
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_PACKED = {"self_attn.qkv_proj", "mlp.gate_up_proj"}
_APART = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a family lies in a GGUF file: what its layers are made of says it."""

    exported: Exported

    @property
    def architecture(self) -> str:
        """general.architecture."""
        return self.exported.architecture

    def gguf_name(self, name: str) -> str | None:
        """The GGUF name of a tensor of transformers; None where the family has no place for it."""
        stem, _, kind = name.rpartition(".")
        if stem in _TOP:
            return f"{_TOP[stem]}.{kind}"
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        inner = None if match is None else self._layer().get(match[2])
        if match is None or inner is None or (kind == "bias" and inner not in self.exported.family.biases):
            return None
        return f"blk.{match[1]}.{inner}.{kind}"

    def hf_name(self, name: str) -> str | None:
        """The name that transformers gives a tensor of GGUF; None for an unknown one."""
        stem, _, kind = name.rpartition(".")
        top = {gguf: hf for hf, gguf in _TOP.items()}
        if stem in top:
            return f"{top[stem]}.{kind}"
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        inner = None if match is None else {gguf: hf for hf, gguf in self._layer().items()}.get(match[2])
        return None if match is None or inner is None else f"model.layers.{match[1]}.{inner}.{kind}"

    def _layer(self) -> dict[str, str]:
        family = self.exported.family
        left_out = _APART if family.packed else _PACKED
        table = {hf: gguf for hf, gguf in _LAYER.items() if hf not in left_out}
        if not family.norms_after:
            return table
        return {hf: gguf for hf, gguf in (table | _AFTER).items() if family.norms_before or hf not in _BEFORE}

    def heads_of(self, name: str, n_heads: int, kv_heads: int) -> int | None:
        """How many heads' rows are permuted in this tensor (name of transformers); None where none are."""
        if not self.exported.family.pairs or ".self_attn." not in name:
            return None
        return {"q_proj": n_heads, "k_proj": kv_heads}.get(name.split(".")[-2])

    def offset_of(self, name: str) -> float:
        """What the values of this tensor (name of transformers) are larger by in the file."""
        return self.exported.norm_offset if "norm" in name else 0.0

    def keeps_f32(self, name: str) -> bool:
        """Whether a matrix (name of transformers) is never made f16."""
        return False

    def arranged(self, name: str, values: npt.NDArray[np.float32], config: PretrainedConfig) -> npt.NDArray[np.float32]:
        """The values of a tensor (name of transformers) as the file has them."""
        n_heads = self.heads_of(name, config.num_attention_heads, config.num_key_value_heads)
        if n_heads is not None:
            values = values[halves_to_pairs(len(values), n_heads)]
        offset = self.offset_of(name)
        return values + np.float32(offset) if offset else values


LAYOUTS = {name: Layout(exported) for name, exported in SUPPORTED.items() if "gguf" not in exported.not_to}


def pairs_to_halves(rows: int, n_heads: int) -> npt.NDArray[np.int64]:
    """The order that puts rows in pairs, as in the file, into halves, as in transformers."""
    return np.arange(rows).reshape(n_heads, rows // n_heads // 2, 2).swapaxes(1, 2).reshape(-1)


def halves_to_pairs(rows: int, n_heads: int) -> npt.NDArray[np.int64]:
    """The order back."""
    return np.arange(rows).reshape(n_heads, 2, rows // n_heads // 2).swapaxes(1, 2).reshape(-1)
