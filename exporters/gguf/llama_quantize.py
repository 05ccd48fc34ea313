"""Run as a process: llama.cpp quantizes a GGUF file, and its log goes to standard output.

python -m pilotfish.exporters.gguf.llama_quantize SOURCE OUT FILE_TYPE EMBEDDING_TYPE OUTPUT_TYPE THREADS

Numbers are llama.cpp's; -1 leaves a table's type to it. A process of its own, because llama.cpp ends the process over
what it does not expect.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from typing import Any

_BUFFER_BYTES = 1 << 29  # of rows that are held at once; llama.cpp takes 8 GiB where nothing is said


def main(source: str, out: str, file_type: str, embedding: str, output: str, threads: str) -> int:
    """0 where the file was written."""
    lib: Any = importlib.import_module("llama_cpp.llama_cpp")

    @lib.llama_log_callback  # type: ignore[untyped-decorator]
    def write(level: int, text: bytes | None, _: object) -> None:
        sys.stdout.buffer.write(text or b"")
        sys.stdout.buffer.flush()

    lib.llama_log_set(write, None)
    lib.llama_backend_init()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(file_type), int(threads)
    params.max_buf_size = _BUFFER_BYTES
    params.allow_requantize = True  # whoever asks has been told of the loss
    if int(embedding) >= 0:
        params.token_embedding_type = int(embedding)
    if int(output) >= 0:
        params.output_tensor_type = int(output)
    return int(lib.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
