"""Folders that transformers wrote: opened without torch they compute, and say, what transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

from family_files import MADE, VOCAB_SIZE, tiny_of  # noqa: E402
from folders import save_tokenizer  # noqa: E402
from tiers import quick  # noqa: E402

import pilotfish  # noqa: E402
from pilotfish.backends import get  # noqa: E402
from pilotfish.runtime.files.open_model import open_model  # noqa: E402
from pilotfish.runtime.interfaces import Floats  # noqa: E402
from pilotfish.testing.tiny_models import tiny_gguf  # noqa: E402

pytestmark = pytest.mark.usefixtures("module_cache")
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 60)
NOISE = 1e-5  # of the largest logit: sums in another order
MISTRAL = "mistral with a window"


def model_of(name: str) -> Any:
    if name != MISTRAL:
        return tiny_of(name)
    from transformers import AutoModelForCausalLM, MistralConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = MistralConfig(
        vocab_size=VOCAB_SIZE, num_key_value_heads=2, sliding_window=100, initializer_range=0.2, **sizes
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """The model as transformers saves it, with the tokenizer of tiny files."""
    model.save_pretrained(folder, **options)
    return save_tokenizer(folder, tiny_gguf(folder.parent / "tokens.gguf"))


def reference_logits(folder: Path) -> Floats:
    """In two steps, so that the cache is read back."""
    session = get("reference").open(open_model(folder), device=None, threads=1, kv_dtype=None).session()
    first = session.forward(TOKENS[:40], n_logits=40).logits
    return np.concatenate([first, session.forward(TOKENS[40:], n_logits=20).logits])


def expected_logits(model: Any) -> Floats:
    with torch.no_grad():
        found: Floats = model(torch.from_numpy(TOKENS)[None]).logits[0].float().numpy()
    return found


def greedy(model: Any, prompt: list[int], ends: frozenset[int], n: int) -> list[int]:
    """What transformers goes on with, up to an end."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", quick((*MADE, MISTRAL), "gemma3", "phi3 longrope"))
def test_a_folder_computes_and_says_what_transformers_does(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    folder = saved(model, tmp_path / "f")
    expected, found = expected_logits(model), reference_logits(folder)
    assert np.abs(found - expected).max() < NOISE * np.abs(expected).max()
    with pilotfish.load(folder, "onnx", threads=1) as loaded:
        result = loaded.generate("the hello and the sea", raw=True, max_new_tokens=24)
    tokenizer = open_model(folder).tokenizer
    prompt = tokenizer.encode("the hello and the sea").tolist()
    said = greedy(model, prompt, tokenizer.eos_ids, 24)
    assert [*result.token_ids] == said
    assert result.text == tokenizer.decode([i for i in said if i not in tokenizer.eos_ids])


def test_a_yarn_whose_range_is_not_rounded(tmp_path: Path) -> None:
    """As gpt-oss has it on the hub. GGUF files have no word for it, so none is made of the folder."""
    rope = MADE["gpt-oss"].settings["rope_parameters"]
    model = tiny_of("gpt-oss", rope_parameters={**rope, "truncate": False})
    folder = saved(model, tmp_path / "f")
    expected, rounded = expected_logits(model), expected_logits(tiny_of("gpt-oss"))
    assert np.abs(reference_logits(folder) - expected).max() < NOISE * np.abs(expected).max()
    assert np.abs(rounded - expected).max() > 100 * NOISE * np.abs(expected).max()
    rope = {**MADE["qwen3 yarn"].settings["rope_parameters"], "truncate": False}
    folder = saved(tiny_of("qwen3 yarn", rope_parameters=rope), tmp_path / "g")
    assert "gguf" not in open_model(folder).imported_formats


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_halves_in_several_files_are_computed_in_f32(dtype: str, kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = saved(tiny_of("qwen3").to(getattr(torch, dtype)), tmp_path / "f", max_shard_size="100KB")
    opened: Any = open_model(folder)
    assert len(opened.weight_files) > 2 and {t.type_name for t in opened.file.tensors.values()} == {kind}
    read: Any = AutoModelForCausalLM.from_pretrained
    expected = expected_logits(read(folder, dtype=torch.float32, attn_implementation="eager").eval())
    assert np.abs(reference_logits(folder) - expected).max() < NOISE * np.abs(expected).max()
