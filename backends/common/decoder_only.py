"""What sessions of decoder-only models have in common: there is nothing that could read a source."""

from __future__ import annotations

from ...runtime.errors import AbilityError
from ...runtime.interfaces import Floats, Indices, Tokens


class DecoderOnly:
    """Refuses a source."""

    def encode(self, source: Tokens | Floats) -> None:
        raise AbilityError(
            "this session has no encoder: it continues a prompt. Give the text as the prompt, or open an "
            "encoder-decoder bundle with the onnx or the openvino engine."
        )

    def attend(self, entries: Indices | None) -> None:
        raise AbilityError(
            "these steps see the whole cache; of decoder models the onnx engine, the openvino engine and the reference "
            "engine can leave parts out."
        )
