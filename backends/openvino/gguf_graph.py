"""GGUF files as OpenVINO's own front end reads them: its graph is taken apart and put together as graph.py says.

Source: the graph that openvino 2026.4 makes. Each step looks at what it replaces and refuses what it does not know.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runtime.errors import UnsupportedModelError
from ...runtime.files.decoder_description import DecoderShape
from ...runtime.files.gguf_file import GgufFile
from ..common.environment import environment
from .gguf_experts import mend_shares
from .gguf_heads import Heads
from .graph import ForeignGraphError, Model, Node, Output, choose_rows, expect, parameter, reason, source, walk

_PAGING = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
# Compared with the reference engine by tests.
_PROVEN = ("llama", "qwen2", "qwen3", "gemma", "gemma3", "phi3", "mistral3", "smollm3", "qwen3moe", "olmoe", "gpt-oss")


def read_gguf_graph(file: GgufFile, shape: DecoderShape, q4_k_minima: str) -> Model:
    """The graph of a GGUF file whose header is known to be sound. Raises UnsupportedModelError.

    q4_k_minima: "f16", as in the file, or "integer", rounded to multiples of the block's scale.

    OpenVINO's own graph writes its cache along the wrong axis (2026.4: "indices point to non-existing output"), turns
    layers that do not rotate and forgets factors of frequencies. From the projections to the cache, the mask and
    attention everything is replaced here, and the faults go with it.
    """
    from openvino.frontend import FrontEndManager

    path = file.path
    refuse_gguf(file, shape)
    try:
        front_end = FrontEndManager().load_by_framework("gguf")
        with environment("OV_GGUF_Q4_K_ZP_F16", "1" if q4_k_minima == "f16" else "0"):
            model = front_end.convert(front_end.load(str(path)))
    except Exception as error:  # front ends raise classes of their own
        raise UnsupportedModelError(
            f"OpenVINO cannot read {path}: {reason(error)}. Open it with another engine."
        ) from error
    try:
        mend_shares(model, shape)
        _page(model, file, shape)
        choose_rows(model)
    except (ForeignGraphError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"OpenVINO's graph of {path} is not built as it is known here ({reason(error)}). "
            "Install openvino 2026.4, or open the file with another engine."
        ) from error
    return model


def refuse_gguf(file: GgufFile, shape: DecoderShape) -> None:
    """Raise UnsupportedModelError for what OpenVINO would compute otherwise, or not at all."""
    why = None
    if shape.attention_softcap is not None:
        why = "caps its attention scores, which OpenVINO's attention over blocks cannot"
    elif shape.architecture not in _PROVEN:
        why = f"is of the architecture {shape.architecture}, which OpenVINO's own reader is not known to get right"
    if why is not None:
        raise UnsupportedModelError(f"{file.path} {why}. Open it with another engine (onnx, llamacpp).")


def _page(model: Model, file: GgufFile, shape: DecoderShape) -> None:
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
    heads = Heads(file, shape, inputs[1])
    caches = [_replace_attention(node, i, shape, shared, heads) for i, node in enumerate(layers)]
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
    node: Node, layer: int, shape: DecoderShape, shared: dict[str, Node], heads: Heads
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
    rows = [heads.query(query, layer), heads.key(written[0], layer), heads.value(written[1])]
    caches = tuple(parameter(f"{kind}_cache.{layer}", [-1] * 4, Type.dynamic) for kind in ("key", "value"))
    scale, window = shape.head_dim**-0.5, shape.layers[layer].window or 0
    paged = openvino.op._PagedAttentionExtension(
        _attention_inputs([*rows, *caches], scale, window, heads.sinks(layer), shared)
    )
    for kind in "kv":
        paged.get_rt_info()[f"num_{kind}_heads"] = shape.kv_heads
        paged.get_rt_info()[f"{kind}_head_size"] = shape.head_dim
    after = _only_consumer(_only_consumer(node, "Transpose"), "Convert")
    apart = op.reshape(paged.output(0), np.array([1, -1, shape.n_heads, shape.head_dim]), False)
    _redirect(after.output(0), apart.output(0))
    return caches[0], caches[1]


def _attention_inputs(
    given: list[Node], scale: float, window: int, sinks: Node | None, shared: dict[str, Node]
) -> list[Output]:
    """The 28 inputs of PagedAttention in OpenVINO 2026.4, of which most belong to things that are not used.

    Source: the order that paged_attention_transformation writes.
    """
    from openvino import Type
    from openvino import opset13 as op

    def none(kind: Any, rank: int = 1) -> Node:
        return op.constant(np.empty([0] * rank), kind)

    zero, ints, floats = op.constant(0, Type.i32), Type.i32, Type.f32
    inputs = [*given, *(shared[name] for name in _PAGING), op.constant(scale, floats)]
    inputs += [op.constant(window, ints), none(floats), shared["max_context_len"]]  # ALiBi slopes
    inputs += [none(ints)]  # score aggregation window
    inputs += [none(ints), none(ints), none(floats)]  # rotation of cached keys
    inputs += [none(floats), zero, zero]  # sparse attention
    inputs += [none(floats, 4) if sinks is None else sinks]
    inputs += [zero, none(ints), none(ints), none(ints)]  # diversity of keys
    inputs += [none(ints)]  # types of tokens
    inputs += [shared["qq_bias"], shared["qq_bias_begins"]]
    return [node.output(0) for node in inputs]


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
