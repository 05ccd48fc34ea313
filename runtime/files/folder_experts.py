"""Mixtures of experts in Hugging Face folders: what config.json says of them, and their tensors by GGUF names.

On disk each expert is there for itself, or they are one tensor with gate and up in it (granitemoe; gpt-oss, also in
MXFP4). Source: transformers, conversion_mapping.py and the models' own files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import ModelFileError
from .decoder_description import MLP
from .decoder_file import StoredTensor
from .folder_settings import Settings
from .fused_tensors import FusedTensor, Mxfp4Tensor
from .safetensors_file import SafeTensor
from .stacked_tensor import StackedTensor

_ALL = "experts.*"  # how the tensor of all experts is called here
_MLP_NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
_MEMBER = re.compile(r"(model\.layers\.\d+\.\w+)\.experts\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class _Fused:
    """Tensors of a layer that hold a projection, or gate and up, of all experts.

    turns: rows of gate and up take turns, otherwise one lies below the other. turned: outputs are the last axis.
    """

    both: str
    down: str
    turns: bool = False
    turned: bool = False


_FUSED = {  # by model_type; what stands behind the name is told apart in _apart()
    "granitemoe": _Fused("block_sparse_moe.input_linear", "block_sparse_moe.output_linear"),
    "gpt_oss": _Fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj", turns=True, turned=True),
}
_MXFP4_BYTES = 16  # of a block of 32 numbers
_ALIKE = {  # settings that change the computation, with the one value that is built
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "clip_qkv": None,
    "swiglu_limit": 7.0,
}


def is_mixture(s: Settings) -> bool:
    """Whether models of this model_type are."""
    return s.family.mixture is not None and "num_experts_per_tok" in s.folder.silent[s.kind]


def experts_metadata(s: Settings) -> dict[str, object]:
    """What a GGUF file says of the experts. Raises UnsupportedModelError for what is not built."""
    if not is_mixture(s):
        for name in ("num_local_experts", "num_experts"):
            if s.get(name):
                raise s.not_built(f"it is a mixture of experts ({name})")
        return {}
    mixture, size = s.family.mixture, s.folder.experts_size
    assert mixture is not None and size is not None
    for name, built in _ALIKE.items():
        if s.get(name) not in (built, None):
            raise s.not_built(f"its {name} is {s.get(name)!r:.60}, and {built} is built")
    whole = s.get("norm_topk_prob")
    if whole is not None and whole != mixture.whole:
        raise s.not_built(f"its norm_topk_prob is {whole!r:.60}, and {mixture.whole} is built")
    found: dict[str, object] = {
        "expert_count": _count(s),
        "expert_used_count": s.need("num_experts_per_tok", int),
        "expert_feed_forward_length": s.need(size, int),
    }
    if mixture.shared:
        found["expert_shared_feed_forward_length"] = s.need("shared_expert_intermediate_size", int)
    return found


def expert_names(kind: str) -> Mapping[str, str]:
    """The tensors of a layer of this model_type beside those of any decoder, and what GGUF files call them."""
    block = "block_sparse_moe" if kind in ("mixtral", "granitemoe") else "mlp"
    router = {"granitemoe": "router.layer", "gpt_oss": "router"}.get(kind, "gate")
    inner = _MIXTRAL if kind == "mixtral" else _MLP_NAMES
    found = {f"{block}.{_ALL}.{inner[x]}": f"ffn_{x}_exps" for x in MLP}
    found |= {f"mlp.shared_expert.{_MLP_NAMES[x]}": f"ffn_{x}_shexp" for x in MLP}
    return {
        **found,
        f"{block}.{router}": "ffn_gate_inp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        "self_attn.sinks": "attn_sinks",
    }


def gathered(s: Settings, stored: Iterable[tuple[str, StoredTensor]]) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a mixture with those of experts as one for each projection, as expert_names() calls them.

    Raises ModelFileError where experts are missing or differ.
    """
    members: dict[str, dict[int, StoredTensor]] = {}
    fused: dict[str, SafeTensor] = {}
    form = _FUSED.get(s.kind)
    for name, tensor in stored:
        inner = ".".join(name.split(".")[3:])
        if found := _MEMBER.fullmatch(name):
            members.setdefault(f"{found[1]}.{_ALL}.{found[3]}", {})[int(found[2])] = tensor
        elif form is not None and inner.startswith((form.both, form.down)) and isinstance(tensor, SafeTensor):
            fused[name] = tensor
        elif inner == "self_attn.sinks":
            yield f"{name}.weight", tensor
        elif inner == "mlp.shared_expert_gate.weight" and isinstance(tensor, SafeTensor) and tensor.shape[:1] == (1,):
            yield name, replace(tensor, shape=tensor.shape[1:])
        else:
            yield name, tensor
    for name, those in members.items():
        yield name, _stacked(s, name, those)
    if form is not None:
        yield from _apart(s, form, fused)


def _stacked(s: Settings, name: str, members: Mapping[int, StoredTensor]) -> StackedTensor:
    """Experts that are there one by one, all of them, as one tensor."""
    n = _count(s)
    for i in range(n):
        if i not in members:
            raise ModelFileError(f"{s.path} has no tensor {name.replace('*', str(i))}. Fetch or copy the model again.")
    if len(members) > n:
        raise ModelFileError(
            f"{s.path} contradicts itself: config.json says that there are {n} experts, and there is a tensor "
            f"{name.replace('*', str(max(members)))}."
        )
    tensors = tuple(members[i] for i in range(n))
    odd = next((x for x in tensors if x.shape != tensors[0].shape), None)
    if odd is not None:
        raise ModelFileError(
            f"{s.path}: tensor {odd.name} has shape {odd.shape}, but {tensors[0].shape} was expected, as of the first "
            "expert."
        )
    return StackedTensor(name, tensors)


def _apart(s: Settings, form: _Fused, stored: Mapping[str, SafeTensor]) -> Iterator[tuple[str, StoredTensor]]:
    """Each projection of tensors that hold those of all experts."""
    block = form.both.split(".")[0]
    for name, tensor in stored.items():
        layer, inner = ".".join(name.split(".")[:3]), ".".join(name.split(".")[3:])
        stem = form.both if inner.startswith(form.both) else form.down
        end = inner.removeprefix(stem)
        if end == "_scales" and f"{layer}.{stem}_blocks" in stored:
            continue  # read with those
        packed = end == "_blocks"
        if end not in ("", ".weight", "_bias", "_blocks") or len(tensor.shape) != {"_bias": 2, "_blocks": 4}.get(
            end, 3
        ):
            yield name, tensor  # which is refused by its name
            continue
        scales = stored.get(f"{layer}.{stem}_scales")
        if packed and (scales is None or scales.shape != tensor.shape[:3] or tensor.shape[3] != _MXFP4_BYTES):
            raise ModelFileError(f"{s.path}: {name} and its scales are no matrices in MXFP4. Fetch or copy them again.")
        turned = form.turned and end == ""
        outputs = tensor.shape[-1 if turned else 1]
        for which, rows in _rows(form, stem, outputs).items():
            own = f"{layer}.{block}.{_ALL}.{_MLP_NAMES[which]}.{'bias' if end == '_bias' else 'weight'}"
            if packed:
                assert scales is not None
                yield own, Mxfp4Tensor(name, tensor, scales, rows)
            else:
                yield own, FusedTensor(name, tensor, rows, turned)


def _rows(form: _Fused, stem: str, outputs: int) -> dict[str, slice]:
    if stem == form.down:
        return {"down": slice(None)}
    if form.turns:
        return {"gate": slice(0, None, 2), "up": slice(1, None, 2)}
    return {"gate": slice(0, outputs // 2), "up": slice(outputs // 2, None)}


def _count(s: Settings) -> int:
    return s.need("num_experts" if s.says("num_experts") else "num_local_experts", int)
