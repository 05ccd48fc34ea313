"""Simplifications of a traced decoder graph that ONNX Runtime does not make by itself."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx_ir as ir

from .initializers import Matrix

_SWAP_HEADS = (0, 2, 1, 3)
Parts = dict[str, tuple[Matrix, str]]
"""Name of an initializer to the matrix that it is a part of, and which part."""


def parts_of(graph: ir.Graph, matrices: dict[str, Matrix]) -> Parts:
    """Which initializers of a traced graph belong to which matrix. matrices: by the name of their module."""
    found: Parts = {}
    for name in graph.initializers:
        owner, _, part = name.removeprefix("model.").rpartition(".")
        if owner in matrices and part in ("codes", "scale", "zero", "weight", "table"):
            found[name] = matrices[owner], part
    return found


def merge_siblings(graph: ir.Graph, parts: Parts) -> Parts:
    """Products of one input become one product and a Split: query, key and value; gate and up. Bit for bit the same,
    as the columns of a product do not see each other. Returns the parts with the merged matrices."""
    groups: dict[tuple[Any, ...], list[ir.Node]] = defaultdict(list)
    for node in graph:
        weight = node.inputs[1] if node.op_type in ("MatMulNBits", "MatMul") else None
        if weight is None or weight.name not in parts:
            continue
        matrix = parts[weight.name][0]
        form = matrix.stored, matrix.block, matrix.bits, matrix.symmetric, matrix.shape[1]
        groups[(id(node.inputs[0]), node.op_type, *form)].append(node)
    merged = dict(parts)
    for i, nodes in enumerate(group for group in groups.values() if len(group) > 1):
        _merge(graph, nodes, f"merged.{i}", merged)
    for node in list(graph):
        if node.op_type == "GroupQueryAttention":
            _pack(node)
    return {name: part for name, part in merged.items() if name in graph.initializers}


def _merge(graph: ir.Graph, nodes: list[ir.Node], name: str, parts: Parts) -> None:
    """One product instead of `nodes`, before the first of them."""
    each = [parts[_name(node.inputs[1])][0] for node in nodes]
    matrix = each[0]
    for other in each[1:]:
        matrix = matrix.below(other)
    inputs: list[ir.Value | None] = [nodes[0].inputs[0]]
    for part, (shape, dtype) in matrix.parts().items():
        kind = np.dtype(str(dtype).removeprefix("torch."))
        inputs.append(constant(graph, f"{name}.{part}", np.broadcast_to(np.zeros((), kind), shape)))
        parts[f"{name}.{part}"] = matrix, part
    sizes = [m.shape[0] for m in each]
    attributes = dict(nodes[0].attributes)
    if matrix.bits is not None:
        attributes["N"] = ir.AttrInt64("N", sum(sizes))
        biases = [node.inputs[5] if len(node.inputs) > 5 else None for node in nodes]
        if any(bias is not None for bias in biases):
            values = [
                np.zeros(n, np.float32) if bias is None or bias.const_value is None else bias.const_value.numpy()
                for bias, n in zip(biases, sizes, strict=True)
            ]
            inputs += [None] * (5 - len(inputs))
            inputs.append(constant(graph, f"{name}.bias", np.concatenate(values)))
    first = nodes[0]
    product = ir.Node(first.domain, first.op_type, inputs, attributes=list(attributes.values()), version=first.version)
    product.outputs[0].name = name
    lengths = constant(graph, f"{name}.sizes", np.array(sizes, dtype=np.int64))
    split = ir.Node(
        "", "Split", [product.outputs[0], lengths], attributes=[ir.AttrInt64("axis", -1)], num_outputs=len(nodes)
    )
    for i, (node, out) in enumerate(zip(nodes, split.outputs, strict=True)):
        out.name, out.dtype, out.shape = f"{name}.{i}", ir.DataType.FLOAT, node.outputs[0].shape
    graph.insert_before(first, [product, split])
    for node, out in zip(nodes, split.outputs, strict=True):
        node.outputs[0].replace_all_uses_with(out)
    graph.remove(nodes, safe=True)
    remove_dead(graph)


def _pack(attention: ir.Node) -> None:
    """Give attention the product of query, key and value as it is, where nothing lies between but reshapes."""
    sources = [_behind_reshapes(value) for value in attention.inputs[:3]]
    producers = {id(value.producer()) for value in sources if value is not None}
    split = sources[0].producer() if sources[0] is not None else None
    if split is None or split.op_type != "Split" or len(producers) != 1 or len(split.outputs) != 3:
        return
    if [value.index() for value in sources if value is not None] != [0, 1, 2]:
        return
    attention.replace_input_with(0, split.inputs[0])
    attention.replace_input_with(1, None)
    attention.replace_input_with(2, None)


def _behind_reshapes(value: ir.Value | None) -> ir.Value | None:
    """The value without the splitting into heads and back that a decoder does around its rotary embedding."""
    kinds = []
    while value is not None and (node := value.producer()) is not None and node.op_type in ("Reshape", "Transpose"):
        kinds.append(node.op_type)
        value = node.inputs[0]
    return value if kinds.count("Transpose") in (0, 2) else None


def remove_transposes(graph: ir.Graph) -> None:
    """Heads swapped with rows and back again are left alone; so are reshapes that another reshape undoes."""
    for node in list(graph):
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if before is None or before.op_type != node.op_type:
            continue
        if node.op_type == "Transpose" and _swaps(node) and _swaps(before):
            source = before.inputs[0]
            assert source is not None
            node.outputs[0].replace_all_uses_with(source)
        elif node.op_type == "Reshape":
            node.replace_input_with(0, before.inputs[0])
    remove_dead(graph)


def store_halves(graph: ir.Graph, parts: Parts) -> None:
    """Floats that are kept in 16 bits are made 32 by a Cast, which ONNX Runtime does once, as it opens the graph. Not
    traced: the exporter's optimizer would compute it, of placeholders."""
    for name, (matrix, _) in parts.items():
        if matrix.bits is not None or matrix.stored != "fp16":
            continue
        value = graph.initializers[name]
        cast = ir.Node("", "Cast", [value], attributes=[ir.AttrInt64("to", ir.DataType.FLOAT.value)])
        cast.outputs[0].name, cast.outputs[0].shape = f"{name}.f32", value.shape
        cast.outputs[0].dtype = ir.DataType.FLOAT
        value.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, value)
        value.dtype = ir.DataType.FLOAT16
        graph.insert_before(graph[0], cast)


def fuse(graph: ir.Graph) -> None:
    """x * sigmoid(x), and a norm of a sum that is needed later, become one operator each."""
    for node in list(graph):
        if node.op_type == "Mul":
            _fuse_silu(graph, node)
        elif node.op_type == "SimplifiedLayerNormalization":
            _fuse_skip(graph, node)
    remove_dead(graph)


def _fuse_silu(graph: ir.Graph, node: ir.Node) -> None:
    x, gate = node.inputs
    before = gate.producer() if gate is not None else None
    if x is None or before is None or before.op_type != "Sigmoid" or before.inputs[0] is not x:
        return
    alpha = ir.AttrFloat32("alpha", 1.0)  # QuickGelu is x * sigmoid(alpha x)
    _replace(graph, node, ir.Node("com.microsoft", "QuickGelu", [x], attributes=[alpha], version=1))


def _fuse_skip(graph: ir.Graph, norm: ir.Node) -> None:
    total = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if total is None or total.op_type != "Add" or any(x is None or x.is_initializer() for x in total.inputs):
        return
    fused = ir.Node(
        "com.microsoft",
        "SkipSimplifiedLayerNormalization",
        [*total.inputs, norm.inputs[1]],
        attributes=[norm.attributes["epsilon"]],
        num_outputs=4,
        version=1,
    )
    for out in fused.outputs[1:3]:
        out.name = ""
    fused.outputs[3].name = f"{total.outputs[0].name}.sum"
    _replace(graph, norm, fused)
    total.outputs[0].replace_all_uses_with(fused.outputs[3])


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    new.outputs[0].name, new.outputs[0].dtype = f"{old.outputs[0].name}.fused", ir.DataType.FLOAT
    graph.insert_before(old, new)
    old.outputs[0].replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
    graph.remove(old, safe=True)


def _swaps(node: ir.Node) -> bool:
    return tuple(node.attributes["perm"].as_ints()) == _SWAP_HEADS


def remove_dead(graph: ir.Graph) -> None:
    """Nodes and initializers that no output needs go."""
    kept = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(out in kept or out.uses() for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in kept:
            del graph.initializers[name]


def constant(graph: ir.Graph, name: str, values: Any) -> ir.Value:
    """An initializer of this name, now the graph's."""
    tensor = ir.Tensor(values, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _name(value: ir.Value | None) -> str:
    assert value is not None and value.name is not None
    return value.name
