"""The vocabulary in a GGUF file's metadata: texts, kinds and scores of its tokens, checked.

Kinds are what llama.cpp makes of those in the file, which converters often get wrong. Source: llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken

from ..errors import ModelFileError
from .special_tokens import END_TEXTS, FILL_IN, TURN_ENDS, has_plain_strike
from .token_bytes import marked

# Token types of the GGUF specification.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
NO_MERGE = "\t \t"  # stands where a tokenizer merges nothing, since llama.cpp wants one: the byte alphabet has no tab
_PHI3_KEEPS = frozenset({"<unk>", "<s>", "<|endoftext|>"})  # of its special tokens those that swallow nothing


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a file.

    texts: no two alike. Of tokens with the same text the last one is what a text is cut into, as in llama.cpp; the
    others, and those that are not in use, are marked and stand for their bytes and for nothing.
    """

    texts: tuple[str, ...]
    types: tuple[int, ...]

    @property
    def ids(self) -> dict[str, int]:
        """The tokens by their text."""
        return {text: i for i, text in enumerate(self.texts)}


def read_vocabulary(metadata: Mapping[str, object], merges: Sequence[str] = ()) -> Vocabulary:
    """The vocabulary that the metadata describes. Raises ModelFileError.

    merges: pairs of tokens; what is part of one is in use, whatever its kind.
    """
    texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(strings(metadata, "tokenizer.ggml.tokens"))]
    types = token_types(metadata, len(texts))
    last = {text: i for i, text in enumerate(texts)}
    for text in control_texts(metadata, last):
        types[last[text]] = CONTROL
    if "</s>" in last and has_plain_strike({text for text in last if text in END_TEXTS}):
        types[last["</s>"]] = NORMAL
    unused = {i for i, kind in enumerate(types) if kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE)}
    used = {part for merge in merges for part in (*merge.split(" "), merge.replace(" ", ""))} if unused else set()
    for i, text in enumerate(texts):
        if i in unused and text not in used:
            texts[i] = marked("", i)
        elif last[text] != i:
            texts[i] = marked(text, i)
    return Vocabulary(tuple(texts), tuple(types))


def control_texts(metadata: Mapping[str, object], ids: Mapping[str, int]) -> frozenset[str]:
    """Texts of the vocabulary whose tokens are control tokens, whatever the file says."""
    unnamed = [texts for kind, texts in FILL_IN.items() if f"tokenizer.ggml.{kind}_token_id" not in metadata]
    return TURN_ENDS.union(*unnamed) & ids.keys()


def strings(metadata: Mapping[str, object], key: str) -> Sequence[str]:
    """A list of texts. Raises ModelFileError."""
    value = metadata.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ModelFileError(f"the GGUF file's {key} is missing or not a list.")
    if not all(isinstance(text, str) for text in value):
        raise ModelFileError(f"the GGUF file's {key} does not hold texts.")
    return value


def token_types(metadata: Mapping[str, object], n_tokens: int) -> list[int]:
    """The kind of each token; all are normal where the file does not say. Raises ModelFileError."""
    value = metadata.get("tokenizer.ggml.token_type")
    if value is None:
        return [NORMAL] * n_tokens
    types = np.asarray(value)
    if types.shape != (n_tokens,) or types.dtype.kind not in "iu":
        raise ModelFileError(f"the GGUF file has {n_tokens} tokens, but its tokenizer.ggml.token_type does not fit.")
    kinds: list[int] = types.tolist()
    return kinds


def token_scores(metadata: Mapping[str, object], n_tokens: int) -> npt.NDArray[np.float64]:
    """The score of each token, (n_tokens,). Raises ModelFileError."""
    scores = np.asarray(metadata.get("tokenizer.ggml.scores"))
    if scores.shape != (n_tokens,) or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        raise ModelFileError(f"the GGUF file has {n_tokens} tokens, but its tokenizer.ggml.scores do not fit.")
    return scores.astype(np.float64)


def add_tokens(inner: tokenizers.Tokenizer, vocabulary: Vocabulary, metadata: Mapping[str, object]) -> None:
    """Tell the library which tokens are special, and which are the user's own and never cut."""
    kinds = list(zip(vocabulary.texts, vocabulary.types, strict=True))
    before, behind = swallowing(metadata, kinds)

    def added(text: str, special: bool) -> AddedToken:
        return AddedToken(text, special=special, normalized=False, lstrip=text in before, rstrip=text in behind)

    inner.add_special_tokens([added(text, True) for text, kind in kinds if kind in (CONTROL, UNKNOWN)])
    inner.add_tokens([added(text, False) for text, kind in kinds if kind == USER_DEFINED])


def swallowing(
    metadata: Mapping[str, object], kinds: Sequence[tuple[str, int]]
) -> tuple[frozenset[str], frozenset[str]]:
    """The tokens that swallow white space before them, and behind them: of models that llama.cpp knows by name.

    kinds: the text and the kind of each token.
    """
    pre, architecture = str(metadata.get("tokenizer.ggml.pre", "")), str(metadata.get("general.architecture", ""))
    name = str(metadata.get("general.name", "")).lower()
    of_mask = any(known in pre for known in ("jina-v2-de", "jina-v2-es", "jina-v2-code"))
    if of_mask or any(known in architecture for known in ("nomic-bert-moe", "jina-bert-v3")):
        return frozenset({"<mask>"}), frozenset()
    if "phi-3" in name or "phi3" in name:
        special = {text for text, kind in kinds if kind in (CONTROL, UNKNOWN, USER_DEFINED)}
        return frozenset(), frozenset((special | {"</s>"}) - _PHI3_KEEPS)
    if "modern-bert" in name:
        return frozenset({"[MASK]"}), frozenset()
    return frozenset(), frozenset()
