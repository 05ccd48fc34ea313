"""Linear layers as products of whole numbers, by scales of their inputs that a text was read for.

MatMulNBits rounds each row as it comes and multiplies row by row, so that 17 rows of a narrow matrix cost five times
what one costs. MatMulIntegerToFloat keeps a tile of rows in registers: less than twice. Its sums are exact, so a row's
bits do not depend on how many there are; but its inputs have one scale, which has to be known before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from ...runtime.interfaces import Floats
from .initializers import Matrix
from .passes import Parts, constant, remove_dead

# Processors without instructions for such dot products (VNNI) add two products up in 16 bits, and cut off what is more:
# 2 * 90 * 181 fits. Only inputs beyond what the text showed have codes above, and those are cut off in any case.
WEIGHT_LEVELS = 90  # on either side of zero
INPUT_LEVELS = 181
_HIGHEST_CODE = 255
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the range of an input that are tried
_BITS = 8
_CONTRIB = "com.microsoft"


@dataclass(frozen=True, slots=True)
class InputGrid:
    """What the inputs of a product are rounded to: scale * (code - zero_point), codes 0 to 255, above 181 for what is
    larger than all that was seen."""

    scale: float
    zero_point: int

    @classmethod
    def fitted(cls, x: Tensor) -> InputGrid:
        """The grid over a share of what was seen on which x is off by the least squares; beyond it values are cut."""
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        grids = [cls._over(share * low, share * high) for share in _SHARES]
        return min(grids, key=lambda grid: float((grid.rounded(x, INPUT_LEVELS) - x).square().mean()))

    @classmethod
    def _over(cls, low: float, high: float) -> InputGrid:
        scale = (high - low) / INPUT_LEVELS or 1.0
        return cls(scale, round(-low / scale))

    def rounded(self, x: Tensor, highest: int = _HIGHEST_CODE) -> Tensor:
        """The values of this grid that are nearest to x."""
        codes = (x / self.scale).round_().add_(self.zero_point).clamp_(0, highest)
        return codes.sub_(self.zero_point).mul_(self.scale)


InputGrids: TypeAlias = Mapping[int, InputGrid]
"""By the address of a layer's weights, which its traced stand-in keeps."""


def fit_inputs(model: nn.Module, read: Callable[[], object]) -> dict[int, InputGrid]:
    """A grid for the inputs of every linear layer, by what it sees while `read` has the model read a text.

    model: in f32; it is the same afterwards. read: one forward pass of all the text.
    """
    found: dict[int, InputGrid] = {}
    last: list[tuple[Tensor, InputGrid]] = []  # query, key and value see the same

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not last or last[0][0] is not inputs[0]:
            last[:] = [(inputs[0], InputGrid.fitted(inputs[0]))]
        found[module.get_parameter("weight").data_ptr()] = last[0][1]

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(before) for module in layers]
    try:
        with torch.inference_mode():
            read()
    finally:
        for hook in hooks:
            hook.remove()
    return found


class IntegerMatrix(Matrix):
    """Weights as MatMulIntegerToFloat takes them: codes (columns, rows), one scale a row."""

    __slots__ = ()

    @property
    def bits(self) -> int:
        return _BITS

    @property
    def key(self) -> tuple[Any, ...]:
        return (*tuple(p.data_ptr() for p in self.parameters), "integers")

    def parts(self, gathered: bool = False) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        rows, columns = self.shape
        return {"codes": ((columns, rows), torch.int8), "scale": ((rows,), torch.float32)}

    def values(self) -> tuple[dict[str, npt.NDArray[np.generic]], float]:
        whole: Floats = torch.cat([p.detach().float() for p in self.parameters]).numpy()
        scale = np.abs(whole).max(axis=1) / np.float32(WEIGHT_LEVELS)
        scale[scale == 0] = 1.0  # rows of zeros: tokens that were added to fill a table
        codes = np.rint(whole / scale[:, None])
        loss = float(np.linalg.norm(codes * scale[:, None] - whole) / max(float(np.linalg.norm(whole)), 1e-12))
        return {"codes": np.ascontiguousarray(codes.T.astype(np.int8)), "scale": scale}, loss


def multiply_integers(graph: ir.Graph, parts: Parts, grids: InputGrids) -> Parts:
    """Every product with int8 weights in blocks becomes one of whole numbers; the parts, with the new matrices."""
    changed, rounded = dict(parts), dict[ir.Value, tuple[ir.Value, InputGrid]]()
    for node in [node for node in graph if node.op_type == "MatMulNBits"]:
        x, codes, *_ = node.inputs
        assert x is not None and codes is not None and codes.name is not None
        matrix = parts[codes.name][0]
        if matrix.bits != _BITS:  # an output of int4 beside layers of int8
            continue
        if x not in rounded:
            grid = grids[matrix.parameters[0].data_ptr()]
            rounded[x] = _rounded(graph, x, grid, node), grid
        _multiply(graph, node, *rounded[x], matrix, changed)
    remove_dead(graph)
    return {name: part for name, part in changed.items() if name in graph.initializers}


def _rounded(graph: ir.Graph, x: ir.Value, grid: InputGrid, before: ir.Node) -> ir.Value:
    name = f"{x.name}.rounded"
    scale, zero = _grid_values(graph, name, grid)
    node = ir.Node("", "QuantizeLinear", [x, scale, zero])
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, ir.DataType.UINT8, x.shape
    graph.insert_before(before, node)
    return node.outputs[0]


def _grid_values(graph: ir.Graph, name: str, grid: InputGrid) -> tuple[ir.Value, ir.Value]:
    scale = constant(graph, f"{name}.scale", np.array(grid.scale, np.float32))
    return scale, constant(graph, f"{name}.zero", np.array(grid.zero_point, np.uint8))


def _multiply(graph: ir.Graph, node: ir.Node, rounded: ir.Value, grid: InputGrid, matrix: Matrix, parts: Parts) -> None:
    result = node.outputs[0]
    base = f"{result.name}.integers"
    made = IntegerMatrix(matrix.parameters, matrix.stored, matrix.wanted_block, matrix.symmetric)
    weights = {}
    for part, (shape, dtype) in made.parts().items():
        kind, name = np.dtype(str(dtype).removeprefix("torch.")), f"{base}.{part}"
        weights[part] = constant(graph, name, np.broadcast_to(np.zeros((), kind), shape))
        parts[name] = made, part
    scale, zero = _grid_values(graph, f"{base}.input", grid)
    inputs: list[ir.Value | None] = [rounded, weights["codes"], scale, weights["scale"], zero]
    if len(node.inputs) > 5 and node.inputs[5] is not None:
        inputs += [None, node.inputs[5]]
    product = ir.Node(_CONTRIB, "MatMulIntegerToFloat", inputs, version=1)
    out = product.outputs[0]
    out.dtype, out.shape = ir.DataType.FLOAT, result.shape
    graph.insert_before(node, product)
    result.replace_all_uses_with(out, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    out.name = result.name
