"""Experts of tiny models: as transformers holds them in memory, as GGUF files do, and as folders do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pilotfish.runtime.files.decoder_families import Mixture

Arrays = dict[str, npt.NDArray[np.float32]]


def experts_of(parameter: str, array: npt.NDArray[np.float32], *, turned: bool) -> Arrays:
    """The tensors of a GGUF file that a parameter of transformers 5 is; nothing for what is of no expert.

    Gate and up are one there: below each other, or, where rows are inputs (turned, as in gpt-oss), in turns.
    """
    found = re.fullmatch(
        r"model\.layers\.(\d+)\.\w+\.(?:experts\.)?(gate_up_proj|down_proj|input_linear|output_linear)(\.weight|_bias)?",
        parameter,
    )
    if found is None or array.ndim < 2 or "shared" in parameter or (array.ndim < 3 and found[3] != "_bias"):
        return {}
    end, at = "bias" if found[3] == "_bias" else "weight", f"blk.{found[1]}.ffn_"
    array = array.swapaxes(1, 2) if turned and end == "weight" else array
    if found[2] in ("down_proj", "output_linear"):
        return {f"{at}down_exps.{end}": np.ascontiguousarray(array)}
    gate, up = (array[:, 0::2], array[:, 1::2]) if turned else np.split(array, 2, axis=1)
    return {f"{at}{name}_exps.{end}": np.ascontiguousarray(x) for name, x in (("gate", gate), ("up", up))}


def random_experts(
    mixture: Mixture, metadata: Mapping[str, Any], hidden: int, ffn: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a layer's experts, by their names without the layer's."""
    n, size = metadata["expert_count"], metadata.get("expert_feed_forward_length", ffn)
    shapes: dict[str, tuple[int, ...]] = {"ffn_gate_inp": (n, hidden), "ffn_down_exps": (n, hidden, size)}
    shapes |= {"ffn_gate_exps": (n, size, hidden), "ffn_up_exps": (n, size, hidden)}
    found = {f"{name}.weight": shape for name, shape in shapes.items()}
    if mixture.biased:
        found |= {f"{name}.bias": shape[:-1] for name, shape in shapes.items()}
    if mixture.shared:
        shared = metadata["expert_shared_feed_forward_length"]
        found |= {"ffn_gate_inp_shexp.weight": (hidden,), "ffn_down_shexp.weight": (hidden, shared)}
        found |= {"ffn_gate_shexp.weight": (shared, hidden), "ffn_up_shexp.weight": (shared, hidden)}
    return found
