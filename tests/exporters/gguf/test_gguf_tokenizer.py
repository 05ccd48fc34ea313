"""Tokenizers written as GGUF: what is read back has the same ends, and its special tokens swallow the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from tiny_tokenizers import doubled, gguf_metadata
from tiny_tokenizers import metadata as byte_level
from tokenizers import AddedToken

from pilotfish.exporters.gguf.tokenizer import tokenizer_metadata
from pilotfish.runtime.errors import UnsupportedModelError
from pilotfish.runtime.text.chat_template import ChatTemplate, encode_chat
from pilotfish.runtime.text.tokenizer import Tokenizer
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf

PHI = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}<|assistant|>\n"
CHAT = [{"role": "user", "content": " the ahe"}, {"role": "assistant", "content": "\n the"}]


def phi3(rstrip: bool, folder: Path) -> Tokenizer:
    """A tokenizer.json as Phi-3 has it; rstrip: whether its special tokens swallow what is behind them."""
    kinds = [2, 3, 3] + [6] * 256 + [1] * 10  # no token of the user's own, which would swallow as well
    tokenizer_from_gguf(gguf_metadata(token_type=kinds)).save(folder / "plain.json")
    inner = tokenizers.Tokenizer.from_file(str(folder / "plain.json"))
    texts = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "</s>")
    swallows = [AddedToken(text, normalized=False, rstrip=rstrip and text != texts[0]) for text in texts]
    inner.add_special_tokens(swallows)
    inner.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_file(folder / "tokenizer.json", bos_id=1, eos_ids=[2], add_bos=True)


def source(tokenizer: Tokenizer, **changes: Any) -> Any:
    known = {"model_id": "mine", "chat_template": None, "encoder_decoder": None, "tokenizer": tokenizer}
    about = {"bos_id": tokenizer.bos_id, "add_bos": tokenizer.add_bos, "eos_ids": tokenizer.ordered_eos_ids}
    return SimpleNamespace(**{**known, **about, **changes})


@pytest.mark.parametrize("rstrip", [True, False])
@pytest.mark.parametrize("name", ["Phi-3-mini", "phi3", "a model of mine"])
def test_a_chat_reads_the_same_prompt_from_the_folder_and_from_gguf(rstrip: bool, name: str, tmp_path: Path) -> None:
    ours = phi3(rstrip, tmp_path)
    written = tokenizer_from_gguf(
        tokenizer_metadata(source(ours, model_id=name, chat_template=PHI), ours.vocab_size + 3)
    )
    for tokenizer in (ours, written):
        behind = encode_chat(tokenizer, ChatTemplate(PHI), CHAT)[1]
        assert tokenizer.token(int(behind)) == ("▁the" if rstrip else "▁")
    assert encode_chat(ours, ChatTemplate(PHI), CHAT).tolist() == encode_chat(written, ChatTemplate(PHI), CHAT).tolist()
    assert written.eos_ids == ours.eos_ids


def test_all_ends_of_a_model_are_written() -> None:
    tokenizer = tokenizer_from_gguf(byte_level())  # ends at 265
    for ends in ((265,), (65, 265), (265, 65, 66)):
        made = tokenizer_metadata(source(tokenizer, eos_ids=ends), 300)
        assert tokenizer_from_gguf(made).eos_ids == {265, *ends}
        assert made["tokenizer.ggml.eos_token_id"] == ends[0]
    with pytest.raises(UnsupportedModelError, match=r"4 tokens end its answers.*room for 3"):
        tokenizer_metadata(source(tokenizer, eos_ids=(265, 65, 66, 67)), 300)


def test_a_text_that_comes_twice_is_written_once() -> None:
    tokenizer = tokenizer_from_gguf(doubled("gpt2"))
    made: dict[str, Any] = tokenizer_metadata(source(tokenizer), 20)
    assert len(set(made["tokenizer.ggml.tokens"])) == 20
    assert tokenizer_from_gguf(made).decode([6, 8]) == "hellohello"
