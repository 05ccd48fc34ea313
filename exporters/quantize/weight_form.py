"""How an export stores its weights: one choice for the layers, and apart from it for the embedding and the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ...runtime.checks import whole
from ...runtime.errors import OptionError
from ...runtime.interfaces import Tokens

Stored: TypeAlias = Literal["fp32", "fp16", "int8", "int4"]
Activations: TypeAlias = Literal["int8", "static", "f32"]
"""What quantized weights are multiplied with: rows rounded as they come, rounded to scales of a text, or floats."""
_BLOCK = 32  # weights that share a scale


@dataclass(frozen=True, slots=True)
class WeightForm:
    """What weights become. int8 and int4 keep one scale per block of columns of a row; norms and biases stay f32.

    embedding, output: the token table and the last projection, which quantization hurts most and, where they are one
        matrix ("tied"), are stored once; None is the layers' form, but int8 where that is int4.
    symmetric: no zero point. Half a bit of error more, fewer bytes.
    """

    layers: Stored = "int4"
    embedding: Stored | None = None
    output: Stored | None = None
    block: int = _BLOCK
    symmetric: bool = False

    def __post_init__(self) -> None:
        for name, stored in (("layers", self.layers), ("embedding", self.embedding), ("output", self.output)):
            if stored not in (*get_args(Stored), *([] if name == "layers" else [None])):
                raise OptionError(f"{name} cannot be {stored!r}; choose one of {', '.join(get_args(Stored))}.")
        whole("block", self.block, 16)
        if self.block & (self.block - 1):
            raise OptionError(f"a block of {self.block} columns is not a power of two of at least 16; choose 32 or 64.")

    @property
    def embedding_form(self) -> Stored:
        """What the token table is stored as."""
        return self.embedding or _at_least_int8(self.layers)

    @property
    def output_form(self) -> Stored:
        """What the last projection is stored as."""
        return self.output or _at_least_int8(self.layers)


def _at_least_int8(stored: Stored) -> Stored:
    return "int8" if stored == "int4" else stored


def check_activations(activations: Activations, form: WeightForm | None, samples: Sequence[Tokens]) -> None:
    """Raise OptionError where static scales of activations cannot be: for weights that are not int8 with one scale a
    row, or without text.

    Scales that are left to the engine, and floats, always can.
    """
    if activations not in get_args(Activations):
        raise OptionError(f"activations cannot be {activations!r}; choose one of {', '.join(get_args(Activations))}.")
    if activations != "static":
        return
    if form is None or form.layers != "int8":
        stored = "the source's own" if form is None else form.layers
        raise OptionError(
            f"static activations are multiplied with int8 weights, and these are {stored}; choose --weights int8, or "
            "--activations int8."
        )
    if form.block != _BLOCK or form.symmetric:
        raise OptionError(
            "static activations go with weights of one scale a row and no zero point; leave --block and --symmetric "
            "out, or export formats that read them by themselves: a bundle keeps its other formats."
        )
    if not samples:
        raise OptionError(
            "static activations need text to be fitted to, and none was given; give samples, for example "
            "calibration_samples(tokenizer)."
        )


def as_they_come(activations: Activations) -> Literal["int8", "f32"]:
    """What formats without static scales do instead."""
    return "f32" if activations == "f32" else "int8"


def weight_form(
    weights: Stored | Literal["source"],
    embeddings: Stored | None = None,
    head: Stored | None = None,
    block: int = _BLOCK,
    symmetric: bool = False,
) -> WeightForm | None:
    """The form that an export's options describe; None keeps a GGUF file's own quantization. Raises OptionError."""
    if weights != "source":
        return WeightForm(weights, embeddings, head, block, symmetric)
    if embeddings or head or symmetric or block != _BLOCK:
        raise OptionError(
            "--weights source keeps every matrix as it is; drop --embeddings, --head, --block and --symmetric."
        )
    return None
