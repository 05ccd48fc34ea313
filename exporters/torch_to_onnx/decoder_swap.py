"""A Hugging Face decoder with traced modules in the place of its own, for as long as it is being exported."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...runtime.errors import UnsupportedModelError
from ..quantize.blocks import Blocks
from ..quantize.weight_form import WeightForm
from .decoder_modules import Trace, TracedEmbedding, TracedLinear, TracedNorm, TracedRotary, attend, remember_tables
from .initializers import Matrix

_ATTENTION = "pilotfish_traced"
_PROBE = 1e-4  # relative error up to which a stand-in counts as what it stands for


@dataclass(slots=True)
class Swapped:
    """The model while it is traced. trace: the step being traced; matrices: by the name of their module; fitted: blocks
    that were chosen before."""

    model: Any  # PreTrainedModel
    matrices: dict[str, Matrix] = field(default_factory=dict)
    trace: Trace | None = None
    fitted: Mapping[str, Blocks] = field(default_factory=dict)

    def active(self) -> Trace:
        """The step that is being traced."""
        assert self.trace is not None
        return self.trace


@contextlib.contextmanager
def swapped(
    model: PreTrainedModel, form: WeightForm, accuracy_level: int, fitted: Mapping[str, Blocks] | None = None
) -> Iterator[Swapped]:
    """The model with every module exchanged that ONNX Runtime has an operator for; afterwards it is as it was.

    Each stand-in is compared on random input with what it stands for, so a family whose norm or rotary embedding is
    another one is an UnsupportedModelError and not a wrong graph. fitted: blocks of matrices, by module.
    """
    state = Swapped(model, fitted=fitted or {})
    _check_rotation(model)
    stand_ins = {
        name: new
        for name, module in model.named_modules()
        if (new := stand_in(state, name, module, form, accuracy_level)) is not None
    }
    before = {name: model.get_submodule(name) for name in stand_ins}
    try:
        for name, module in stand_ins.items():
            put(model, name, module)
        with _traced_functions(state):
            yield state
    finally:
        for name, module in before.items():
            put(model, name, module)


def put(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    """Another module under this name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def stand_in(state: Swapped, name: str, module: nn.Module, form: WeightForm, level: int) -> nn.Module | None:
    """What takes a module's place; None where it stays."""
    model, number = state.model, 1 + len(state.matrices)
    if isinstance(module, nn.Linear):
        head = module is model.get_output_embeddings()
        stored = form.output_form if head else form.layers
        fitted = (state.fitted[name],) if name in state.fitted else ()
        matrix = Matrix((module.weight,), stored, form.block, form.symmetric, fitted)
        state.matrices[name] = matrix
        return TracedLinear(matrix, module.bias, level, number, head)
    if isinstance(module, nn.Embedding):
        matrix = Matrix((module.weight,), form.embedding_form, form.block, form.symmetric)
        state.matrices[name] = matrix
        scale = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", None))
        return TracedEmbedding(matrix, None if scale is None else float(scale), number)
    if type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")):
        return _norm(name, module)
    if type(module).__name__.endswith("RotaryEmbedding"):
        return TracedRotary(_tables(model, module))
    return None


@torch.no_grad()
def _norm(name: str, module: nn.Module) -> TracedNorm:
    weight = module.get_parameter("weight").detach().float()
    epsilon = float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))
    x = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)) * 3
    expected = module(x)
    for gain in (weight, 1.0 + weight):
        ours = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * gain
        if close(ours, expected):
            return TracedNorm(gain.clone(), epsilon)
    raise UnsupportedModelError(f"{name} is a {type(module).__name__} that is not x / rms(x) * gain: not yet.")


@torch.no_grad()
def _tables(model: PreTrainedModel, module: Any) -> dict[str | None, tuple[Tensor, Tensor]]:
    """cos and sin, (n_positions, rotated / 2), of every kind of layer that has its own."""
    n = int(model.config.max_position_embeddings)
    x, positions = torch.zeros(1, 1, 1), torch.arange(n)[None]
    kinds = sorted(set(model.config.layer_types)) if hasattr(module, "layer_types") else [None]
    tables: dict[str | None, tuple[Tensor, Tensor]] = {}
    for kind in kinds:
        halves = []
        for table in module(x, positions) if kind is None else module(x, positions, kind):
            left, right = table[0].float().chunk(2, dim=-1)
            if not torch.equal(left, right):
                raise UnsupportedModelError(f"the {type(module).__name__} does not turn halves of a head: not yet.")
            halves.append(left.contiguous())
        tables[kind] = (halves[0], halves[1])
    return tables


@torch.no_grad()
def _check_rotation(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError where apply_rotary_pos_emb is not the rotation of halves that the operator does."""
    apply = getattr(_modeling(model), "apply_rotary_pos_emb", None)
    if apply is None:
        raise UnsupportedModelError(f"the family {model.config.model_type!r} rotates in a way of its own: not yet.")
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 3, 16, generator=draw) for _ in "qk")
    angles = torch.rand(1, 3, 8, generator=draw).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    for x, turned in zip((q, k), apply(q, k, cos, sin), strict=True):
        left, right = x.chunk(2, dim=-1)
        if not close(x * cos[:, None] + torch.cat([-right, left], dim=-1) * sin[:, None], turned):
            raise UnsupportedModelError(f"the family {model.config.model_type!r} does not turn halves of a head.")


@contextlib.contextmanager
def _traced_functions(state: Swapped) -> Iterator[None]:
    """Attention and rotation traced, instead of what the modeling file does."""
    modeling, model = _modeling(state.model), state.model

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        out = attend(state.active(), module, query, key, value, scaling=scaling, softcap=softcap, window=sliding_window)
        return out, None

    ALL_ATTENTION_FUNCTIONS[_ATTENTION] = attention
    rotation, implementation = modeling.apply_rotary_pos_emb, model.config._attn_implementation
    modeling.apply_rotary_pos_emb = remember_tables(state.active)
    model.set_attn_implementation(_ATTENTION)  # the model makes no masks for a name it does not know
    try:
        yield
    finally:
        modeling.apply_rotary_pos_emb = rotation
        model.set_attn_implementation(implementation)
        del ALL_ATTENTION_FUNCTIONS[_ATTENTION]  # the table outlives the model, which the function holds


def _modeling(model: PreTrainedModel) -> Any:
    return sys.modules[type(model).__module__]


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether a stand-in computes what it stands for."""
    return bool((ours - theirs).abs().max() <= _PROBE * theirs.abs().max())
