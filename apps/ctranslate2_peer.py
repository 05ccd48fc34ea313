"""CTranslate2's own greedy decoding of an encoder-decoder, for the benchmark only."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

from ..runtime.errors import OptionError


class CTranslate2:
    """A model that CTranslate2's own converter wrote, decoded one token at a time."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Raises OptionError where CTranslate2 is not installed or the folder holds none of its models."""
        try:
            package: Any = importlib.import_module("ctranslate2")
        except ImportError:
            raise OptionError("--ctranslate2 needs CTranslate2. Add it with: pip install ctranslate2") from None
        if not package.contains_model(str(folder)):
            raise OptionError(
                f"{folder} holds no model of CTranslate2. Make one with: ct2-transformers-converter --model FOLDER "
                "--output_dir OUT --quantization int8"
            )
        self._translator = package.Translator(
            str(folder), device="cpu", compute_type="default", inter_threads=1, intra_threads=threads
        )

    def decode(self, source: list[str], n_tokens: int) -> tuple[tuple[int, ...], float]:
        """Numbers of so many tokens, whatever they are, and the seconds that they took; the source not counted.

        An answer of one token is what is taken off for reading the source, so its time is counted again.
        """
        times = []
        for n in (1, max(n_tokens, 2)):
            began = time.perf_counter()
            self._translator.translate_batch(
                [source], beam_size=1, min_decoding_length=n, max_decoding_length=n, return_end_token=True
            )
            times.append(time.perf_counter() - began)
        n = max(n_tokens, 2)
        return tuple(range(n)), (times[1] - times[0]) * n / (n - 1)
