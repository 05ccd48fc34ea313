"""llama-cpp-python: plain, and its own prompt lookup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .contract import Answer, Arrivals, NotHereError, Question, Setup, is_gguf


class LlamaCppPython:
    """A Llama, driven through its generate()."""

    def __init__(self, model: Any, setup: Setup) -> None:
        import llama_cpp

        self.version = llama_cpp.__version__
        self._model, self._setup, self._steps = model, setup, 0
        step = model.eval

        def counted(tokens: list[int]) -> None:
            self._steps += 1
            step(tokens)

        model.eval = counted

    @classmethod
    def reads(cls, path: Path, encoder_decoder: bool) -> bool:
        """A GGUF file of a decoder: its generate() knows no encoder."""
        return not encoder_decoder and is_gguf(path)

    @classmethod
    def open(cls, setup: Setup) -> LlamaCppPython:
        try:
            import llama_cpp
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
        except ImportError as error:
            raise NotHereError(str(error)) from error
        model = llama_cpp.Llama(
            setup.path,
            n_ctx=setup.room,
            n_threads=setup.threads,
            n_threads_batch=setup.threads,
            flash_attn=True,
            seed=setup.seed,
            draft_model=LlamaPromptLookupDecoding() if setup.variant == "lookup" else None,
            verbose=False,
        )
        return cls(model, setup)

    def answer(self, question: Question) -> Answer:
        """Nothing is left of the prompt before."""
        setup, model = self._setup, self._model
        model.reset()
        model.set_seed(setup.seed)
        self._steps = 0
        arrivals = Arrivals(setup.ends, question.n_tokens)
        chosen = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "temp": setup.temperature}
        for token in model.generate(list(question.ids), **chosen):
            if arrivals.add([token]):
                break
        return arrivals.answer(self._steps)


ENGINE = LlamaCppPython
