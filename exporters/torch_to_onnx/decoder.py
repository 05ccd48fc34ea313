"""Hugging Face decoders to ONNX: one exporter for all families, which traces the model's own forward pass.

Attention, linear layers, norms, embeddings and rotary embeddings of the model are exchanged for stand-ins that say
which operator they are (decoder_swap.py); what is between them is traced as it is. The graph is docs/onnx-graph.md's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.errors import EngineMissingError, UnsupportedModelError
from ...runtime.interfaces import Tokens
from ...runtime.progress import Progress
from ..quantize.weight_form import Activations, WeightForm, check_activations
from ..sources.families import SUPPORTED, text_settings, window_of
from ..sources.model_source import EXPORT_EXTRA

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..quantize.blocks import Blocks
    from .initializers import Matrix
    from .static_activations import InputGrids

BUILDER = 2  # raise it when the graph changes
ACCURACY_LEVEL = {"int8": 4, "static": 4, "f32": 0}  # of MatMulNBits


def export_onnx(
    model: PreTrainedModel,
    folder: Path,
    form: WeightForm,
    *,
    activations: Activations = "int8",
    samples: Sequence[Tokens] = (),
    progress: Progress | None = None,
) -> dict[str, str]:
    """Write model.onnx, observing.onnx and model.onnx.data into the folder; what a manifest's recipe says of them.

    model: in f32 on the CPU; it is the same afterwards. Weights are quantized one at a time as they are written.
    activations: "int8" multiplies quantized weights with activations rounded to int8 per row and block, the fast
        path; "static" to one scale of each matrix's inputs, chosen by the samples (static_activations.py): int8 weights
        only, and faster for several rows at once where matrices are narrow; "f32" keeps them in f32.
    samples: a text of some thousand tokens that int4 layers are fitted to (gptq.py); none: they are rounded.
    Raises UnsupportedModelError before anything is written, and EngineMissingError without the export packages.
    """
    tell = progress or (lambda what, share: None)
    if model.config.model_type not in SUPPORTED:
        raise UnsupportedModelError(
            f"the family {model.config.model_type!r} cannot be exported to ONNX yet; those that can: "
            f"{', '.join(SUPPORTED)}."
        )
    text_settings(
        model.config.to_dict(), Path(model.config.name_or_path or "the model")
    )  # what a trace would leave out
    check_activations(activations, form, samples)
    try:
        from .decoder_step import trace_decoder
        from .decoder_swap import swapped
        from .files import write_graph
        from .gptq import fit_layers, text_rows
        from .passes import fuse, merge_siblings, parts_of, remove_transposes, store_halves
        from .static_activations import fit_inputs, multiply_integers
    except ImportError as error:
        raise EngineMissingError(f"exporting needs the package {error.name}. {EXPORT_EXTRA}") from error
    window = window_of(model.config)
    fitted: dict[str, Blocks] = {}
    grids: InputGrids = {}
    if activations == "static":
        grids = fit_inputs(model, lambda: model(input_ids=text_rows(samples), use_cache=False))
    elif samples:
        fitted = fit_layers(model, form, samples, lambda share: tell("fitting the layers", 0.5 * share))
    rest = 0.5 if samples else 1.0  # of the time
    tell("tracing", 1 - rest)
    with swapped(model, form, ACCURACY_LEVEL[activations], fitted) as state, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own future
        traced = trace_decoder(state, window is not None)
    tell("simplifying", 1 - 0.7 * rest)
    remove_transposes(traced.graph)
    fuse(traced.graph)
    parts = merge_siblings(traced.graph, parts_of(traced.graph, state.matrices))
    store_halves(traced.graph, parts)
    if activations == "static":
        parts = multiply_integers(traced.graph, parts, grids)
    losses = write_graph(traced, parts, folder, lambda share: tell("writing", 1 - 0.65 * rest * (1 - share)))
    recipe = {
        "weights": described(form, state.matrices.values(), activations),
        "n_heads": str(model.config.num_attention_heads),
        "activations": activations,
        "builder": f"hf-{BUILDER}",
        **({"sliding_window": str(window)} if window is not None else {}),
        **({"data_aware": "gptq"} if fitted else {}),
    }
    return recipe | measured(samples, losses)


def measured(samples: Sequence[Tokens], losses: Mapping[str, float]) -> dict[str, str]:
    """What a recipe says of the text that weights were fitted to, and of what rounding them lost."""
    found = {}
    if samples:
        found["calibration_tokens"] = str(sum(len(sample) for sample in samples))
    if losses:
        found["largest_relative_loss"] = f"{max(losses.values()):.4f}"
    return found


def described(form: WeightForm, matrices: Iterable[Matrix], activations: Activations) -> str:
    """How weights are stored, for people: in the blocks that were taken, where the one asked for does not divide the
    columns, too."""
    rounded = [matrix for matrix in matrices if matrix.stored in ("int8", "int4")]
    blocks = sorted({matrix.block for matrix in rounded if matrix.bits is not None}, reverse=True)
    text = f"{form.layers}, embedding {form.embedding_form}, output {form.output_form}"
    if blocks:
        text += f", block {' and '.join(map(str, blocks))}{' symmetric' if form.symmetric else ''}"
    if activations == "static":
        text += ", in int8 products one scale a row"
    whole = sum(matrix.bits is None for matrix in rounded)
    return f"{text}, {whole} matrices without blocks in fp32" if whole else text
