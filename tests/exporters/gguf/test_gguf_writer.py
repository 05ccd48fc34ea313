"""Models written as GGUF: llama.cpp computes what transformers does, and what is read back is what was written."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from real_weights import smollm2
from tiers import quick

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_families import VOCAB_SIZE, YARN, families_of, save_tiny, tiny  # noqa: E402
from written_gguf import gguf_writer  # noqa: E402

from pilotfish.backends.llamacpp.backend import BACKEND  # noqa: E402
from pilotfish.exporters.gguf import quantize as gguf_quantize  # noqa: E402
from pilotfish.exporters.gguf.layout import LAYOUTS  # noqa: E402
from pilotfish.exporters.gguf.quantize import kind_for, quantize_gguf, table_types, weights_by_type  # noqa: E402
from pilotfish.exporters.gguf.writer import write_gguf  # noqa: E402
from pilotfish.exporters.open_source import open_source  # noqa: E402
from pilotfish.exporters.quantize.weight_form import WeightForm  # noqa: E402
from pilotfish.runtime.errors import (  # noqa: E402
    CacheWriteError,
    EngineError,
    EngineMissingError,
    OptionError,
    UnsupportedModelError,
)
from pilotfish.runtime.files.gguf_file import read_gguf  # noqa: E402
from pilotfish.runtime.files.open_model import open_model  # noqa: E402

Floats = npt.NDArray[np.float32]

N_TOKENS = 40
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
needs_llama_cpp = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")
# Largest difference of a logit from transformers' in f32; logits of these models have a spread of 1.6. In f32 it is
# rounding, and of Gemma llama.cpp's table of GELU in f16; quantized weights meet activations rounded to 8 bits.
TOLERANCE = {"f32": 1e-3, "f16": 0.1, "Q8_0": 2.0, "Q4_0": 8.0}
GELU_TABLE = 5e-3
# The same error as a share of the spread, on average: what tells a rounded model from another one (which has 1.1).
MEAN_SHARE = {"f32": 1e-3, "f16": 0.01, "Q8_0": 0.15, "Q4_0": 0.8}


FAMILIES = families_of("gguf")
FIRST = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3")
CELLS = [(family, stored) for family in FAMILIES for stored in TOLERANCE]
BY_DEFAULT = [cell for cell in CELLS if cell[0] in FIRST or cell[1] == "f32"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_tiny(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def tokens(n: int = N_TOKENS) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, n)


def answer(model: Any, ids: npt.NDArray[np.int64]) -> Floats:
    """transformers' logits, (n, vocab_size)."""
    with torch.no_grad():
        logits: Floats = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    return logits


def llama_cpp(path: Path, ids: npt.NDArray[np.int64], kv_dtype: str = "f32") -> Floats:
    """llama.cpp's logits, computed in two steps."""
    weights = BACKEND.open(open_model(path), device=None, threads=2, kv_dtype=kv_dtype)
    session = weights.session(len(ids))
    first = session.forward(ids[:-3], n_logits=len(ids) - 3).logits.copy()
    logits = np.concatenate([first, session.forward(ids[-3:], n_logits=3).logits])
    session.close()
    weights.close()
    return logits


Written = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def written(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Gives the model of a family as a GGUF file whose weights are stored in a given way."""
    return gguf_writer(folders, tmp_path_factory.mktemp("gguf"))


@needs_llama_cpp
@pytest.mark.parametrize(
    ("family", "stored"), [pytest.param(*c, marks=() if c in BY_DEFAULT else pytest.mark.slow) for c in CELLS]
)
def test_llama_cpp_computes_what_transformers_does(
    family: str, stored: str, folders: dict[str, Path], written: Written
) -> None:
    expected = answer(open_source(folders[family]).torch_model(), tokens())
    found = llama_cpp(written(family, stored), tokens())
    gelu = LAYOUTS[family].exported.family.activation == "gelu"
    limit = max(TOLERANCE[stored], GELU_TABLE if gelu else 0.0)
    assert np.abs(found - expected).max() < limit
    assert np.abs(found - expected).mean() < MEAN_SHARE[stored] * expected.std()
    if stored in ("f32", "f16"):
        assert (found.argmax(-1) == expected.argmax(-1)).all()


@needs_llama_cpp
@pytest.mark.parametrize("family", quick(FAMILIES, *FIRST))
def test_greedy_tokens_are_transformers_own(family: str, folders: dict[str, Path], written: Written) -> None:
    model = open_source(folders[family]).torch_model()
    ids = tokens(8)
    weights = BACKEND.open(open_model(written(family, "f32")), device=None, threads=2, kv_dtype="f32")
    session = weights.session(N_TOKENS)
    session.forward(ids[:-1], n_logits=0)
    for _ in range(12):
        expected = answer(model, ids)[-1]
        found = session.forward(ids[-1:], n_logits=1).logits[0]
        assert found.argmax() == expected.argmax()
        ids = np.append(ids, expected.argmax())
    session.close()
    weights.close()


@needs_llama_cpp
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("llama", {"attention_bias": True}),
        ("qwen3", {"rope_parameters": YARN}),
        *(
            pytest.param(family, changes, marks=pytest.mark.slow)
            for family, changes in (
                ("llama", {"rope_parameters": YARN}),
                ("qwen2", {"rope_parameters": YARN}),
                ("gemma2", {"layer_types": ["full_attention", "full_attention", "sliding_attention"]}),
                ("gemma3_text", {"final_logit_softcapping": 3.0}),
            )
        ),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
        ("phi3", {"partial_rotary_factor": 0.75}),
        ("gemma3_text", {"num_hidden_layers": 7, "layer_types": None}),
        ("gemma3_text", {"layer_types": ["full_attention"] * 3}),
    ],
)
def test_rotary_embeddings_and_windows(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    source = open_source(save_tiny(family, tmp_path / "hf", **changes))
    plain = answer(tiny(family, **{key: value for key, value in changes.items() if key != "rope_parameters"}), tokens())
    expected = answer(source.torch_model(), tokens())
    if "rope_parameters" in changes:
        assert np.abs(plain - expected).max() > 0.1  # it matters
    path = tmp_path / "m.gguf"
    write_gguf(source, source.torch_model(), path, stored="f32")
    assert np.abs(llama_cpp(path, tokens()) - expected).max() < GELU_TABLE
    assert np.array_equal(answer(open_source(path).torch_model(), tokens()), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_read_back_it_is_the_same_model(family: str, folders: dict[str, Path], written: Written) -> None:
    source = open_source(folders[family])
    again = open_source(written(family, "f32"))
    expected = source.torch_model().state_dict()
    found = again.torch_model().state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[name], found[name], rtol=0, atol=1e-7) for name in expected)
    assert (again.bos_id, again.add_bos, again.eos_ids) == (1, True, (2,))
    assert again.chat_template == source.chat_template
    assert again.context_length == {"mistral": 48}.get(family, 256)  # its window, which llama.cpp does not know
    for text in ("The shark, naïvely", "  def add(a):\n\n", "<s>12</s>"):
        assert again.tokenizer.encode(text).tolist() == source.tokenizer.encode(text).tolist()
        assert again.tokenizer.encode(text, special=True).tolist() == source.tokenizer.encode(text, True).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_the_gguf_package(family: str) -> None:
    gguf = pytest.importorskip("gguf")
    layout = LAYOUTS[family]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.architecture)
    model = tiny(family)
    table = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    for name in dict(model.named_parameters()):
        found = layout.gguf_name(name)
        assert found == table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None and layout.hf_name(found) == name


def test_what_the_format_has_no_place_for(tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("llama", {"mlp_bias": True}, "gate_proj.bias has no place"),
        ("gemma2", {"attn_logit_softcapping": None}, "llama.cpp's gemma2 takes 50.0"),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, "no layer has a window"),
        ("smollm3", {"no_rope_layers": [1] * 5}, "every 4th"),
        ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 2.0}}, "a YaRN of its own"),
        ("gemma3_text", {"query_pre_attn_scalar": 16}, "scaled by"),
        ("qwen2", {"vocab_size": 250}, "295 tokens, but the model only 250"),
        (
            "qwen3",
            {"rope_parameters": LLAMA3_ROPE},
            "llama.cpp's qwen3 has none",
        ),
    ]
    for i, (family, changes, message) in enumerate(cases):
        source = open_source(save_tiny(family, tmp_path / str(i), **changes))
        with pytest.raises(UnsupportedModelError, match=message):
            write_gguf(source, source.torch_model(), tmp_path / "m.gguf")
        assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


def test_values_that_f16_cannot_hold(folders: dict[str, Path], tmp_path: Path) -> None:
    source = open_source(folders["llama"])
    model = source.torch_model()
    model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(OptionError, match=r"layers\.1\.mlp\.up_proj\.weight holds values beyond f16"):
        write_gguf(source, model, tmp_path / "m.gguf")
    write_gguf(source, model, tmp_path / "m.gguf", stored="f32")
    with pytest.raises(CacheWriteError):
        write_gguf(source, model, tmp_path / "missing" / "m.gguf", stored="f32")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_progress_comes_to_its_end(folders: dict[str, Path], tmp_path: Path) -> None:
    source = open_source(folders["llama"])
    loaded: list[float] = []
    saved: list[float] = []
    write_gguf(source, source.torch_model(loaded.append), tmp_path / "m.gguf", progress=saved.append)
    for shares in (loaded, saved):
        assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 20


@needs_llama_cpp
def test_quantizing_says_what_became_of_the_weights(written: Written, tmp_path: Path) -> None:
    path = written("llama", "f16")
    steps: list[float] = []
    made = quantize_gguf(path, tmp_path / "k.gguf", "Q4_K_M", threads=2, progress=steps.append)
    assert made == weights_by_type(read_gguf(tmp_path / "k.gguf"))
    assert "Q4_K" not in made and made["Q5_0"] > 0  # rows of 64 have no blocks of 256
    assert steps == sorted(steps) and steps[-1] == 1.0
    made = quantize_gguf(path, tmp_path / "t.gguf", "Q4_0", embedding="Q8_0", output="F16", threads=2)
    types = {name: tensor.type_name for name, tensor in read_gguf(tmp_path / "t.gguf").tensors.items()}
    assert (types["token_embd.weight"], types["output.weight"], types["blk.0.attn_q.weight"]) == ("Q8_0", "F16", "Q4_0")
    assert types["blk.0.attn_norm.weight"] == "F32"


@needs_llama_cpp
def test_a_quantized_file_is_quantized_again_only_if_asked(written: Written, tmp_path: Path) -> None:
    path = written("qwen2", "Q8_0")
    with pytest.raises(OptionError, match="quantized already"):
        quantize_gguf(path, tmp_path / "again.gguf", "Q4_0")
    assert "Q4_0" in quantize_gguf(path, tmp_path / "again.gguf", "Q4_0", allow_requantize=True, threads=2)
    assert llama_cpp(tmp_path / "again.gguf", tokens(), "f16").shape == (N_TOKENS, VOCAB_SIZE)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "F32"])
def test_without_llama_cpp_the_plain_kinds_are_there(
    kind: str, folders: dict[str, Path], written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(folders["llama"])
    path = written("llama", "f32")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        gguf_quantize.importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else found(name)
    )
    made = quantize_gguf(path, tmp_path / "q.gguf", kind)
    assert kind in made
    again = open_source(tmp_path / "q.gguf")
    expected, got = (s.torch_model().state_dict()["model.layers.1.mlp.up_proj.weight"] for s in (source, again))
    step = {"Q4_0": 1 / 8, "Q4_1": 1 / 15, "Q8_0": 1 / 127, "F16": 1e-3, "F32": 1e-9}[kind]
    assert (expected - got).abs().max() <= 2 * step * expected.abs().max()
    assert again.tokenizer.encode("The shark").tolist() == source.tokenizer.encode("The shark").tolist()
    with pytest.raises(EngineMissingError, match="llamacpp"):
        quantize_gguf(path, tmp_path / "q.gguf", "Q4_K_M")


@needs_llama_cpp
def test_what_cannot_be_quantized(written: Written, tmp_path: Path) -> None:
    path = tmp_path / "f16.gguf"
    path.write_bytes(written("llama", "f16").read_bytes())
    with pytest.raises(OptionError, match=r"no kind 'Q9'.*Q4_K_M"):
        quantize_gguf(path, tmp_path / "q.gguf", "Q9")
    with pytest.raises(OptionError, match="embedding cannot be 'Q2_K'"):
        quantize_gguf(path, tmp_path / "q.gguf", "Q4_0", embedding="Q2_K")
    with pytest.raises(CacheWriteError):
        quantize_gguf(path, tmp_path / "missing" / "q.gguf", "Q4_0")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"llama.embedding_length", b"llama.embedding_lenght"))
    with pytest.raises(EngineError, match="failed while it quantized"):
        quantize_gguf(path, tmp_path / "q.gguf", "Q4_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f16.gguf"]


def test_the_kind_for_a_form() -> None:
    narrow, wide = (tiny("llama", **sizes).config for sizes in ({}, {"hidden_size": 256, "intermediate_size": 512}))
    assert kind_for(WeightForm()) == kind_for(WeightForm(), wide) == "Q4_K_M"
    assert kind_for(WeightForm(), narrow) == "Q4_1"
    assert kind_for(WeightForm(symmetric=True), narrow) == "Q4_0"
    assert [kind_for(WeightForm(layers=x), narrow) for x in ("int8", "fp16", "fp32")] == ["Q8_0", "F16", "F32"]  # type: ignore[arg-type]
    assert table_types(WeightForm()) == {"embedding": "Q8_0", "output": "Q8_0"}
    assert table_types(WeightForm(embedding="fp16", output="int4")) == {"embedding": "F16", "output": "Q4_0"}


@pytest.mark.slow
@pytest.mark.real
@needs_llama_cpp
def test_smollm2_from_gguf_to_gguf(tmp_path: Path) -> None:
    source = open_source(smollm2())
    model = source.torch_model()
    ids = source.tokenizer.encode("The capital of France is Paris. Its river is the Seine, and its tower is famous.")
    expected = answer(model, ids)
    f16 = tmp_path / "f16.gguf"
    write_gguf(source, model, f16)
    for stored, limit, agreement in (("F16", 0.02, 1.0), ("Q8_0", 0.1, 0.9), ("Q4_K_M", 0.2, 0.7)):
        path = tmp_path / f"{stored}.gguf"
        quantize_gguf(f16, path, stored, threads=2)
        found = llama_cpp(path, ids)
        assert np.abs(found - expected).mean() < limit * expected.std()
        assert (found.argmax(-1) == expected.argmax(-1)).mean() >= agreement
