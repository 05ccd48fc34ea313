"""What the targets of the mobile pack share: the source, its weights, its answer to a short text."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...runtime.errors import ParityError
from ...runtime.interfaces import Floats, Tokens
from ...runtime.profiling.canary import TEXT
from ..onnx.decoder import Decoder
from ..quantize.weight_form import WeightForm
from ..sources.model_source import ModelSource
from .decoder_weights import refuse_family, torch_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..onnx.decoder import Decoder


PROBE = 32  # tokens that every target is asked about
_LIMITS = {"fp32": 5e-3, "fp16": 0.02, "int8": 0.15, "int4": 0.5}  # as thresholds.py has them


@dataclass(frozen=True, slots=True)
class Written:
    """What one target left in its folder.

    file: the one that is opened, relative to the folder. recipe: how it was made. report: what running it once
    measured; empty where it could not be run here.
    """

    file: str
    recipe: dict[str, str] = field(default_factory=dict)
    report: dict[str, float] = field(default_factory=dict)


class Pack:
    """One model on its way to the targets; what is expensive is made when it is first asked for, and kept.

    model: the source's torch model, where the caller has it. onnx: a decoder graph of docs/onnx-graph.md that was
    made of it. form: None keeps a GGUF file's own quantization. activations: of the target ort, as in export_onnx.
    """

    def __init__(
        self,
        source: ModelSource,
        form: WeightForm | None,
        *,
        model: PreTrainedModel | None = None,
        onnx: Path | None = None,
        activations: Literal["int8", "f32"] = "int8",
        context: int = 1024,
    ) -> None:
        self.source, self.form, self.onnx, self.activations = source, form, onnx, activations
        self.context = min(context, source.context_length)
        self._model = model
        self._answer: Floats | None = None

    @cached_property
    def as_is(self) -> bool:
        """Whether a GGUF file's own blocks are taken over, as they are where they have the form that was asked for."""
        from ..gguf.stored_as import is_stored_so

        return self.form is None or is_stored_so(self.source, self.form)

    @property
    def stored(self) -> str:
        """What the layers' weights are stored as: "int4" and so on, or "source"."""
        return "source" if self.form is None or self.as_is else self.form.layers

    def torch_model(self) -> PreTrainedModel:
        """The source in f32. Nobody may change it."""
        if self._model is None:
            self._model = self.source.torch_model()
        return self._model

    def decoder(self) -> Decoder:
        """The weights as onnx/fixed_shape_graph.py takes them. Raises UnsupportedModelError."""

        return decoder_of(self)

    def probe(self) -> tuple[Tokens, Floats]:
        """A short text, and the source's logits after each of its tokens, (n, vocab_size)."""
        tokens = self.source.tokenizer.encode(TEXT)[: min(PROBE, self.context)]
        if self._answer is None:
            from ..parity.judge import SourceJudge

            self._answer = SourceJudge(self.torch_model()).logits(tokens)
        return tokens, self._answer

    def compare(self, target: str, found: Floats, limit: float | None = None) -> dict[str, float]:
        """How far logits after the first tokens of the probe are from the source's.

        limit: of the relative difference; None: what weights of this form are allowed, and of a GGUF file's own blocks
        what rounded activations are. Raises ParityError beyond it.
        """
        wanted = self.probe()[1][: len(found)]
        report = distance(found, wanted)
        if limit is None:
            limit = _LIMITS["int8" if self.form is None or self.as_is else self.form.layers]
        if not report["relative_difference"] <= limit:
            raise ParityError(
                f"the {target} model is too far from its source and was not kept: its logits differ by "
                f"{report['relative_difference']:.3g} of their spread, at most {limit:g} is allowed. "
                "Choose weights of more bits."
            )
        return report


def distance(found: Floats, wanted: Floats) -> dict[str, float]:
    """How far logits (n, vocab_size) are from others: the largest difference, the root mean square in units of the
    spread of the right ones, and the share of rows with the same best token."""
    spread = float(np.sqrt(np.square(wanted - wanted.mean(axis=-1, keepdims=True), dtype=np.float64).mean()))
    error = float(np.sqrt(np.square(found - wanted, dtype=np.float64).mean()))
    return {
        "max_difference": float(np.abs(found - wanted).max()),
        "relative_difference": error / max(spread, 1e-30),
        "agreement": float((found.argmax(axis=-1) == wanted.argmax(axis=-1)).mean()),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Converters warn of their own future by the thousand, and torch with them."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def decoder_of(pack: Pack) -> Decoder:
    """The decoder of a pack: quantized as its form says, or a GGUF file's own blocks."""
    if pack.form is None or pack.as_is:
        from ...runtime.files.gguf_file import read_gguf
        from ..onnx.stored_decoder import StoredDecoder

        return StoredDecoder(read_gguf(pack.source.path)).decoder()
    refuse_family(pack.source)
    return torch_decoder(pack.torch_model(), pack.form)
