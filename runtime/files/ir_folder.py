"""A folder with a decoder IR as optimum-intel writes it: openvino_model.xml, its weights, settings and tokenizer."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

from ..errors import ModelFileError
from ..lfs_pointer import refuse_pointer
from .made_elsewhere import MadeElsewhere

IR_NAME = "openvino_model.xml"
_NET = re.compile(r"<net\b[^>]*\bversion=")
_STATE = re.compile(r'\btype="ReadValue"')
_STORED = re.compile(r'\boffset="(\d{1,18})" size="(\d{1,18})"')


class IrFolder(MadeElsewhere):
    """Its past is state of the graph, or the engine refuses it.

    What OpenVINO's own tokenizers need may lie beside it and is not read.
    """

    @property
    def formats(self) -> tuple[str, ...]:
        return ("openvino",)

    @property
    def kind(self) -> str:
        past = "its past as state" if _STATE.search(self._text) else "without state: its past is not kept in it"
        return f"a decoder IR made elsewhere (optimum-intel), {past}"

    @property
    def graph(self) -> Path:
        return self._path / IR_NAME

    @property
    def settings_file(self) -> Path:
        return self._path / "config.json"

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """The graph and its weights, which are as long as the graph says. Raises ModelFileError."""
        values = self.graph.with_suffix(".bin")
        if not values.is_file():
            raise ModelFileError(f"{values} is missing: {IR_NAME} holds the graph alone. Fetch or copy it, too.")
        for file in (self.graph, values):
            refuse_pointer(file)
        text = self._text
        if _NET.search(text) is None:  # OpenVINO would try it as every other format, and tell of each
            raise ModelFileError(f"{self.graph} is no IR of OpenVINO. Fetch or copy it again.")
        end = max((int(offset) + int(size) for offset, size in _STORED.findall(text)), default=0)
        there = values.stat().st_size
        if there < end:
            raise ModelFileError(
                f"{values} is truncated: it has {there} bytes, and {IR_NAME} names {end}. Fetch or copy it again."
            )
        return self.graph, values

    @property
    def _text(self) -> str:
        try:
            return self.graph.read_text("utf-8", "replace")
        except OSError as error:
            raise ModelFileError(f"{self.graph} cannot be read: {error.strerror or error}.") from error
