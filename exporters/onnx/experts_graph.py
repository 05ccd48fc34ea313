"""Mixtures of experts in the decoder graph: a branch for each expert, which runs where some row has picked it.

Only the weights of experts that are picked are read. Branches inside branches would be fewer to ask for, and were
many times slower: ONNX Runtime 1.32 arranges weights for its products one level deep only. It has an operator for
all of this, QMoE; there the bits of a row depend on which other rows pick the same expert, and it has no place for the
minima of Q4_K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ...runtime.files.decoder_description import DecoderShape
from .decoder import Experts, Mlp
from .products import Products
from .writer import OnnxWriter

_ALL = 1 << 60  # an end that lies behind every row


@dataclass(frozen=True, slots=True)
class _Picks:
    """Values of a layer. A pick is a row and an expert; `order` lists them by expert, then by row."""

    experts: str  # of each pick, (n * used,), those of a row together
    order: str
    rows: str  # of each in that order, and one more


class ExpertsGraph:
    """Adds the experts of layers to a graph.

    A row that is alone in a product is multiplied by other sums than one among several (backends/onnx/step.py). So
    where a step has several rows an expert computes one row more than it has to, whatever comes after its own.
    """

    def __init__(self, writer: OnnxWriter, products: Products, shape: DecoderShape) -> None:
        self._w, self._products, self._shape = writer, products, shape
        self._n_picks = ""  # in a step, [1]
        self._spare, self._end = "", ""  # how many spare rows there are, and where what counts ends before them

    def layer(self, name: str, x: str, experts: Experts) -> str:
        """What the experts of a layer add up to for x, (n, hidden_size). name: of the layer's weights."""
        w, sizes, mixture = self._w, self._shape.experts, self._shape.family.mixture
        assert sizes is not None and mixture is not None
        self._prepare(sizes.used)
        scores = self._products.linear(f"{name}router", x, experts.router)
        if not mixture.whole:
            scores = w.node("Softmax", [scores], axis=-1)
        shares, picked = w.nodes("TopK", [scores, "experts.used"], [f"{name}shares", f"{name}picked"], axis=-1)
        if mixture.whole:
            shares = w.node("Softmax", [shares], axis=-1)
        picks = self._picks(picked)
        given = self._given(name, x, experts, picks, sizes.count)
        back = self._sorted(picks.order)
        shape = self._ints("experts.shape", -1, sizes.used, self._shape.hidden_size)
        by_row = w.node("Reshape", [w.node("Gather", [given, back], axis=0), shape])
        weighed = w.node("Mul", [by_row, w.node("Unsqueeze", [shares, self._ints("axis2", 2)])])
        return w.node("ReduceSum", [weighed, self._ints("axis1", 1)], keepdims=0)

    def _prepare(self, used: int) -> None:
        """What is the same in all layers."""
        if self._n_picks:
            return
        w, one = self._w, self._ints("experts.one", 1)
        width = w.node("Shape", ["input_ids"], start=1, end=2)
        self._n_picks = w.node("Mul", [width, self._ints("experts.used", used)])
        self._spare = w.node("Min", [w.node("Sub", [width, one]), one])
        beyond = w.node("Mul", [w.node("Sub", [one, self._spare]), self._ints("experts.all", _ALL)])
        self._end = w.node("Sub", [beyond, self._spare])

    def _picks(self, picked: str) -> _Picks:
        w = self._w
        experts = w.node("Reshape", [picked, self._ints("experts.flat", -1)])
        zero, one = (w.weight(f"experts.{x}", np.array(x, dtype=np.int64)) for x in (0, 1))
        numbers = w.node("Range", [zero, w.node("Squeeze", [self._n_picks]), one])
        key = w.node("Add", [w.node("Mul", [experts, self._n_picks]), numbers])
        order = self._sorted(key)
        rows = w.node("Div", [order, "experts.used"])
        return _Picks(experts, order, w.node("Concat", [rows, self._ints("axis0", 0)], axis=0))

    def _sorted(self, numbers: str) -> str:
        """Where the smallest lies, the next one, ..."""
        outputs = [self._w.fresh("sorted"), self._w.fresh("places")]
        return self._w.nodes("TopK", [numbers, self._n_picks], outputs, largest=0)[1]

    def _given(self, name: str, x: str, experts: Experts, picks: _Picks, count: int) -> str:
        """What each pick gives, (n * used, hidden_size), in their order."""
        w, axis0 = self._w, self._ints("axis0", 0)
        marks = [w.weight("experts.count", np.array(count)), self._ints("experts.marks", 0, 1)]
        counts = w.node("ReduceSum", [w.node("OneHot", [picks.experts, *marks], axis=-1), axis0], keepdims=0)
        ends = w.node("CumSum", [counts, "experts.0"])
        starts, stops = w.node("Sub", [ends, counts]), w.node("Add", [ends, self._spare])
        of_each = [
            w.nodes("Split", [values], [w.fresh("of") for _ in range(count)], num_outputs=count, axis=0)
            for values in (w.node("Cast", [counts], to=TensorProto.BOOL), starts, stops)
        ]
        nothing = w.weight("experts.nothing", np.empty((0, self._shape.hidden_size), dtype=np.float32))
        activation, given = self._shape.family.activation, []
        for i, (some, start, stop) in enumerate(zip(*of_each, strict=True)):
            mlp = experts.expert(i)

            def computed(i: int = i, mlp: Mlp = mlp, start: str = start, stop: str = stop) -> str:
                mine = w.node("Gather", [x, w.node("Slice", [picks.rows, start, stop])], axis=0)
                found = self._products.mlp(f"{name}e{i}.", mine, mlp, activation)
                return w.node("Slice", [found, axis0, self._end])

            given.append(w.choice(some, computed, nothing, ["rows", self._shape.hidden_size]))
        return w.node("Concat", given, axis=0)

    def _ints(self, name: str, *values: int) -> str:
        return self._w.weight(name, np.array(values, dtype=np.int64))
