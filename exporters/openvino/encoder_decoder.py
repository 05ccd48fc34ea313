"""Hugging Face encoder-decoders to OpenVINO: encoder.xml and decoder.xml, as docs/openvino.md has them.

The steps of the ONNX graphs in torch's own operators are traced in f32 and converted; then the weights are compressed,
as those of decoders are.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import EngineMissingError, OptionError, UnsupportedModelError
from ...runtime.progress import Share
from ...runtime.telemetry import without_telemetry
from ..sources.encoder_decoder_families import ENCODER_DECODERS
from ..sources.model_source import EXPORT_EXTRA
from .compress import Compression, compress
from .decoder import recipe_of, remove_ir, save_ir
from .matrices import Model, encoder_decoder_matrices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUILDER = 2  # raise it when a graph changes
ENCODER, DECODER = "encoder.xml", "decoder.xml"
_TRACED = {"traced_encoder.xml": ENCODER, "traced_decoder.xml": DECODER}
_TOTAL = 19  # entries that the traced step sees: its room and its own three
_TABLES = ("relative_attention_bias", "embed_positions", "conv", "final_logits_bias")  # two axes, and no matrices


def check_encoder_decoder_columns(shapes: dict[str, tuple[int, ...]], wanted: Compression) -> None:
    """Raise OptionError where the block does not divide the columns of a matrix that becomes int8 or int4."""
    for name, shape in shapes.items():
        if len(shape) == 2 and not any(table in name for table in _TABLES):
            ends = {"embed_tokens": "embedding", "shared": "embedding", "lm_head": "output", "proj_out": "output"}
            part = next((part for key, part in ends.items() if key in name), "layers")
            wanted.check_columns(part, shape[1], name)


def trace_encoder_decoder_openvino(model: PreTrainedModel, folder: Path, wanted: Compression) -> dict[str, str]:
    """Write both halves in f32, to be compressed; what a manifest's recipe says of the model.

    model: in f32 on the CPU; it is the same afterwards. Raises UnsupportedModelError, OptionError and
    EngineMissingError before anything is written.
    """
    if model.config.model_type not in ENCODER_DECODERS:
        raise UnsupportedModelError(
            f"the family {model.config.model_type!r} cannot be exported as an encoder-decoder yet; those that can: "
            f"{', '.join(ENCODER_DECODERS)}."
        )
    if wanted.methods:
        raise OptionError("the weights of an encoder-decoder cannot be fitted to a text yet; leave the methods out.")
    check_encoder_decoder_columns({name: tuple(p.shape) for name, p in model.named_parameters()}, wanted)
    try:
        with without_telemetry():
            import openvino

        from ..torch_to_onnx.encoder_decoder_swap import swapped_encoder_decoder
        from .plain_attention import PLAIN
    except ImportError as error:
        raise EngineMissingError(f"exporting to OpenVINO needs the package {error.name}. {EXPORT_EXTRA}") from error
    try:
        with swapped_encoder_decoder(model, PLAIN) as state, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about every branch on a shape
            for name, made in zip(_TRACED, (_encoder(state), _decoder(state)), strict=True):
                openvino.save_model(made, folder / name, compress_to_fp16=False)
            n_heads = state.cross[0].n_heads
    except BaseException:
        _remove_traced(folder)
        raise
    return {"n_heads": str(n_heads)}


def compress_encoder_decoder_openvino(
    folder: Path, wanted: Compression, progress: Share | None = None
) -> dict[str, str]:
    """Make encoder.xml and decoder.xml of what was traced, which is removed; how, as entries of a recipe.

    Memory: what is compressed, beside the traced weights, which lie in a file and are mapped. Raises EngineError where
    OpenVINO or NNCF fails.
    """
    import openvino

    tell, counts = progress or (lambda share: None), Counter[str]()
    try:
        for i, (name, made) in enumerate(_TRACED.items()):
            graph = openvino.Core().read_model(folder / name)
            counts.update(compress(graph, encoder_decoder_matrices, wanted, _half(tell, i)))
            save_ir(graph, folder / made)
    finally:
        _remove_traced(folder)
    tell(1.0)
    return recipe_of(wanted, dict(sorted(counts.items())), f"seq2seq-{BUILDER}")


def _half(tell: Share, i: int) -> Share:
    """What reports the compression of the encoder (0) or of the decoder (1)."""
    return lambda share: tell(0.5 * i + 0.45 * share)


def _remove_traced(folder: Path) -> None:
    for name in _TRACED:
        remove_ir(folder / name)


def _encoder(state: Any) -> Model:
    from ..torch_to_onnx.encoder_decoder_step import Encode, encoder_inputs, encoder_outputs

    return _converted(Encode(state), encoder_inputs(state), encoder_outputs(state))


def _decoder(state: Any) -> Model:
    """The decoder, which sees new keys and values at the places `entries` of the cache, and gives out them alone."""
    from openvino import PartialShape, Type
    from openvino import opset13 as op

    from ..torch_to_onnx.encoder_decoder_step import Decode, decoder_inputs, decoder_outputs

    names = decoder_outputs(state)
    model = _converted(Decode(state), decoder_inputs(state, _TOTAL), names)
    entries = op.parameter(PartialShape([-1]), Type.i64, "entries")
    entries.output(0).set_names({"entries"})
    model.add_parameters([entries])
    for result, name in zip(model.get_results(), names, strict=True):
        if not name.startswith("present_"):
            continue
        grown = result.input_value(0).get_node()
        past, new = grown.input_value(0), grown.input_value(1)
        written = op.scatter_update(past, entries, new, op.constant(2, Type.i64)).output(0)
        for port in grown.output(0).get_target_inputs():
            port.replace_source_output(new if port.get_node() == result else written)
        result.output(0).set_names({name.replace("present", "new")})
    model.validate_nodes_and_infer_types()
    return model


def _converted(step: Any, inputs: dict[str, Any], outputs: list[str]) -> Model:
    """The graph of one forward pass, its inputs and outputs named and shaped."""
    import openvino
    import torch

    with torch.no_grad(), without_telemetry():
        model: Model = openvino.convert_model(step.eval(), example_input=tuple(tensor for tensor, _ in inputs.values()))
    shapes = {}
    for port, (name, (tensor, axes)) in zip(model.inputs, inputs.items(), strict=True):
        port.get_node().set_friendly_name(name)
        port.set_names({name})
        shapes[name] = [-1 if axis in axes else size for axis, size in enumerate(tensor.shape)]
    for port, name in zip(model.outputs, outputs, strict=True):
        port.set_names({name})
    model.reshape(shapes)
    return model
