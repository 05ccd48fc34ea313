"""Weights rounded to the nearest value a form can store: what quantization costs before any engine is involved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from .weight_form import Stored, WeightForm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK = 1 << 22  # weights rounded at once: the steps in between take several copies
_EXACT = ("embed_positions", "relative_attention_bias")  # tables of encoder-decoders that stay floats
_BITS: dict[Stored, int] = {"int8": 8, "int4": 4}


@contextlib.contextmanager
def rounded(model: PreTrainedModel, form: WeightForm) -> Iterator[None]:
    """Every matrix of the model rounded while it is used, and whole again after it."""
    hooks: list[Any] = []
    output: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if name.endswith(_EXACT):
            continue
        if isinstance(module, torch.nn.Embedding):
            stored = form.embedding_form
        elif isinstance(module, torch.nn.Linear):
            stored = form.output_form if module is output else form.layers
        else:
            continue
        if stored != "fp32":
            hooks += _round_while_used(module, stored, form)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _round_while_used(module: Any, stored: Stored, form: WeightForm) -> list[Any]:
    whole: list[torch.Tensor] = []

    def before(module: Any, inputs: object) -> None:
        whole.append(module.weight.data)
        module.weight.data = nearest(module.weight.data, stored, form)

    def after(module: Any, inputs: object, output: object) -> None:
        module.weight.data = whole.pop()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def nearest(weight: torch.Tensor, stored: Stored, form: WeightForm) -> torch.Tensor:
    """The matrix as it can be stored, in blocks of columns; with one scale a row where they do not divide it."""
    if stored == "fp32":
        return weight
    if stored == "fp16":
        return weight.half().float()
    rows, columns = weight.shape
    block = form.block if columns % form.block == 0 else columns
    found = torch.empty_like(weight)
    step = max(1, _CHUNK // columns)
    for at in range(0, rows, step):
        part = weight[at : at + step]
        x = part.reshape(len(part), columns // block, block)
        found[at : at + step] = _on_grid(x, 2 ** _BITS[stored] - 1, form.symmetric).reshape(part.shape)
    return found


def _on_grid(x: torch.Tensor, top: int, symmetric: bool) -> torch.Tensor:
    """Blocks, the last axis, rounded to top + 1 levels."""
    if symmetric:
        scale = _not_zero(x.abs().amax(-1, keepdim=True) / (top // 2))
        return (x / scale).round().clamp(-(top // 2) - 1, top // 2) * scale
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = _not_zero((high - low) / top)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, top) - zero) * scale


def _not_zero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)
