"""Folders with an ONNX decoder made elsewhere: what its inputs and outputs are called."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from .made_elsewhere import MadeElsewhere


@dataclass(frozen=True, slots=True)
class DecoderNames:
    """Inputs and outputs of a decoder graph; `%d` in a name stands for the layer. The defaults are optimum's."""

    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    past_key: str = "past_key_values.%d.key"
    past_value: str = "past_key_values.%d.value"
    logits: str = "logits"
    present_key: str = "present.%d.key"
    present_value: str = "present.%d.value"


class OnnxFolder(MadeElsewhere):
    """A decoder graph that takes its past as inputs and gives the present as outputs."""

    @property
    def formats(self) -> tuple[str, ...]:
        return ("onnx",)

    @property
    @abstractmethod
    def names(self) -> DecoderNames: ...
