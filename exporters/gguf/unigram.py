"""A unigram tokenizer as GGUF metadata: the way back from runtime/text/sentencepiece_unigram.py."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from ...runtime.errors import UnsupportedModelError
from ...runtime.text.gguf_vocabulary import UNKNOWN
from ...runtime.text.token_bytes import steps

_UNUSED_SCORE = -10000.0  # of rows of the model without a token, as llama.cpp's own converter has it


def unigram_rules(described: Mapping[str, Any], types: list[int]) -> dict[str, object]:
    """How a text is cut into tokens, for llama.cpp's "t5"; then `types` are made complete.

    described: a tokenizer.json. Raises UnsupportedModelError for what llama.cpp does not do to a text.
    """
    model: Mapping[str, Any] = described["model"]
    if model.get("byte_fallback"):
        raise _not_written("it spells what is unknown in bytes, which llama.cpp's unigram tokenizer does not")
    if model.get("unk_id") is None:
        raise _not_written("it has no token for what is unknown")
    charsmap, merged = b"", False
    for step in steps(described["normalizer"], "normalizers"):
        if step["type"] == "Precompiled" and not charsmap:
            charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
        elif step["type"] == "Replace" and step["pattern"] == {"Regex": " {2,}"}:
            merged = True
        elif step["type"] != "Strip":  # trial texts tell whether a strip is what llama.cpp does as well
            raise _not_written(f"its normalizer has the step {step['type']}, which llama.cpp's has not")
    prefixed = False
    for step in steps(described["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "WhitespaceSplit" or (step["type"], step.get("pattern")) == ("Split", {"Regex": " +"}):
            merged = True
        elif step["type"] == "Metaspace":
            prefixed = step.get("prepend_scheme", "always") != "never"
        else:
            raise _not_written(f"it cuts texts by {step['type']}, which llama.cpp's unigram tokenizer does not")
    scores = [float(score) for _, score in model["vocab"]]
    scores += [_UNUSED_SCORE] * (len(types) - len(scores))
    types[int(model["unk_id"])] = UNKNOWN
    found: dict[str, object] = {
        "model": "t5",
        "pre": "default",
        "scores": scores,
        "unknown_token_id": int(model["unk_id"]),
        "add_space_prefix": prefixed,
        "remove_extra_whitespaces": merged,
    }
    return found | ({"precompiled_charsmap": charsmap} if charsmap else {})


def _not_written(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"this tokenizer cannot be written as GGUF: {why}.")
