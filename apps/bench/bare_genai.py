"""OpenVINO GenAI's own plain decoding of the same IR, for the benchmark only."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runtime.files.model_file import ModelFile


class OpenVinoGenAi:
    """An LLMPipeline that decodes greedily."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @classmethod
    def open(cls, model: ModelFile, threads: int, max_context: int) -> OpenVinoGenAi | None:
        """The peer, or None where openvino-genai is not installed or the model is no bundle with an IR and its
        tokenizer. Precision and cache type are those of our engine's exact default."""
        try:
            import openvino_genai
        except Exception:  # it is missing, or broken in whatever way
            return None
        if "openvino" not in model.formats or not (model.path / "openvino_tokenizer.xml").exists():
            return None
        settings = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16", "INFERENCE_NUM_THREADS": threads}
        return cls(openvino_genai.LLMPipeline(str(model), "CPU", **settings))

    def decode(self, prompt: list[int], n_tokens: int) -> tuple[tuple[int, ...], float]:
        """Greedy tokens and the seconds that they took, the prompt and the token it gives not counted, but scaled to
        all of them."""
        import openvino
        import openvino_genai

        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        inputs = openvino_genai.TokenizedInputs(ids, openvino.Tensor(np.ones((1, len(prompt)), dtype=np.int64)))
        result = self._pipeline.generate(inputs, max_new_tokens=n_tokens, do_sample=False, ignore_eos=True)
        tokens = tuple(int(t) for t in result.tokens[0])
        return tokens, 1e-3 * result.perf_metrics.get_tpot().mean * len(tokens)

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline = None
