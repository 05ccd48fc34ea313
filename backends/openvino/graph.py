"""Decoder graphs in the form the session runs: PagedAttention, explicit positions, logits of chosen rows only.

Inputs: input_ids and position_ids (n,), logit_rows (m,), past_lens (1,), subsequence_begins (2,), block_indices (b,),
block_indices_begins (2,), max_context_len (), qq_bias (s,), qq_bias_begins (2,), and key_cache.<i> and value_cache.<i>
for each layer. Outputs: logits (m, vocab_size) and hidden (n, hidden_size), after the final norm.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.leaving import in_engine

Node: TypeAlias = Any  # openvino.Node: the package has no types for what its graphs are made of
Output: TypeAlias = Any  # openvino.Output
Model: TypeAlias = Any  # openvino.Model

_ATTENTION = "PagedAttentionExtension"
_AFTER_THE_HEAD = {"Reshape", "Convert", "Multiply", "Divide", "Tanh", "Add", "Squeeze", "Unsqueeze"}


class ForeignGraphError(Exception):
    """A graph that is not built as the surgery expects."""


def read_ir(path: Path, again: str = "Build the bundle again.") -> Model:
    """The graph of a stateful decoder IR. again: how to get a sound file.

    Raises ModelFileError and UnsupportedModelError.
    """
    from openvino._offline_transformations import paged_attention_transformation

    model = read_stateful_ir(path, again)
    try:
        paged_attention_transformation(model, allow_qq_bias=True)
        expect(bool(attentions(model)), "none of its attention is one that runs over blocks")
        expect(not model.get_sinks(), "a part of its past stays state")
        choose_rows(model)
    except (ForeignGraphError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{path} is no decoder that runs with PagedAttention: {reason(error)}. Take a .gguf file of the model, or "
            "export its weights (pilotfish export)."
        ) from error
    return model


def read_stateful_ir(path: Path, again: str) -> Model:
    """The graph of a decoder IR as it is. again: how to get a sound file.

    Raises ModelFileError, and UnsupportedModelError for a graph that keeps no past.
    """
    import openvino

    try:
        with in_engine:
            model = openvino.Core().read_model(path)
    except (RuntimeError, ValueError) as error:  # ValueError: its message quotes bytes of the file that are no text
        raise ModelFileError(f"OpenVINO cannot read {path}: {reason(error)}. {again}") from error
    names = {name for port in model.inputs for name in port.names}
    if not {"input_ids", "position_ids"} <= names:
        raise UnsupportedModelError(
            f"{path} has no inputs input_ids and position_ids: it is no decoder of texts, or one of another make."
        )
    if not model.get_sinks():
        raise UnsupportedModelError(
            f"{path} keeps no past as state. Export it with one: "
            "optimum-cli export openvino --task text-generation-with-past"
        )
    return model


def choose_rows(model: Model) -> None:
    """Logits of the rows in logit_rows only, and hidden states of all rows as an output."""
    from openvino import Type
    from openvino import opset13 as op

    results = model.get_results()
    expect(len(results) == 1, f"{len(results)} outputs besides the cache")
    head = walk(source(results[0], 0), _AFTER_THE_HEAD)
    expect(head.get_type_name() == "MatMul", f"{head.get_type_name()} where the output matrix is multiplied")
    hidden_size = head.input_value(0).get_partial_shape()[-1].get_length()
    vocab_size = results[0].get_output_partial_shape(0)[-1].get_length()
    hidden = op.reshape(head.input_value(0), np.array([-1, hidden_size]), False)
    chosen = parameter("logit_rows", [-1], Type.i32)
    head.input(0).replace_source_output(op.gather(hidden, chosen, op.constant(0, Type.i32)).output(0))
    model.add_parameters([chosen])
    head.validate_and_infer_types()
    logits = op.reshape(results[0].input_value(0), np.array([-1, vocab_size]), False)
    model.remove_result(results[0])
    _add_result(model, logits.output(0), "logits")
    _add_result(model, hidden.output(0), "hidden")
    model.validate_nodes_and_infer_types()


def attentions(model: Model) -> list[Node]:
    """The attention nodes, by layer."""
    found = [node for node in model.get_ops() if node.get_type_name() == _ATTENTION]
    return sorted(found, key=lambda node: int(node.input_value(3).any_name.rsplit(".", 1)[1]))


def score_scale(model: Model) -> float:
    """What scores are multiplied by before the softmax, in the first layer."""
    return float(_told(model, 9)[0])


def sliding_windows(model: Model) -> list[int]:
    """How many entries each layer's rows see, themselves included, by layer; 0 where they see all."""
    return [int(window) for window in _told(model, 10)]


def _told(model: Model, place: int) -> list[float]:
    """One number that each layer's attention is given: a constant, or computed from some."""
    import openvino
    from openvino import opset13 as op

    results = [op.result(node.input_value(place)) for node in attentions(model)]
    with in_engine:
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        found = openvino.Core().compile_model(openvino.Model(results, [], "told"), "CPU", settings)({})
    return [float(found[i]) for i in range(len(results))]


def add_queries(model: Model) -> None:
    """One output more per layer, query_<i>: (n, n_heads * head_dim), after rotation."""
    for i, node in enumerate(attentions(model)):
        _add_result(model, node.input_value(0), f"query_{i}")


def weight_group(model: Model) -> int:
    """How many weights share a scale, in most quantized matrices; 32 where none are in groups."""
    shapes = [node.get_output_shape(0) for node in model.get_ops() if node.get_type_name() == "Constant"]
    groups = Counter(int(dims[2]) for dims in shapes if len(dims) == 3 and dims[1] > 1 and dims[2] > 1)
    return groups.most_common(1)[0][0] if groups else 32


def reason(error: Exception) -> str:
    """What an OpenVINO exception says, without the places in OpenVINO's sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[-1].rstrip(".")


def parameter(name: str, dims: list[int], kind: Any) -> Node:
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


def source(node: Node, i: int) -> Node:
    return node.input_value(i).get_node()


def walk(node: Node, through: set[str]) -> Node:
    """The first node, upwards along first inputs, of another type than these."""
    while node.get_type_name() in through:
        node = source(node, 0)
    return node


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ForeignGraphError(otherwise)
