"""Decoder graphs in the form the session runs: PagedAttention, explicit positions, logits of chosen rows only.

Inputs: input_ids and position_ids (n,), logit_rows (m,), past_lens (1,), subsequence_begins (2,), block_indices (b,),
block_indices_begins (2,), max_context_len (), qq_bias (s,), qq_bias_begins (2,), and key_cache.<i> and value_cache.<i>
for each layer. Outputs: logits (m, vocab_size) and hidden (n, hidden_size), after the final norm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..runtime.decoder_shape import DecoderShape
from ..runtime.errors import ModelFileError, UnsupportedModelError

Node: TypeAlias = Any  # openvino.Node: the package has no types for what its graphs are made of
Output: TypeAlias = Any  # openvino.Output
Model: TypeAlias = Any  # openvino.Model

_ATTENTION = "PagedAttentionExtension"
_PAGING = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
_ROTATION = {"Add", "Multiply", "Concat", "VariadicSplit", "Transpose", "Reshape"}
_AFTER_THE_HEAD = {"Reshape", "Convert", "Multiply", "Divide", "Tanh", "Add", "Squeeze", "Unsqueeze"}


class _ForeignGraphError(Exception):
    """A graph that is not built as the surgery expects."""


def read_ir(path: Path) -> Model:
    """The graph of a stateful decoder IR. Raises ModelFileError and UnsupportedModelError."""
    import openvino
    from openvino._offline_transformations import paged_attention_transformation

    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        raise ModelFileError(f"OpenVINO cannot read {path}: {reason(error)}. Build the bundle again.") from error
    names = {name for port in model.inputs for name in port.names}
    if not {"input_ids", "position_ids"} <= names:
        raise UnsupportedModelError(f"{path} has no inputs input_ids and position_ids: it is no decoder with a cache.")
    try:
        paged_attention_transformation(model, allow_qq_bias=True)
        _choose_rows(model)
    except (_ForeignGraphError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{path} is no decoder that runs with PagedAttention: {reason(error)}. Export it with its past as state "
            "(optimum-cli export openvino --task text-generation-with-past)."
        ) from error
    return model


def read_gguf_graph(path: Path, shape: DecoderShape) -> Model:
    """The graph of a GGUF file whose header is known to be sound. Raises UnsupportedModelError.

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
        model = front_end.convert(front_end.load(str(path)))
    except Exception as error:  # front ends raise classes of their own
        raise UnsupportedModelError(
            f"OpenVINO cannot read {path}: {reason(error)}. Open it with another engine."
        ) from error
    try:
        _page(model, shape)
        _choose_rows(model)
    except (_ForeignGraphError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"OpenVINO's graph of {path} is not built as it is known here ({reason(error)}). "
            "Install openvino 2026.4, or open the file with another engine."
        ) from error
    return model


def attentions(model: Model) -> list[Node]:
    """The attention nodes, by layer."""
    found = [node for node in model.get_ops() if node.get_type_name() == _ATTENTION]
    return sorted(found, key=lambda node: int(node.input_value(3).any_name.rsplit(".", 1)[1]))


def add_queries(model: Model) -> None:
    """One output more per layer, query_<i>: (n, n_heads * head_dim), after rotation."""
    for i, node in enumerate(attentions(model)):
        _add_result(model, node.input_value(0), f"query_{i}")


def reason(error: Exception) -> str:
    """What an OpenVINO exception says, without the places in OpenVINO's sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[-1].rstrip(".")


def _page(model: Model, shape: DecoderShape) -> None:
    """Replace attention over cache parameters by PagedAttention, and the graph's inputs by those named above."""
    from openvino import Type
    from openvino import opset13 as op

    old = {node.get_friendly_name(): node for node in model.get_parameters()}
    shared = {name: _parameter(name, [-1], Type.i32) for name in _PAGING}
    shared["max_context_len"] = _parameter("max_context_len", [], Type.i32)
    shared["qq_bias"] = _parameter("qq_bias", [-1], Type.u8)
    shared["qq_bias_begins"] = _parameter("qq_bias_begins", [-1], Type.i32)
    layers = [node for node in model.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    _expect(len(layers) == shape.n_layers, f"{len(layers)} attention nodes for {shape.n_layers} layers")
    inputs = [_parameter(name, [-1], Type.i64) for name in ("input_ids", "position_ids")]
    for given, name in zip(inputs, ("inp_tokens", "inp_pos"), strict=True):
        _expect(name in old, f"no input {name}")
        wide = op.reshape(op.convert(given, "i32"), np.array([1, 1, 1, -1]), False)
        _redirect(old[name].output(0), wide.output(0))
    waves = _waves(inputs[1], shape)
    caches = [_replace_attention(node, i, shape, shared, waves) for i, node in enumerate(layers)]
    _keep_all_rows(model)
    for result in model.get_results():
        if _source(result, 0).get_type_name() == "ScatterUpdate":
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
        if _walk(_source(node, 1), {"Squeeze"}).get_friendly_name() == "inp_out_ids":
            _expect(node.input_value(0).get_partial_shape().rank.get_length() == 2, "rows chosen along another axis")
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
        update = _walk(_source(node, i), {"Transpose", "Reshape", "Broadcast", "Unsqueeze"})  # heads are repeated
        _expect(update.get_type_name() == "ScatterUpdate", f"{update.get_type_name()} where the cache is written")
        _expect(_source(update, 0).get_friendly_name() == f"cache_{kind}_l{layer}", "caches in another order")
        written.append(_above(_above(update, 2, "Reshape"), 0, "Convert").input_value(0))
    rows = [
        _rotated(query, shape.n_heads, shape, waves),
        _rotated(written[0], shape.kv_heads, shape, waves),
        op.reshape(
            _projected(written[1], shape.kv_heads, shape), np.array([-1, shape.kv_heads * shape.head_dim]), False
        ),
    ]
    caches = tuple(_parameter(f"{kind}_cache.{layer}", [-1] * 4, Type.dynamic) for kind in ("key", "value"))
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


def _choose_rows(model: Model) -> None:
    """Logits of the rows in logit_rows only, and hidden states of all rows as an output."""
    from openvino import Type
    from openvino import opset13 as op

    results = model.get_results()
    _expect(len(results) == 1, f"{len(results)} outputs besides the cache")
    head = _walk(_source(results[0], 0), _AFTER_THE_HEAD)
    _expect(head.get_type_name() == "MatMul", f"{head.get_type_name()} where the output matrix is multiplied")
    hidden_size = head.input_value(0).get_partial_shape()[-1].get_length()
    vocab_size = results[0].get_output_partial_shape(0)[-1].get_length()
    hidden = op.reshape(head.input_value(0), np.array([-1, hidden_size]), False)
    chosen = _parameter("logit_rows", [-1], Type.i32)
    head.input(0).replace_source_output(op.gather(hidden, chosen, op.constant(0, Type.i32)).output(0))
    model.add_parameters([chosen])
    head.validate_and_infer_types()
    logits = op.reshape(results[0].input_value(0), np.array([-1, vocab_size]), False)
    model.remove_result(results[0])
    _add_result(model, logits.output(0), "logits")
    _add_result(model, hidden.output(0), "hidden")
    model.validate_nodes_and_infer_types()


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
    _expect(
        found == f"[1,?,{heads},{shape.head_dim}]", f"{found} where {heads} heads of {shape.head_dim} were expected"
    )
    while str(value.get_partial_shape()) != f"[1,1,?,{heads * shape.head_dim}]":
        kind = value.get_node().get_type_name()
        _expect(kind in _ROTATION, f"{kind} in the rotary embedding")
        value = value.get_node().input_value(0)
    return value


def _permute_rows(node: Node, order: npt.NDArray[np.int64]) -> None:
    """Put the outputs of a projection, a product and perhaps a bias, in another order."""
    if node.get_type_name() == "Add":
        _expect(_permuted(node, 1, order) == 1, "a bias of another shape")
        node = _source(node, 0)
    _expect(node.get_type_name() == "MatMul" and node.get_attributes()["transpose_b"], "no projection before rotation")
    _expect(_permuted(node, 1, order) > 0, "weights of another shape")


def _permuted(node: Node, i: int, order: npt.NDArray[np.int64]) -> int:
    """How many constants with a row for each of `order`, above an input, were put in that order."""
    from openvino import Tensor
    from openvino.op import Constant

    above = _source(node, i)
    if above.get_type_name() != "Constant":
        return sum(_permuted(above, j, order) for j in range(above.get_input_size()))
    dims = list(above.get_output_shape(0))
    if not dims or dims[0] != len(order):
        return 0
    rows = above.data.view(np.uint8).reshape(len(order), -1)[order]  # as stored, two elements of four bits in a byte
    made = Constant(Tensor(rows.reshape(-1), above.get_output_shape(0), above.get_element_type()), shared_memory=False)
    node.input(i).replace_source_output(made.output(0))
    return 1


def _parameter(name: str, dims: list[int], kind: Any) -> Node:
    from openvino import PartialShape
    from openvino import opset13 as op

    node = op.parameter(PartialShape(dims), kind, name)
    node.output(0).set_names({name})
    return node


def _add_result(model: Model, value: Output, name: str) -> None:
    from openvino import opset13 as op

    result = op.result(value)
    result.output(0).set_names({name})
    model.add_results([result])


def _source(node: Node, i: int) -> Node:
    return node.input_value(i).get_node()


def _walk(node: Node, through: set[str]) -> Node:
    """The first node, upwards along first inputs, of another type than these."""
    while node.get_type_name() in through:
        node = _source(node, 0)
    return node


def _above(node: Node, i: int, kind: str) -> Node:
    """The node that feeds an input, which must be of this type."""
    found = _source(node, i)
    _expect(found.get_type_name() == kind, f"{found.get_type_name()} instead of {kind} before {node.get_type_name()}")
    return found


def _only_consumer(node: Node, kind: str) -> Node:
    users = [port.get_node() for port in node.output(0).get_target_inputs()]
    _expect([user.get_type_name() for user in users] == [kind], f"no lone {kind} after {node.get_type_name()}")
    return users[0]


def _redirect(old: Output, new: Output) -> None:
    for port in old.get_target_inputs():
        port.replace_source_output(new)


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _ForeignGraphError(otherwise)
