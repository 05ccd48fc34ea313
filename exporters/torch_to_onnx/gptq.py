"""Layers rounded one column after the other, the columns that follow making good what is lost (GPTQ, arXiv:2210.17323).

What a matrix may be off is measured on what it is multiplied with: for inputs X and an error E of the weights it is
|X E^T|. So the inputs of a text decide, and each matrix sees what the rounded ones before it leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...runtime.interfaces import Tokens
from ...runtime.progress import Share
from ..quantize.blocks import Blocks
from ..quantize.nearest import quantize
from ..quantize.weight_form import WeightForm
from .initializers import Matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WIDTH = 256  # tokens read together; no attention reaches further
_COLUMNS = 128  # rounded before what they lose is handed to all the others
_DAMPING = 0.01  # of the mean square of an input: what a short text says of 9,000 columns is not the whole truth
_TINY = 1e-12


def fit_layers(
    model: PreTrainedModel,
    form: WeightForm,
    samples: Sequence[Tokens],
    progress: Share | None = None,
) -> dict[str, Blocks]:
    """The matrices of the layers in int4 blocks, by the names of their modules; without embedding and output.

    model: in f32; it is the same afterwards. samples: some thousand tokens of text in all.
    Memory: a byte for each weight, and for the widest matrix of m columns four times m^2 floats.
    """
    report, output = progress or (lambda share: None), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output}
    matrices = {n: Matrix((m.weight,), form.layers, form.block, form.symmetric) for n, m in modules.items()}
    found: dict[str, Blocks] = {}
    seen = _Inputs()
    hooks: list[Any] = []
    for name, matrix in matrices.items():
        if matrix.bits is None:
            continue
        hooks += _fit_when_used(name, modules[name], matrix, seen, found, lambda: report(len(found) / len(matrices)))
    try:
        with torch.inference_mode():
            model.base_model(input_ids=text_rows(samples), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def text_rows(samples: Sequence[Tokens]) -> Tensor:
    """The text in rows of equal length; what is left at its end is not read."""
    tokens = np.concatenate(list(samples)).astype(np.int64)
    width = min(_WIDTH, len(samples[0]))
    return torch.from_numpy(tokens[: len(tokens) // width * width].reshape(-1, width))


def _fit_when_used(
    name: str, module: nn.Linear, matrix: Matrix, seen: _Inputs, found: dict[str, Blocks], done: Callable[[], None]
) -> list[Any]:
    """Hooks that fit a matrix to what it is multiplied with, and let the pass go on with what came of it."""
    whole: list[Tensor] = []

    def before(module: Any, inputs: tuple[Tensor, ...]) -> None:
        found[name] = fit(module.weight.data, *seen.of(inputs[0]), matrix)
        whole.append(module.weight.data)
        module.weight.data = torch.from_numpy(found[name].dequantized())
        done()

    def after(module: Any, inputs: object, output: object) -> None:
        module.weight.data = whole.pop()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


class _Inputs:
    """What several matrices are multiplied with, looked at once."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._last is None or self._last[0] is not x:
            self._last = None  # frees it before the next is made
            self._last = x, curvature(x.reshape(-1, x.shape[-1]))
        return self._last[1]


def curvature(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of inputs (n, m): the mean square of each, and the upper Cholesky factor of the inverse of X^T X, the columns
    with the largest squares first."""
    h = x.T @ x / len(x)
    squares = h.diagonal().clone()
    order = torch.argsort(squares, descending=True, stable=True)
    h = h[order][:, order]
    h.diagonal().add_(_DAMPING * squares.mean() + _TINY)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return squares, torch.linalg.cholesky(inverse, upper=True)


def fit(weight: Tensor, squares: Tensor, factor: Tensor, matrix: Matrix) -> Blocks:
    """A matrix in blocks: each column rounded in turn, on the scales that suit the inputs, and its error handed on.

    squares, factor: curvature() of the inputs.
    """
    assert matrix.bits is not None
    grid = quantize(
        weight.numpy(), bits=matrix.bits, block=matrix.block, symmetric=matrix.symmetric, importance=squares.numpy()
    )
    order = torch.argsort(squares, descending=True, stable=True)
    block_of = order // matrix.block
    zeros = np.full(grid.scale.shape, grid.zero_point, np.float32)
    scale, zero = (torch.from_numpy(values).T[block_of].contiguous() for values in (grid.scale, zeros))
    inverse = torch.where(scale.abs() > _TINY, 1.0 / scale, torch.zeros_like(scale))
    left = weight.T[order].contiguous()  # (columns, rows), as all that follows
    codes = torch.empty(left.shape, dtype=torch.uint8)
    top = (1 << matrix.bits) - 1
    for at in range(0, len(left), _COLUMNS):
        stop = min(at + _COLUMNS, len(left))
        errors = torch.empty_like(left[at:stop])
        for i in range(at, stop):
            code = (left[i] * inverse[i] + zero[i]).round_().clamp_(0, top)
            codes[i] = code.to(torch.uint8)
            error = (left[i] - (code - zero[i]) * scale[i]) / factor[i, i]
            left[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1.0)
            errors[i - at] = error
        left[stop:].addmm_(factor[at:stop, stop:].T, errors, alpha=-1.0)
    back = torch.empty_like(codes)
    back[order] = codes
    return _blocks(back.T.contiguous().numpy(), grid, weight)


def _blocks(codes: Any, grid: Blocks, weight: Tensor) -> Blocks:
    made = Blocks(codes.reshape(grid.codes.shape), grid.bits, grid.scale, grid.zero_point, None)
    error = float(np.linalg.norm(made.dequantized() - weight.numpy()))
    return Blocks(
        made.codes, made.bits, made.scale, made.zero_point, None, error / max(float(torch.linalg.norm(weight)), _TINY)
    )
