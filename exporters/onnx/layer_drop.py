"""A decoder graph without some of its sub-layers (SWIFT: Xia et al. 2024): surgery on ONNX, no weight is touched.

A decoder is a residual stream to which attention and MLP blocks add in turn. Without one of them the stream goes on
past it. What only that block used is no longer in the graph; the weights stay where they are, in the data file that
the whole graph and the one with less layers have in common.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...runtime.errors import UnsupportedModelError

_ATTENTION = "GroupQueryAttention"
_NORM, _SKIP_NORM = "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"
_OF_A_LAYER = re.compile(r"(past_key|past_value|present_key|present_value|query)_(\d+)")
GATES = "gates"

Kind: TypeAlias = Literal["attention", "mlp"]


@dataclass(frozen=True, slots=True)
class SubLayer:
    """One block that adds to the residual stream."""

    layer: int
    kind: Kind
    adder: int  # index of the node that adds it
    stream: str  # what it adds to,
    added: str  # and what is added
    n_bytes: int  # of weights that nothing else uses

    def __str__(self) -> str:
        return f"{self.kind} {self.layer}"


def blocks_of(path: Path) -> tuple[SubLayer, ...]:
    """The blocks of the decoder graph in a file; see sub_layers()."""
    return sub_layers(onnx.load(path, load_external_data=False))


def sub_layers(model: onnx.ModelProto) -> tuple[SubLayer, ...]:
    """The blocks of a decoder graph, in order. Raises UnsupportedModelError where the graph is not built of them."""
    graph = _Graph(model)
    found: list[SubLayer] = []
    stream = graph.first_stream()
    while stream is not None:
        adder = graph.adder(stream)
        if adder is None:
            break
        node = model.graph.node[adder]
        added = node.input[1] if node.input[0] == stream else node.input[0]
        block = graph.between(added, stream)
        caches = [n for i in block for n in model.graph.node[i].input if n.startswith("past_key_")]
        if len(caches) > 1:
            raise UnsupportedModelError("this graph adds two attention blocks at once; no layer of it can be left out.")
        kind: Kind = "attention" if caches else "mlp"
        layer = int(caches[0].rsplit("_", 1)[1]) if caches else (found[-1].layer if found else 0)
        found.append(SubLayer(layer, kind, adder, stream, added, graph.weight_bytes(block)))
        stream = _next_stream(node)
    n_layers = sum(i.name.startswith("past_key_") for i in model.graph.input)
    if sum(s.kind == "attention" for s in found) != n_layers or len(found) != 2 * n_layers:
        raise UnsupportedModelError(
            f"this graph has {n_layers} layers, but {len(found)} blocks that add to one residual stream; "
            "only decoders of attention and MLP in turn can be made shorter."
        )
    return tuple(found)


def without(model: onnx.ModelProto, skipped: Collection[int]) -> onnx.ModelProto:
    """The graph without these blocks (indices into sub_layers); layers that keep an attention are numbered anew."""
    blocks = sub_layers(model)
    nodes, alias = list(model.graph.node), dict[str, str]()
    for i in sorted(skipped):
        block = blocks[i]
        node = nodes[block.adder]
        stream = _next_stream(node)
        if stream is not None:
            alias[stream] = block.stream
        nodes[block.adder] = _norm_alone(node, block.stream)
    dropped = {blocks[i].layer for i in skipped if blocks[i].kind == "attention"}
    return _pruned(model, nodes, alias, dropped)


def gated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with one input more, "gates" [n_blocks] f32, that each block's addition is multiplied with: 0 is the
    graph without it. Costs what the whole graph costs; for trying many sets with one session."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    more = []
    for i, block in enumerate(sub_layers(model)):
        gate, gated_name = f"{GATES}.{i}", f"{GATES}.{i}.added"
        made.graph.initializer.append(numpy_helper.from_array(np.array(i, dtype=np.int64), f"{gate}.index"))
        more.append((block.adder, helper.make_node("Gather", [GATES, f"{gate}.index"], [gate])))
        more.append((block.adder, helper.make_node("Mul", [block.added, gate], [gated_name])))
        node = made.graph.node[block.adder]
        node.input[1 if node.input[1] == block.added else 0] = gated_name
    for at, node in reversed(more):
        made.graph.node.insert(at, node)
    made.graph.input.append(helper.make_tensor_value_info(GATES, onnx.TensorProto.FLOAT, ["n_blocks"]))
    return made


class _Graph:
    """Who makes and who uses each value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = model.graph.node
        self._maker: dict[str, int] = {}
        self._users: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self._nodes):
            self._maker.update({name: i for name in node.output if name})
            for name in node.input:
                self._users[name].append(i)
        self._weights = {t.name: t for t in model.graph.initializer}

    def first_stream(self) -> str | None:
        """The first value to which something is added that was made from it."""
        outputs = (name for node in self._nodes for name in node.output if name)
        return next((name for name in outputs if self.adder(name) is not None), None)

    def adder(self, stream: str) -> int | None:
        """The node that adds to a value something made from it."""
        for i in self._users[stream]:
            node = self._nodes[i]
            if node.op_type in ("Add", _SKIP_NORM) and stream in node.input[:2]:
                other = node.input[1] if node.input[0] == stream else node.input[0]
                if other != stream and other not in self._weights and self.between(other, stream):
                    return i
        return None

    def between(self, value: str, stream: str) -> set[int]:
        """Nodes on the ways from `stream` to `value`; empty where there is none."""
        maker = self._maker.get(stream)
        ends = {stream} if maker is None else {stream, *self._nodes[maker].output}  # a norm of the stream, too
        leads: dict[str, bool] = {}
        found: set[int] = set()
        todo = [(value, False)]
        while todo:
            name, seen = todo.pop()
            i = self._maker.get(name)
            if name in leads and not seen:
                continue
            if name in ends or i is None:
                leads[name] = name in ends
            elif not seen:
                leads[name] = False
                todo += [(name, True), *((n, False) for n in self._nodes[i].input if n)]
            elif any(leads.get(n, False) for n in self._nodes[i].input):
                leads[name] = True
                found.add(i)
        return found

    def weight_bytes(self, block: set[int]) -> int:
        """Bytes of weights that only these nodes use."""
        names = {n for i in block for n in self._nodes[i].input if n in self._weights}
        return sum(_n_bytes(self._weights[n]) for n in names if set(self._users[n]) <= block)


def n_weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the weights that a step of one token reads: all but the token table and rotary tables."""
    looked_up = {n.input[0] for n in model.graph.node if n.op_type in ("Gather", "GatherBlockQuantized")}
    looked_up |= {name for n in model.graph.node if n.op_type == _ATTENTION for name in n.input[7:9]}
    return sum(_n_bytes(t) for t in model.graph.initializer if t.name not in looked_up)


def _n_bytes(tensor: onnx.TensorProto) -> int:
    lengths = [int(e.value) for e in tensor.external_data if e.key == "length"]
    return lengths[0] if lengths else len(tensor.raw_data)


def _next_stream(node: onnx.NodeProto) -> str | None:
    """The stream after an addition; None where only a norm of it is used."""
    if node.op_type == "Add":
        return str(node.output[0])
    return str(node.output[3]) if len(node.output) > 3 and node.output[3] else None


def _norm_alone(node: onnx.NodeProto, stream: str) -> onnx.NodeProto | None:
    """What is left of an addition when nothing is added."""
    if node.op_type == "Add":
        return None
    norm = helper.make_node(_NORM, [stream, node.input[2]], [node.output[0]], axis=-1)
    norm.attribute.extend(a for a in node.attribute if a.name == "epsilon")
    return norm


def _pruned(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto | None], alias: dict[str, str], dropped: set[int]
) -> onnx.ModelProto:
    """The model with only the nodes, weights and inputs that lead to an output of a layer that is not dropped."""

    def gone(name: str) -> bool:
        match = _OF_A_LAYER.fullmatch(name)
        return match is not None and int(match[2]) in dropped

    outputs = [o for o in model.graph.output if not gone(o.name)]
    kept = list(_needed(nodes, alias, [o.name for o in outputs]))
    used = {name for node in kept for name in node.input}
    inputs = [i for i in model.graph.input if i.name in used or not _OF_A_LAYER.fullmatch(i.name)]
    weights = [t for t in model.graph.initializer if t.name in used]
    infos = [v for v in model.graph.value_info if v.name in used]
    graph = helper.make_graph(kept, model.graph.name, inputs, outputs, weights, value_info=infos)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.CopyFrom(graph)
    _number(made, sorted({int(m[2]) for i in inputs if (m := _OF_A_LAYER.fullmatch(i.name))}))
    return made


def _needed(nodes: list[onnx.NodeProto | None], alias: dict[str, str], outputs: list[str]) -> Iterator[onnx.NodeProto]:
    """The nodes, in order, that outputs come from, with aliases replaced."""
    rewired = []
    for node in nodes:
        if node is None:
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(copy.input):
            while name in alias:
                name = alias[name]
            copy.input[i] = name
        rewired.append(copy)
    needed, keep = set(outputs), []
    for node in reversed(rewired):
        if needed.intersection(n for n in node.output if n):
            needed.update(n for n in node.input if n)
            keep.append(node)
    return reversed(keep)


def _number(model: onnx.ModelProto, layers: list[int]) -> None:
    """Give the inputs and outputs of these layers the numbers 0, 1, ..."""
    new = {old: i for i, old in enumerate(layers)}

    def name(old: str) -> str:
        match = _OF_A_LAYER.fullmatch(old)
        return f"{match[1]}_{new[int(match[2])]}" if match else old

    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.name = name(value.name)
    for node in model.graph.node:
        node.input[:] = [name(n) for n in node.input]
        node.output[:] = [name(n) for n in node.output]
