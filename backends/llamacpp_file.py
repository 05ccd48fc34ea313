"""Checks a GGUF file before llama.cpp sees it: what it trusts, and would end the process over, is tried here."""

from __future__ import annotations

from ..runtime.decoder_shape import DecoderShape, decoder_shape
from ..runtime.gguf_file import GgufFile


def check_file(file: GgufFile) -> DecoderShape:
    """The shape of the decoder in a file that llama.cpp can be given.

    Raises ModelFileError for what contradicts itself and UnsupportedModelError for what is not known here.
    """
    return decoder_shape(file)
