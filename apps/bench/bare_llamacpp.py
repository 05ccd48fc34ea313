"""llama.cpp's own plain decoding of the same file, for the benchmark only: its low-level loop, nothing of ours."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np

from ...runtime.files.model_file import ModelFile

_PROBE = "import sys, llama_cpp; m = llama_cpp.Llama(sys.argv[1], n_ctx=64, verbose=False); m.eval(list(range(32)))"


class LlamaCpp:
    """A llama.cpp context that decodes greedily."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def open(cls, model: ModelFile, threads: int, max_context: int) -> LlamaCpp | None:
        """The peer, or None where llama-cpp-python cannot be imported, the model is no .gguf file, or the build dies on
        it (tried in a process of its own: some builds end in an illegal instruction)."""
        try:
            import llama_cpp
        except Exception:  # it is missing, or broken in whatever way
            return None
        if model.formats != ("gguf",):
            return None
        probe = subprocess.run([sys.executable, "-c", _PROBE, str(model)], capture_output=True, check=False)
        if probe.returncode != 0:
            return None
        opened = llama_cpp.Llama(
            str(model), n_ctx=max_context, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
        )
        return cls(opened)

    def decode(self, prompt: list[int], n_tokens: int) -> tuple[tuple[int, ...], float]:
        """Greedy tokens and the seconds that they took, the prompt not counted."""
        import llama_cpp

        model = self._model
        tokens: list[int] = []
        model.reset()
        model.eval(prompt[:-1])
        last, n_vocab = prompt[-1], model.n_vocab()
        ends = {model.token_eos(), llama_cpp.llama_vocab_eot(llama_cpp.llama_model_get_vocab(model.model))}
        began = time.perf_counter()
        while len(tokens) < n_tokens:
            model.eval([last])
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(n_vocab,))
            last = int(logits.argmax())
            tokens.append(last)
            if last in ends:
                break
        return tuple(tokens), time.perf_counter() - began

    def close(self) -> None:
        """Free the context."""
        self._model.close()
