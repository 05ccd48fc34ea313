"""Which tensor of transformers is which tensor of GGUF, in which order of rows and with which offset.

One table for both directions; a test compares the names with the `gguf` package's TensorNameMap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...runtime.files.folder_names import TensorNames
from ..sources.families import SUPPORTED, Exported

if TYPE_CHECKING:
    from transformers import PretrainedConfig


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
        found = self._names().gguf(name)
        if found is not None and found.endswith(".bias") and found.split(".")[-2] not in self.exported.family.biases:
            return None
        return found

    def hf_name(self, name: str) -> str | None:
        """The name that transformers gives a tensor of GGUF; None for an unknown one."""
        return self._names().transformers(name)

    def _names(self) -> TensorNames:
        family = self.exported.family
        return TensorNames(packed=family.packed, norms_after=family.norms_after, norms_before=family.norms_before)

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
