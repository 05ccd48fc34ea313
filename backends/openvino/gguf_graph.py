"""GGUF files as OpenVINO's own front end reads them: its graph is taken apart and put together as graph.py says.

Source: the graph that openvino 2026.4 makes. Each step looks at what it replaces and refuses what it does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import UnsupportedModelError
from ...runtime.files.decoder_shape import DecoderShape
from ..common.environment import environment
from .graph import ForeignGraphError, Model, Node, Output, choose_rows, expect, parameter, reason, source, walk

_PAGING = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
_ROTATION = {"Add", "Multiply", "Concat", "VariadicSplit", "Transpose", "Reshape"}


def read_gguf_graph(path: Path, shape: DecoderShape, q4_k_minima: str) -> Model:
    """The graph of a GGUF file whose header is known to be sound. Raises UnsupportedModelError.

    q4_k_minima: "f16", as in the file, or "integer", rounded to multiples of the block's scale.

    OpenVINO's own graph writes its cache along the wrong axis (2026.4: "indices point to non-existing output"). Cache,
    mask and attention are replaced here, and the fault goes with them.
    """
    from openvino.frontend import FrontEndManager

    if shape.kv_heads == 1:
        raise UnsupportedModelError(
            f"{path} has one key-value head, for which OpenVINO's graph lacks a reshape. Open it with another engine."
        )
    try:
        front_end = FrontEndManager().load_by_framework("gguf")
        with environment("OV_GGUF_Q4_K_ZP_F16", "1" if q4_k_minima == "f16" else "0"):
            model = front_end.convert(front_end.load(str(path)))
    except Exception as error:  # front ends raise classes of their own
        raise UnsupportedModelError(
            f"OpenVINO cannot read {path}: {reason(error)}. Open it with another engine."
        ) from error
    try:
        _page(model, shape)
        choose_rows(model)
    except (ForeignGraphError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"OpenVINO's graph of {path} is not built as it is known here ({reason(error)}). "
            "Install openvino 2026.4, or open the file with another engine."
        ) from error
    return model


def _page(model: Model, shape: DecoderShape) -> None:
    """Replace attention over cache parameters by PagedAttention, and the graph's inputs by those named above."""
    from openvino import Type
    from openvino import opset13 as op

    old = {node.get_friendly_name(): node for node in model.get_parameters()}
    shared = {name: parameter(name, [-1], Type.i32) for name in _PAGING}
    shared["max_context_len"] = parameter("max_context_len", [], Type.i32)
    shared["qq_bias"] = parameter("qq_bias", [-1], Type.u8)
    shared["qq_bias_begins"] = parameter("qq_bias_begins", [-1], Type.i32)
    layers = [node for node in model.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    expect(len(layers) == shape.n_layers, f"{len(layers)} attention nodes for {shape.n_layers} layers")
    inputs = [parameter(name, [-1], Type.i64) for name in ("input_ids", "position_ids")]
    for given, name in zip(inputs, ("inp_tokens", "inp_pos"), strict=True):
        expect(name in old, f"no input {name}")
        wide = op.reshape(op.convert(given, "i32"), np.array([1, 1, 1, -1]), False)
        _redirect(old[name].output(0), wide.output(0))
    waves = _waves(inputs[1], shape)
    caches = [_replace_attention(node, i, shape, shared, waves) for i, node in enumerate(layers)]
    _keep_all_rows(model)
    for result in model.get_results():
        if source(result, 0).get_type_name() == "ScatterUpdate":
            model.remove_result(result)
    for node in old.values():
        model.remove_parameter(node)
    model.add_parameters([*inputs, *shared.values(), *(cache for pair in caches for cache in pair)])


def _keep_all_rows(model: Model) -> None:
    """Without the choice of rows before the last layer's end: hidden states of all rows can be observed."""
    from openvino import opset13 as op

    for node in model.get_ops():
        if node.get_type_name() != "Gather":
            continue
        if walk(source(node, 1), {"Squeeze"}).get_friendly_name() == "inp_out_ids":
            expect(node.input_value(0).get_partial_shape().rank.get_length() == 2, "rows chosen along another axis")
            _redirect(node.output(0), op.unsqueeze(node.input_value(0), np.array(0)).output(0))


def _replace_attention(
    node: Node, layer: int, shape: DecoderShape, shared: dict[str, Node], waves: tuple[Node, Node]
) -> tuple[Node, Node]:
    """The two cache parameters of the layer's new attention."""
    import openvino
    from openvino import Type
    from openvino import opset13 as op

    query = _above(_above(node, 0, "Transpose"), 0, "Convert").input_value(0)
    written = []
    for i, kind in enumerate("kv", start=1):
        update = walk(source(node, i), {"Transpose", "Reshape", "Broadcast", "Unsqueeze"})  # heads are repeated
        expect(update.get_type_name() == "ScatterUpdate", f"{update.get_type_name()} where the cache is written")
        expect(source(update, 0).get_friendly_name() == f"cache_{kind}_l{layer}", "caches in another order")
        written.append(_above(_above(update, 2, "Reshape"), 0, "Convert").input_value(0))
    rows = [
        _rotated(query, shape.n_heads, shape, waves),
        _rotated(written[0], shape.kv_heads, shape, waves),
        op.reshape(
            _projected(written[1], shape.kv_heads, shape), np.array([-1, shape.kv_heads * shape.head_dim]), False
        ),
    ]
    caches = tuple(parameter(f"{kind}_cache.{layer}", [-1] * 4, Type.dynamic) for kind in ("key", "value"))
    paged = openvino.op._PagedAttentionExtension(_attention_inputs([*rows, *caches], shape.head_dim**-0.5, shared))
    for kind in "kv":
        paged.get_rt_info()[f"num_{kind}_heads"] = shape.kv_heads
        paged.get_rt_info()[f"{kind}_head_size"] = shape.head_dim
    after = _only_consumer(_only_consumer(node, "Transpose"), "Convert")
    apart = op.reshape(paged.output(0), np.array([1, -1, shape.n_heads, shape.head_dim]), False)
    _redirect(after.output(0), apart.output(0))
    return caches[0], caches[1]


def _attention_inputs(given: list[Node], scale: float, shared: dict[str, Node]) -> list[Output]:
    """The 28 inputs of PagedAttention in OpenVINO 2026.4, of which most belong to things that are not used.

    Source: the order that paged_attention_transformation writes.
    """
    from openvino import Type
    from openvino import opset13 as op

    def none(kind: Any, rank: int = 1) -> Node:
        return op.constant(np.empty([0] * rank), kind)

    zero, ints, floats = op.constant(0, Type.i32), Type.i32, Type.f32
    inputs = [*given, *(shared[name] for name in _PAGING), op.constant(scale, floats)]
    inputs += [zero, none(floats), shared["max_context_len"]]  # sliding window, ALiBi slopes
    inputs += [none(ints)]  # score aggregation window
    inputs += [none(ints), none(ints), none(floats)]  # rotation of cached keys
    inputs += [none(floats), zero, zero]  # sparse attention
    inputs += [none(floats, 4)]  # attention sinks
    inputs += [zero, none(ints), none(ints), none(ints)]  # diversity of keys
    inputs += [none(ints)]  # types of tokens
    inputs += [shared["qq_bias"], shared["qq_bias_begins"]]
    return [node.output(0) for node in inputs]


def _waves(positions: Node, shape: DecoderShape) -> tuple[Node, Node]:
    """Cosine and sine (n, 1, 1, head_dim), from our own frequencies: OpenVINO's graph leaves their factors out."""
    from openvino import Type
    from openvino import opset13 as op

    at = op.reshape(op.convert(positions, "f32"), np.array([-1, 1, 1, 1]), False)
    angles = op.multiply(at, op.constant(np.tile(shape.inverse_frequencies, 2).reshape(1, 1, 1, -1), Type.f32))
    return op.cos(angles), op.sin(angles)


def _rotated(value: Output, heads: int, shape: DecoderShape, waves: tuple[Node, Node]) -> Node:
    """Queries or keys (n, heads * head_dim), rotated in halves, which OpenVINO recognises and runs as one kernel.

    The graph rotates llama's in pairs, as they lie in GGUF files; it costs a sixth of a step more.
    """
    from openvino import Type
    from openvino import opset13 as op

    flat = _projected(value, heads, shape)
    if shape.permuted:
        _permute_rows(flat.get_node(), shape.half_order(heads))
    x, half = op.reshape(flat, np.array([-1, heads, 1, shape.head_dim]), False), shape.head_dim // 2
    low, high = (
        op.slice(x, *(op.constant([i], Type.i64) for i in (*span, 1, 3))) for span in ((0, half), (half, 2 * half))
    )
    turned = op.concat([op.multiply(high, op.constant(-1.0, Type.f32)), low], -1)
    rotated = op.add(op.multiply(x, waves[0]), op.multiply(turned, waves[1]))
    return op.reshape(rotated, np.array([-1, heads * shape.head_dim]), False)


def _projected(value: Output, heads: int, shape: DecoderShape) -> Output:
    """What was made of the hidden states, (1, 1, n, heads * head_dim), upwards from (1, n, heads, head_dim)."""
    found = str(value.get_partial_shape())
    expect(found == f"[1,?,{heads},{shape.head_dim}]", f"{found} where {heads} heads of {shape.head_dim} were expected")
    while str(value.get_partial_shape()) != f"[1,1,?,{heads * shape.head_dim}]":
        kind = value.get_node().get_type_name()
        expect(kind in _ROTATION, f"{kind} in the rotary embedding")
        value = value.get_node().input_value(0)
    return value


def _permute_rows(node: Node, order: npt.NDArray[np.int64]) -> None:
    """Put the outputs of a projection, a product and perhaps a bias, in another order."""
    if node.get_type_name() == "Add":
        expect(_permuted(node, 1, order) == 1, "a bias of another shape")
        node = source(node, 0)
    expect(node.get_type_name() == "MatMul" and node.get_attributes()["transpose_b"], "no projection before rotation")
    expect(_permuted(node, 1, order) > 0, "weights of another shape")


def _permuted(node: Node, i: int, order: npt.NDArray[np.int64]) -> int:
    """How many constants with a row for each of `order`, above an input, were put in that order."""
    from openvino import Tensor
    from openvino.op import Constant

    above = source(node, i)
    if above.get_type_name() != "Constant":
        return sum(_permuted(above, j, order) for j in range(above.get_input_size()))
    dims = list(above.get_output_shape(0))
    if not dims or dims[0] != len(order):
        return 0
    rows = above.data.view(np.uint8).reshape(len(order), -1)[order]  # as stored, two elements of four bits in a byte
    made = Constant(Tensor(rows.reshape(-1), above.get_output_shape(0), above.get_element_type()), shared_memory=False)
    node.input(i).replace_source_output(made.output(0))
    return 1


def _above(node: Node, i: int, kind: str) -> Node:
    """The node that feeds an input, which must be of this type."""
    found = source(node, i)
    expect(found.get_type_name() == kind, f"{found.get_type_name()} instead of {kind} before {node.get_type_name()}")
    return found


def _only_consumer(node: Node, kind: str) -> Node:
    users = [port.get_node() for port in node.output(0).get_target_inputs()]
    expect([user.get_type_name() for user in users] == [kind], f"no lone {kind} after {node.get_type_name()}")
    return users[0]


def _redirect(old: Output, new: Output) -> None:
    for port in old.get_target_inputs():
        port.replace_source_output(new)
