"""One decode step of a swapped model, traced by torch into an ONNX graph whose weights are still placeholders."""

from __future__ import annotations

from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..quiet import quiet
from .decoder_modules import Trace
from .decoder_swap import Swapped

Inputs: TypeAlias = dict[str, tuple[Tensor, dict[int, str]]]
"""Name, example and dynamic axes of each input of a graph."""

_N, _ROWS, _TOTAL, _ROOM = 3, 2, 7, 16  # sizes of the traced step: all different, none of them special


class _Step(nn.Module):
    """The contract of docs/onnx-graph.md as a forward pass."""

    def __init__(self, state: Swapped, sliding: bool) -> None:
        super().__init__()
        self.model, self.state, self.sliding = state.model, state, sliding

    def forward(self, input_ids: Tensor, position_ids: Tensor, logit_rows: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        biases, caches = rest[: 1 + self.sliding], rest[1 + self.sliding :]
        past = list(zip(caches[0::2], caches[1::2], strict=True))
        trace = Trace(position_ids, biases[0], biases[1] if self.sliding else None, past)
        self.state.trace = trace
        hidden: list[Tensor] = []

        def choose(head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            hidden.append(arguments[0][0])
            return (hidden[0].index_select(0, logit_rows),)

        # Through the whole model, whose own code may cap or scale what the output matrix gives.
        with self.model.get_output_embeddings().register_forward_pre_hook(choose):
            logits = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
        layers = range(len(past))
        presents = [tensor for i in layers for tensor in trace.present[i]]
        return (logits, hidden[0], *presents, *(trace.queries[i] for i in layers))


def trace_decoder(state: Swapped, sliding: bool) -> ir.Model:
    """The observing graph of the model: named as the contract says, weights placeholders named after their modules.

    sliding: with the second bias, for layers with a window.
    """
    config: Any = state.model.config
    kv_heads = config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    n_layers = config.num_hidden_layers
    biases = ["bias", *(["sliding_bias"] if sliding else [])]
    inputs: Inputs = {
        "input_ids": (torch.ones(1, _N, dtype=torch.int64), {1: "n"}),
        "position_ids": (torch.arange(_N)[None], {1: "n"}),
        "logit_rows": (torch.arange(_ROWS), {0: "m"}),
    }
    inputs |= {name: (torch.zeros(1, 1, _N, _TOTAL), {2: "n", 3: "T"}) for name in biases}
    for i in range(n_layers):
        for kind in ("key", "value"):
            inputs[f"past_{kind}_{i}"] = (torch.zeros(1, kv_heads, _ROOM, head_dim), {2: "MAX"})
    kinds = [f"{kind}_{i}" for i in range(n_layers) for kind in ("key", "value")]
    outputs = ["logits", "hidden", *(f"present_{kind}" for kind in kinds), *(f"query_{i}" for i in range(n_layers))]
    return traced(_Step(state, sliding), inputs, outputs, n_named=3)


def traced(step: nn.Module, inputs: Inputs, outputs: list[str], n_named: int) -> ir.Model:
    """The graph of one forward pass. n_named: inputs that forward() has a parameter of their own for; the rest come
    together."""
    dims = {symbol: torch.export.Dim(symbol) for _, axes in inputs.values() for symbol in axes.values()}
    shapes = [{axis: dims[symbol] for axis, symbol in axes.items()} for _, axes in inputs.values()]
    rest = (tuple(shapes[n_named:]),) if len(shapes) > n_named else ()
    with quiet("torch.onnx"), torch.no_grad():
        program = torch.onnx.export(
            step.eval(),
            tuple(tensor for tensor, _ in inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=(*shapes[:n_named], *rest),
            dynamo=True,
            opset_version=21,
            verbose=False,
        )
    assert program is not None
    return program.model
