"""OpenVINO GenAI: plain, prompt lookup, and a draft model with a fixed or a confidence-driven length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .contract import Answer, Arrivals, NotHereError, Question, Setup, is_gguf

_DRAFTED, _CONFIDENCE, _NGRAM = 5, 0.4, 3  # of its own examples: draft tokens, threshold, tokens that are looked up


class OpenVinoGenAi:
    """An LLMPipeline in f32 with an f16 cache, the types of Pilotfish's exact default; no cache of earlier prompts."""

    def __init__(self, pipeline: Any, setup: Setup) -> None:
        import openvino_genai

        self.version = openvino_genai.__version__.split("-")[0]
        self._pipeline, self._setup = pipeline, setup

    @classmethod
    def reads(cls, path: Path, encoder_decoder: bool) -> bool:
        """A GGUF file, or a folder with an IR and its tokenizer."""
        return not encoder_decoder and (is_gguf(path) or (path / "openvino_tokenizer.xml").is_file())

    @classmethod
    def open(cls, setup: Setup) -> OpenVinoGenAi:
        try:
            import openvino_genai
        except ImportError as error:
            raise NotHereError(str(error)) from error
        device = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f16",
            "INFERENCE_NUM_THREADS": setup.threads,
        }
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        more: dict[str, Any] = {}
        if setup.variant == "lookup":
            more["prompt_lookup"] = True
        elif setup.draft is not None and setup.variant.startswith("draft"):
            more["draft_model"] = openvino_genai.draft_model(setup.draft, "CPU", **device)
        pipeline = openvino_genai.LLMPipeline(setup.path, "CPU", scheduler_config=scheduler, **device, **more)
        return cls(pipeline, setup)

    def answer(self, question: Question) -> Answer:
        """Tokens come in the groups in which its steps find them."""
        import numpy as np
        import openvino
        import openvino_genai

        setup = self._setup
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = question.n_tokens
        config.set_eos_token_id(min(setup.ends, default=-1))
        config.stop_token_ids = set(setup.ends)
        if setup.temperature > 0:
            config.do_sample, config.temperature, config.rng_seed = True, setup.temperature, setup.seed
        if setup.variant in ("lookup", "draft fixed"):
            config.num_assistant_tokens = _DRAFTED
        if setup.variant == "lookup":
            config.max_ngram_size = _NGRAM
        if setup.variant == "draft dynamic":
            config.assistant_confidence_threshold = _CONFIDENCE
        ids = np.array([question.ids], dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        arrivals = Arrivals(setup.ends, question.n_tokens)

        class Listener(openvino_genai.StreamerBase):  # type: ignore[misc]
            def write(self, token: int | list[int]) -> Any:
                done = arrivals.add([token] if isinstance(token, int) else token)
                status = openvino_genai.StreamingStatus
                return status.STOP if done else status.RUNNING

            def end(self) -> None:
                pass

        self._pipeline.generate(inputs, config, Listener())
        return arrivals.answer(arrivals.steps)


ENGINE = OpenVinoGenAi
