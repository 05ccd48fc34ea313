"""Run as a process: llama.cpp tokenizes texts with the tokenizer in a GGUF file.

python -m pilotfish.exporters.gguf.llama_tokenize FILE < a JSON list of (text, special) > a JSON list of lists of ids

special: whether special tokens in the text are meant.

A process of its own, because llama.cpp ends the process over what it does not expect.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def process_environment() -> dict[str, str]:
    """The environment for a process that imports what this one can import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def _silent_library() -> Any:
    """llama.cpp's C functions, ready, in a process of one's own where nothing but answers may be printed."""
    lib: Any = importlib.import_module("llama_cpp.llama_cpp")

    @lib.llama_log_callback  # type: ignore[untyped-decorator]
    def silent(level: int, text: bytes | None, _: object) -> None:
        pass

    lib.pilotfish_log = silent  # C keeps no reference
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    return lib


def main(path: str) -> None:
    """Ids without a beginning-of-text token."""
    lib = _silent_library()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise SystemExit("llama.cpp cannot read the tokenizer")
    vocabulary = lib.llama_model_get_vocab(model)
    found = []
    for text, special in json.load(sys.stdin):
        data = text.encode()
        ids = (lib.llama_token * (len(data) + 8))()
        n = lib.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, special)
        found.append(list(ids[:n]))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
