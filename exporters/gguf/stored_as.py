"""Whether a tensor of a GGUF file is already stored as an export wants it."""

from __future__ import annotations

from ...runtime.files.decoder_shape import ARCHITECTURES
from ..quantize.weight_form import Stored, WeightForm
from ..sources.model_source import ModelSource

_GGUF_BLOCK = 32


_GGUF_TYPES: dict[Stored, tuple[str, ...]] = {
    "fp32": ("F32",),
    "fp16": ("F16",),
    "int8": ("Q8_0",),
    "int4": ("Q4_0", "Q4_1"),
}


def is_stored_so(source: ModelSource, form: WeightForm) -> bool:
    """Whether a GGUF file holds its weights in this form already: its own blocks are nearer to it than any others.

    Rounding codes on one grid to another grid loses as much as rounding floats (SmolLM2 Q4_1, top-1 agreement with
    itself: 0.97 taken over, 0.76 rounded again).
    """
    if source.format != "gguf" or source.architecture not in ARCHITECTURES or form.block != _GGUF_BLOCK:
        return False
    from ...runtime.files.gguf_file import read_gguf

    tensors = read_gguf(source.path).tensors
    wanted = {"token_embd.weight": form.embedding_form, "output.weight": form.output_form}
    if "output.weight" not in tensors and form.output_form != form.embedding_form:
        return False
    return all(
        tensor.type_name in _GGUF_TYPES[wanted.get(name, form.layers)]
        and not (form.symmetric and tensor.type_name == "Q4_1")
        for name, tensor in tensors.items()
        if tensor.data.ndim > 1
    )
