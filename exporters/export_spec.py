"""What is to be written of a model, and about how many bytes that will be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..runtime.interfaces import Tokens
from .quantize.weight_form import Activations, Stored, WeightForm
from .sources.model_source import ModelSource

DataAware: TypeAlias = Literal["awq", "scale", "gptq"]

_BYTES: dict[Stored, float] = {"fp32": 4.0, "fp16": 2.0, "int8": 1.2, "int4": 0.75}  # a weight, scales included
_ROUGH = 1.1  # graph, alignment, observing graph


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """What is to be written of a model, and how.

    form: None keeps a GGUF file's own quantization. samples: what data-aware methods and static activations look at.
    context: tokens that targets of the mobile pack hold where their cache has a fixed size.
    """

    form: WeightForm | None = field(default_factory=WeightForm)
    activations: Activations = "int8"
    data_aware: tuple[DataAware, ...] = ()
    samples: tuple[Tokens, ...] = ()
    ratio: float = 1.0
    gguf_kind: str | None = None
    context: int = 1024


def sizes(source: ModelSource) -> tuple[int, int]:
    """Number of weights in the layers, and in embedding and output."""
    layers = ends = 0
    for name, shape in source.weights.shapes().items():
        n = 1
        for size in shape:
            n *= size
        if "embed_tokens" in name or "lm_head" in name:
            ends += n
        else:
            layers += n
    return layers, ends


def stored_bytes(source: ModelSource, spec: ExportSpec) -> int:
    """Bytes of the weights as they will be stored, roughly."""
    if spec.form is None:
        return int(1.5 * source.path.stat().st_size)  # 5 and 6 bits widen to 8
    layers, ends = sizes(source)
    widest = max(_BYTES[spec.form.embedding_form], _BYTES[spec.form.output_form])
    return int(_ROUGH * (layers * _BYTES[spec.form.layers] + ends * widest))
