"""The shares of experts in OpenVINO's graph of a GGUF file, mended.

OpenVINO 2026.4 takes the shares of the experts that are picked from those of all and does not make them one; where
they are the softmax of the scores of those (gpt-oss), it takes it along an axis of one number, so that all are 1.
"""

from __future__ import annotations

import numpy as np

from ...runtime.files.decoder_description import DecoderShape
from .graph import Model, Output, expect, walk


def mend_shares(model: Model, shape: DecoderShape) -> None:
    """Make the shares of the experts of each token one. Raises ForeignGraphError for a graph that is not known."""
    from openvino import opset13 as op

    if shape.experts is None or shape.family.mixture is None:
        return
    picked = [node for node in model.get_ordered_ops() if node.get_type_name() == "GatherElements"]
    expect(len(picked) == shape.n_layers, f"{len(picked)} choices of experts for {shape.n_layers} layers")
    for node in picked:
        scores = node.input_value(0).get_node()
        of_all = walk(scores, {"Reshape"}).get_type_name() == "Softmax"
        if of_all and not shape.family.mixture.whole:
            continue
        users = list(node.output(0).get_target_inputs())
        made = op.divide(node, op.reduce_sum(node, np.array([-1]), True)) if of_all else op.softmax(node, -1)
        for user in users:
            user.replace_source_output(made.output(0))
        if not of_all:
            _drop_softmax(made.output(0))


def _drop_softmax(shares: Output) -> None:
    """Without the softmax that follows along another axis."""
    at = shares
    for _ in range(4):
        users = [port.get_node() for port in at.get_target_inputs()]
        expect(len(users) == 1, "shares of experts that are used twice")
        if users[0].get_type_name() == "Softmax":
            for port in users[0].output(0).get_target_inputs():
                port.replace_source_output(users[0].input_value(0))
            return
        at = users[0].output(0)
    expect(False, "no softmax of the scores of experts")
