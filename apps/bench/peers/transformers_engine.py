"""transformers on PyTorch: plain, prompt lookup, and assisted generation with a draft model."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .contract import Answer, Arrivals, NotHereError, Question, Setup, has_safetensors, is_gguf

# Imported by name: no module of the product depends on torch but the exporters.
_LOOKED_UP = 10  # tokens, as in its own documentation


class Transformers:
    """A model in float32. A GGUF file is dequantized: its weights are the same, its speed is that of float32."""

    def __init__(self, model: Any, draft: Any, setup: Setup) -> None:
        self._lib, self._torch = (importlib.import_module(name) for name in ("transformers", "torch"))
        self.version = str(self._lib.__version__)
        self._model, self._draft, self._setup, self._steps = model, draft, setup, 0
        stepping = model.get_decoder() if setup.encoder_decoder else model
        stepping.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self._steps += 1

    @classmethod
    def reads(cls, path: Path, encoder_decoder: bool) -> bool:
        """A folder of safetensors, or a GGUF file."""
        return has_safetensors(path) or (is_gguf(path) and not encoder_decoder)

    @classmethod
    def open(cls, setup: Setup) -> Transformers:
        try:
            lib, torch = importlib.import_module("transformers"), importlib.import_module("torch")
        except ImportError as error:
            raise NotHereError(str(error)) from error
        torch.set_num_threads(setup.threads)
        kind = lib.AutoModelForSeq2SeqLM if setup.encoder_decoder else lib.AutoModelForCausalLM

        def opened(path: Path) -> Any:
            whole = {} if path.is_dir() else {"gguf_file": path.name}
            folder = path if path.is_dir() else path.parent
            return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **whole).eval()

        draft = opened(Path(setup.draft)) if setup.draft is not None and setup.variant == "assisted" else None
        return cls(opened(Path(setup.path)), draft, setup)

    def answer(self, question: Question) -> Answer:
        """Tokens come in the groups in which its steps find them."""
        setup, lib, torch = self._setup, self._lib, self._torch
        arrivals = Arrivals(setup.ends, question.n_tokens)
        ended = lib.StoppingCriteriaList([lambda *_, **__: torch.tensor([arrivals.complete])])

        class Listener(lib.generation.streamers.BaseStreamer):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                self.begun = False

            def put(self, value: Any) -> None:
                if self.begun:
                    arrivals.add(value.reshape(-1).tolist())
                self.begun = True  # the first that it is given is the prompt

            def end(self) -> None:
                pass

        own = self._model.generation_config
        chosen: dict[str, Any] = {"do_sample": False}
        if setup.temperature > 0:
            chosen = {"do_sample": True, "temperature": setup.temperature, "top_k": 0, "top_p": 1.0}
            torch.manual_seed(setup.seed)
        config = lib.GenerationConfig(
            max_new_tokens=question.n_tokens,
            eos_token_id=list(setup.ends) or None,
            pad_token_id=min(setup.ends, default=0),
            decoder_start_token_id=getattr(own, "decoder_start_token_id", None),
            **({"prompt_lookup_num_tokens": _LOOKED_UP} if setup.variant == "lookup" else {}),
            **chosen,
        )
        ids = torch.tensor([question.ids])
        self._steps = 0
        with torch.inference_mode():
            self._model.generation_config = config
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                streamer=Listener(),
                stopping_criteria=ended,
                **({} if self._draft is None else {"assistant_model": self._draft}),
            )
            self._model.generation_config = own
        return arrivals.answer(self._steps)


ENGINE = Transformers
