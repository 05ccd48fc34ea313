"""Hugging Face encoder-decoders to ONNX: encoder and decoder of docs/onnx-encoder-decoder.md over one data file.

Like decoders (decoder.py): the model's own forward pass is traced with stand-ins in it, every weight written
once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import EngineMissingError, UnsupportedModelError
from ...runtime.interfaces import Tokens
from ...runtime.progress import Progress, Share
from ..quantize.weight_form import Activations, WeightForm, check_activations
from ..sources.encoder_decoder_families import ENCODER_DECODERS, encoder_decoder_facts
from ..sources.model_source import EXPORT_EXTRA
from .decoder import ACCURACY_LEVEL, described, measured

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BUILDER = 3  # raise it when a graph changes
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
UNHEARD = "static activations are fitted to text, and this model hears; choose --activations int8 or f32."


def export_encoder_decoder_onnx(
    model: PreTrainedModel,
    folder: Path,
    form: WeightForm,
    *,
    activations: Activations = "int8",
    samples: Sequence[Tokens] = (),
    progress: Progress | None = None,
) -> dict[str, str]:
    """Write encoder.onnx, decoder.onnx, observing.onnx and model.onnx.data; what a manifest's recipe says of them.

    model: in f32 on the CPU; it is the same afterwards. activations: as in export_onnx; "static" needs samples, which
        are read by the encoder and, as the answer to themselves, by the decoder.
    Raises UnsupportedModelError and OptionError before anything is written, and EngineMissingError without the export
    packages.
    """
    tell = progress or (lambda what, share: None)
    if model.config.model_type not in ENCODER_DECODERS:
        raise UnsupportedModelError(
            f"the family {model.config.model_type!r} cannot be exported as an encoder-decoder yet; those that can: "
            f"{', '.join(ENCODER_DECODERS)}."
        )
    check_activations(activations, form, samples)
    if activations == "static" and hasattr(model.config, "num_mel_bins"):
        raise UnsupportedModelError(UNHEARD)
    try:
        from .encoder_decoder_step import trace_decoder, trace_encoder
        from .encoder_decoder_swap import onnx_operators, swapped_encoder_decoder
        from .files import Data, data_file, fill, save, save_both
        from .gptq import text_rows
        from .passes import fuse, merge_siblings, parts_of, remove_transposes, store_halves
        from .static_activations import fit_inputs, multiply_integers
    except ImportError as error:
        raise EngineMissingError(f"exporting needs the package {error.name}. {EXPORT_EXTRA}") from error
    tell("tracing", 0.0)
    grids = fit_inputs(model, lambda: _copy_out(model, text_rows(samples))) if activations == "static" else None
    operators = onnx_operators(form, ACCURACY_LEVEL[activations])
    with swapped_encoder_decoder(model, operators) as state, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own future
        graphs = [trace_encoder(state), trace_decoder(state)]
        n_heads = state.cross[0].n_heads
    tell("simplifying", 0.3)
    each = []
    for traced in graphs:
        remove_transposes(traced.graph)
        fuse(traced.graph)
        parts = merge_siblings(traced.graph, parts_of(traced.graph, state.matrices))
        store_halves(traced.graph, parts)
        parts = parts if grids is None else multiply_integers(traced.graph, parts, grids)
        each.append(parts)
    losses: dict[str, float] = {}
    with data_file(folder) as file:
        data = Data(file, folder)
        for i, (traced, parts) in enumerate(zip(graphs, each, strict=True)):
            found = fill(traced, parts, data, _second_half(tell, i))
            losses |= {f"{i}.{name}": loss for name, loss in found.items()}
    save(graphs[0], folder / ENCODER)
    save_both(graphs[1], folder, DECODER)
    recipe = {
        "weights": described(form, state.matrices.values(), activations),
        "n_heads": str(n_heads),
        "activations": activations,
        "builder": f"seq2seq-{BUILDER}",
    }
    return recipe | measured(samples, losses)


def _copy_out(model: PreTrainedModel, rows: Tensor) -> object:
    """The model as it reads texts, and answers each with itself."""
    from torch import cat

    generation: Any = getattr(model, "generation_config", None)
    facts = encoder_decoder_facts(model.config, generation.to_dict() if generation is not None else {})
    start = rows.new_tensor([facts.decoder_start]).expand(len(rows), -1)
    return model(input_ids=rows, decoder_input_ids=cat([start, rows], dim=1), use_cache=False)


def _second_half(tell: Progress, i: int) -> Share:
    """What reports the writing of the encoder (0) or of the decoder (1)."""
    return lambda share: tell("quantizing and writing", 0.35 + 0.325 * (i + share))
