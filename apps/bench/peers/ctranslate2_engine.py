"""CTranslate2 for encoder-decoder models: plain decoding."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from .contract import Answer, Arrivals, NotHereError, Question, Setup, has_safetensors

_VOCABULARIES = ("shared_vocabulary.json", "source_vocabulary.json")


class CTranslate2:
    """A Translator in float32, over a folder of its own or one converted from Hugging Face weights."""

    def __init__(self, translator: Any, words: list[str], setup: Setup) -> None:
        import ctranslate2

        self.version = ctranslate2.__version__
        self._translator, self._words, self._setup = translator, words, setup

    @classmethod
    def reads(cls, path: Path, encoder_decoder: bool) -> bool:
        """Its own folder, or a folder of safetensors, which is converted (transformers and torch are needed)."""
        return encoder_decoder and ((path / "model.bin").is_file() or has_safetensors(path))

    @classmethod
    def open(cls, setup: Setup) -> CTranslate2:
        try:
            import ctranslate2
        except ImportError as error:
            raise NotHereError(str(error)) from error
        folder = Path(setup.path)
        with tempfile.TemporaryDirectory() as made:
            if not (folder / "model.bin").is_file():
                from ctranslate2.converters import TransformersConverter

                TransformersConverter(str(folder)).convert(made, force=True)
                folder = Path(made)
            translator = ctranslate2.Translator(
                str(folder), compute_type="float32", inter_threads=1, intra_threads=setup.threads
            )
            named = next((folder / name for name in _VOCABULARIES if (folder / name).is_file()), None)
            if named is None:
                raise ValueError(f"{folder} has no {' or '.join(_VOCABULARIES)}")
            words: list[str] = json.loads(named.read_text("utf-8"))
        return cls(translator, words, setup)

    def answer(self, question: Question) -> Answer:
        """Tokens come one by one."""
        import ctranslate2

        setup = self._setup
        sampling: dict[str, Any] = {}
        if setup.temperature > 0:
            ctranslate2.set_random_seed(setup.seed)
            sampling = {"sampling_topk": 0, "sampling_temperature": setup.temperature}
        arrivals = Arrivals(setup.ends, question.n_tokens)
        source = [self._words[token] for token in question.ids]
        steps = self._translator.generate_tokens(source, max_decoding_length=question.n_tokens, **sampling)
        for step in steps:
            if arrivals.add([step.token_id]):
                break
        return arrivals.answer(arrivals.steps)


ENGINE = CTranslate2
