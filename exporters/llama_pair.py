"""What llama.cpp says of an encoder-decoder in a GGUF file, asked in a process of its own, because llama.cpp ends the
process over what it does not expect.

python -m pilotfish.exporters.llama_pair FILE THREADS < a JSON list of questions > f32 logits, one answer after another
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import EngineError
from ..runtime.gguf_file import read_gguf
from ..runtime.interfaces import Floats
from .llama_tokenize import process_environment, silent_library

_WIDTH = 16  # tokens of a step of the decoder
_GGML_F32 = 0


@dataclass(frozen=True, slots=True)
class Question:
    """What the encoder reads, what the decoder reads then, and after how many of its last tokens logits are wanted."""

    source: tuple[int, ...]
    tokens: tuple[int, ...]
    n_logits: int


def ask_llama_cpp(path: Path, questions: Sequence[Question], threads: int) -> Generator[Floats]:
    """Logits for each question, (n_logits, vocab_size), as they are computed; the KV cache is in f32.

    Raises EngineError where llama.cpp fails, and what read_gguf raises.
    """
    vocab_size = read_gguf(path).tensors["token_embd.weight"].shape[0]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.llama_pair", str(path.resolve()), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**process_environment(), "GGML_NO_BACKTRACE": "1"},  # else the last words are a debugger's
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps([asdict(question) for question in questions]).encode())
            process.stdin.close()
            for question in questions:
                data = process.stdout.read(4 * question.n_logits * vocab_size)
                if len(data) < 4 * question.n_logits * vocab_size:
                    said.seek(0)
                    words = said.read().decode("utf-8", "replace").strip().splitlines()
                    raise EngineError(f"llama.cpp cannot run {path}: {words[-1] if words else process.wait()}.")
                yield np.frombuffer(data, np.float32).reshape(question.n_logits, vocab_size)
        finally:
            process.kill()


def main(path: str, threads: str) -> None:
    """Answer the questions on standard input."""
    questions = [Question(tuple(q["source"]), tuple(q["tokens"]), q["n_logits"]) for q in json.load(sys.stdin)]
    lib = silent_library()
    model_params = lib.llama_model_default_params()
    model_params.n_gpu_layers, model_params.use_extra_bufts = 0, False
    model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model or not lib.llama_model_has_encoder(model) or not lib.llama_model_has_decoder(model):
        raise SystemExit("it is no encoder-decoder that llama.cpp reads")
    params = lib.llama_context_default_params()
    # A source is read at once, and no step may have more tokens than there is room for in the decoder's cache.
    longest = max(max(len(q.source), len(q.tokens)) for q in questions)
    params.n_ctx = params.n_batch = params.n_ubatch = max(_WIDTH, longest)
    params.n_threads = params.n_threads_batch = int(threads)
    params.type_k = params.type_v = _GGML_F32
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("there is no memory for its context")
    vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    for question in questions:
        _answer(lib, context, question, vocab_size)


def _answer(lib: Any, context: Any, question: Question, vocab_size: int) -> None:
    """Write the logits to standard output."""
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    _run(lib, lib.llama_encode, context, question.source, 0, len(question.source))
    n, first = len(question.tokens), len(question.tokens) - question.n_logits
    for at in range(0, n, _WIDTH):
        part = question.tokens[at : at + _WIDTH]
        wanted = max(0, min(len(part), at + len(part) - first))
        _run(lib, lib.llama_decode, context, part, at, wanted)
        for row in range(len(part) - wanted, len(part)):
            logits = lib.llama_get_logits_ith(context, row)
            sys.stdout.buffer.write(np.ctypeslib.as_array(logits, (vocab_size,)).astype(np.float32).tobytes())
    sys.stdout.buffer.flush()


def _run(lib: Any, step: Any, context: Any, tokens: Sequence[int], at: int, n_logits: int) -> None:
    """One pass of the encoder or the decoder over these tokens, the first of them at position `at`."""
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i] = token, at + i
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.logits[i] = i >= len(tokens) - n_logits
    code = step(context, batch)
    lib.llama_batch_free(batch)
    if code:
        raise SystemExit(f"{step.__name__} says {code}")


if __name__ == "__main__":
    main(*sys.argv[1:])
