"""onnxruntime-genai over a folder of its own: plain decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .contract import Answer, Arrivals, NotHereError, Question, Setup


class OnnxRuntimeGenAi:
    """A Model and a Generator for each answer."""

    def __init__(self, model: Any, setup: Setup) -> None:
        import onnxruntime_genai

        self.version = onnxruntime_genai.__version__
        self._model, self._setup = model, setup

    @classmethod
    def reads(cls, path: Path, encoder_decoder: bool) -> bool:
        """A folder with genai_config.json."""
        return not encoder_decoder and (path / "genai_config.json").is_file()

    @classmethod
    def open(cls, setup: Setup) -> OnnxRuntimeGenAi:
        try:
            import onnxruntime_genai
        except ImportError as error:
            raise NotHereError(str(error)) from error
        if hasattr(onnxruntime_genai, "disable_telemetry_events"):
            onnxruntime_genai.disable_telemetry_events()
        config = onnxruntime_genai.Config(setup.path)
        session = {"intra_op_num_threads": setup.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        return cls(onnxruntime_genai.Model(config), setup)

    def answer(self, question: Question) -> Answer:
        import numpy as np
        import onnxruntime_genai

        setup = self._setup
        params = onnxruntime_genai.GeneratorParams(self._model)
        chosen: dict[str, Any] = {"do_sample": False}
        if setup.temperature > 0:
            chosen = {"do_sample": True, "temperature": setup.temperature, "top_k": 0, "top_p": 1.0}
            chosen["random_seed"] = setup.seed
        params.set_search_options(max_length=len(question.ids) + question.n_tokens, repetition_penalty=1.0, **chosen)
        arrivals = Arrivals(setup.ends, question.n_tokens)
        generator = onnxruntime_genai.Generator(self._model, params)
        generator.append_tokens(np.array(question.ids, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            if arrivals.add(generator.get_next_tokens()[:1]):
                break
        return arrivals.answer(arrivals.steps)


ENGINE = OnnxRuntimeGenAi
