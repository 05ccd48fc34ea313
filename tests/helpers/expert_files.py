"""Experts of tiny models: as transformers holds them in memory, as GGUF files do, and as folders do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pilotfish.runtime.files.decoder_family import Mixture

MIXTURES = ("qwen3moe", "gpt-oss", "mixtral", "qwen2moe", "granitemoe", "olmoe")  # in family_files.MADE
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


def of_experts(kind: str, name: str, values: npt.NDArray[np.float32]) -> Arrays:
    """The tensors of a folder that one of expert_names() is."""
    if "*" not in name:
        return {name.removesuffix(".weight"): values} if name.endswith("sinks.weight") else {name: values[None]}
    if kind in _FUSED:
        return {name: values}  # which fused() puts together
    return {name.replace("*", str(i)): np.ascontiguousarray(x) for i, x in enumerate(values)}


_FUSED = {  # the names of gate and up together, and of down
    "granitemoe": ("block_sparse_moe.input_linear", "block_sparse_moe.output_linear"),
    "gpt_oss": ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
}


def fused(kind: str, tensors: Arrays) -> Arrays:
    """The tensors with those of experts as this model_type stores them."""
    found = {name: x for name, x in tensors.items() if "*" not in name}
    for name, gate in tensors.items():
        if "*" not in name or "gate_proj" not in name:
            continue
        up, down = (tensors[name.replace("gate_proj", x)] for x in ("up_proj", "down_proj"))
        at, bias, (both, single) = ".".join(name.split(".")[:3]), name.endswith("bias"), _FUSED[kind]
        if kind == "granitemoe":
            pair = {f"{both}.weight": np.concatenate([gate, up], axis=1), f"{single}.weight": down}
        else:
            turns = np.stack([gate, up], axis=2).reshape(len(gate), -1, *gate.shape[2:])
            end = "_bias" if bias else ""
            pair = {f"{both}{end}": turns, f"{single}{end}": down}
            pair = pair if bias else {key: x.swapaxes(1, 2) for key, x in pair.items()}
        found |= {f"{at}.{key}": np.ascontiguousarray(x) for key, x in pair.items()}
    return found


def random_experts(mixture: Mixture, metadata: Mapping[str, Any], hidden: int, ffn: int) -> dict[str, tuple[int, ...]]:
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
