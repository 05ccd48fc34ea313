"""Which tensor of transformers is which tensor of GGUF, in which order of rows and with which offset.

One table for both directions; a test compares the names with the `gguf` package's TensorNameMap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...runtime.files.folder_names import TensorNames

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Layout:
    """How a family lies in a GGUF file."""

    architecture: str  # general.architecture
    permuted: bool = False  # rows of q and k in pairs (i, i + 1), not in halves
    norm_offset: float = 0.0  # what the file's norm weights are larger by
    sandwich: bool = False
    fused: bool = False  # q, k, v are one matrix, gate and up another
    biases: frozenset[str] = frozenset()  # of which projections there may be some

    def gguf_name(self, name: str) -> str | None:
        """The GGUF name of a tensor of transformers; None where the family has no place for it."""
        stem, _, kind = name.rpartition(".")
        if kind == "bias" and stem.rpartition(".")[2] not in self.biases:
            return None
        return self._names().gguf(name)

    def hf_name(self, name: str) -> str | None:
        """The name that transformers gives a tensor of GGUF; None for an unknown one."""
        return self._names().transformers(name)

    def _names(self) -> TensorNames:
        return TensorNames(packed=self.fused, norms_after=self.sandwich)

    def heads_of(self, name: str, n_heads: int, kv_heads: int) -> int | None:
        """How many heads' rows are permuted in this tensor (name of transformers); None where none are."""
        if not self.permuted or ".self_attn." not in name:
            return None
        return {"q_proj": n_heads, "k_proj": kv_heads}.get(name.split(".")[-2])

    def offset_of(self, name: str) -> float:
        """What the values of this tensor (name of transformers) are larger by in the file."""
        return self.norm_offset if "norm" in name else 0.0

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


_QKV = frozenset(("q_proj", "k_proj", "v_proj"))
LAYOUTS = {
    "llama": Layout("llama", permuted=True),
    "mistral": Layout("llama", permuted=True),
    "qwen2": Layout("qwen2", biases=_QKV),
    "qwen3": Layout("qwen3"),
    "gemma3_text": Layout("gemma3", norm_offset=1.0, sandwich=True),
    "phi3": Layout("phi3", fused=True),
}


def pairs_to_halves(rows: int, n_heads: int) -> npt.NDArray[np.int64]:
    """The order that puts rows in pairs, as in the file, into halves, as in transformers."""
    return np.arange(rows).reshape(n_heads, rows // n_heads // 2, 2).swapaxes(1, 2).reshape(-1)


def halves_to_pairs(rows: int, n_heads: int) -> npt.NDArray[np.int64]:
    """The order back."""
    return np.arange(rows).reshape(n_heads, 2, rows // n_heads // 2).swapaxes(1, 2).reshape(-1)
