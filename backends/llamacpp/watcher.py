"""Attention as llama.cpp computes it, read layer by layer while a step runs."""

from __future__ import annotations

import ctypes

import numpy as np

from ...runtime.errors import EngineError
from ...runtime.interfaces import Floats, ModelInfo
from .library import function


class Watcher:
    """Reads the softmax of every layer while a step is computed."""

    def __init__(self, info: ModelInfo) -> None:
        self._info = info
        self._name = function("ggml_get_name", ctypes.c_char_p, ctypes.c_void_p)
        self._nbytes = function("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
        self._get = function(
            "ggml_backend_tensor_get", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
        )
        self._n_rows = 0
        self._seen: dict[int, Floats] = {}

    def begin(self, n_rows: int) -> None:
        """A step of so many rows follows."""
        self._n_rows = n_rows
        self._seen = {}

    def look(self, tensor: int, ask: bool, _: object) -> bool:
        """llama.cpp asks whether a tensor is wanted, and shows it once it is there."""
        name: bytes = self._name(tensor)
        if not name.startswith(b"kq_soft_max-"):
            return not ask
        layer = int(name.split(b"-")[1])
        if not self._n_rows or layer in self._seen:  # of an encoder; or of what the same layer reads in the source
            return not ask
        if not ask:
            size = self._nbytes(tensor)
            shares = np.empty(size // 4, dtype=np.float32)
            self._get(tensor, shares.ctypes.data, 0, size)
            self._seen[layer] = shares.reshape(self._info.n_heads, self._n_rows, -1)
        return True

    def attention(self, n_entries: int) -> Floats:
        """(n_layers, n_heads, n_rows, n_entries) of the last step."""
        if len(self._seen) != self._info.n_layers:
            raise EngineError(
                f"llama.cpp showed the attention of {len(self._seen)} layers of {self._info.n_layers}; "
                "its names must have changed. The reference engine shows attention too."
            )
        return np.stack([self._seen[layer][:, :, :n_entries] for layer in range(self._info.n_layers)])
