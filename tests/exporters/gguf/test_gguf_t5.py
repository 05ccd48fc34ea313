"""T5 written as GGUF: llama.cpp computes what transformers does, and cuts texts as the model's own tokenizer does."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import Unigram

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_encoder_decoders import save_encoder_decoder, tiny_encoder_decoder  # noqa: E402
from tiny_families import VOCAB_SIZE  # noqa: E402
from written_gguf import gguf_writer  # noqa: E402

from pilotfish.backends.llamacpp.backend import BACKEND  # noqa: E402
from pilotfish.exporters.gguf.requantize import requantize  # noqa: E402
from pilotfish.exporters.gguf.t5 import T5Layout  # noqa: E402
from pilotfish.exporters.gguf.tokenizer import tokenizer_metadata  # noqa: E402
from pilotfish.exporters.gguf.writer import write_gguf  # noqa: E402
from pilotfish.exporters.open_source import open_source  # noqa: E402
from pilotfish.exporters.parity.evaluation import PROSE  # noqa: E402
from pilotfish.exporting.export import RefusedExportError, export  # noqa: E402
from pilotfish.runtime.errors import UnsupportedModelError  # noqa: E402
from pilotfish.runtime.files.bundle import open_bundle  # noqa: E402
from pilotfish.runtime.files.gguf_file import read_gguf  # noqa: E402
from pilotfish.runtime.files.open_model import open_model  # noqa: E402
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf  # noqa: E402
from pilotfish.testing.subject import run  # noqa: E402
from pilotfish.testing.toy_model import END, byte_tokenizer  # noqa: E402
from pilotfish.verifying.verify import verify  # noqa: E402

Floats = npt.NDArray[np.float32]

needs_llama_cpp = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")
# What llama.cpp takes for granted of distances, whole blocks of 32 columns, and no more layers than the encoder has.
FITTING: dict[str, Any] = {"relative_attention_max_distance": 128, "d_model": 64, "num_decoder_layers": 2}
MODELS = ("t5", "flan", "byt5")
# Largest difference of a logit as a share of their spread. Gated models meet llama.cpp's table of GELU in f16.
SHARE = {"f32": 1e-5, "f16": 0.01, "Q8_0": 0.2, "Q4_0": 2.0, "Q4_K_M": 2.0}
GELU_TABLE = 4e-3
SOURCE = tuple(np.random.default_rng(1).integers(3, VOCAB_SIZE, 150).tolist())  # beyond the farthest distance
ANSWER = (0, *np.random.default_rng(2).integers(3, VOCAB_SIZE, 140).tolist())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_encoder_decoder(name, tmp_path_factory.mktemp(name), **FITTING) for name in MODELS}


Written = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def written(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Gives a model as a GGUF file whose weights are stored in a given way."""
    return gguf_writer(folders, tmp_path_factory.mktemp("gguf"))


def expected_logits(folder: Path, source: tuple[int, ...] = SOURCE, answer: tuple[int, ...] = ANSWER) -> Floats:
    """transformers' logits, (n, vocab_size)."""
    model: Any = open_source(folder).torch_model()
    with torch.no_grad():
        out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([answer]))
    logits: Floats = out.logits[0].numpy()
    return logits


def answers(path: Path, *asked: tuple[tuple[int, ...], tuple[int, ...]]) -> list[Floats]:
    """llama.cpp's logits for each source and answer, (n, vocab_size)."""
    weights = BACKEND.open(open_model(path), device=None, threads=2, kv_dtype=None)
    session = weights.session()
    found = []
    for source, answer in asked:
        session.encode(np.array(source))
        found.append(run(session, np.array(answer), 16))
    session.close()
    weights.close()
    return found


@needs_llama_cpp
@pytest.mark.parametrize("stored", SHARE)
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_transformers_does(
    name: str, stored: str, folders: dict[str, Path], written: Written
) -> None:
    expected = expected_logits(folders[name])
    (found,) = answers(written(name, stored), (SOURCE, ANSWER))
    limit = max(SHARE[stored], 0.0 if name == "t5" else GELU_TABLE) * expected.std()
    assert np.abs(found - expected).max() < limit
    if stored in ("f32", "f16"):
        top = np.sort(expected, axis=-1)
        confident = top[:, -1] - top[:, -2] > 2 * limit
        assert confident.mean() > 0.5
        assert (found.argmax(-1) == expected.argmax(-1))[confident].all()


@needs_llama_cpp
def test_one_answer_does_not_see_another(folders: dict[str, Path], written: Written) -> None:
    questions = [(SOURCE, ANSWER), (SOURCE[:9], ANSWER[:20]), (SOURCE, ANSWER)]
    first, other, again = answers(written("t5", "f32"), *questions)
    assert np.array_equal(first, again)
    assert np.abs(other - expected_logits(folders["t5"], SOURCE[:9], ANSWER[:20])).max() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_names_are_those_of_the_gguf_package(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, 4)
    for own in dict(tiny_encoder_decoder(name).named_parameters()):
        found = T5Layout().gguf_name(own)
        assert found is not None and found == table.get_name(own, try_suffixes=(".weight",))
    for wrong in ("encoder.block.0.layer.2.layer_norm.weight", "shared.bias", "encoder.embed_tokens.weight"):
        assert T5Layout().gguf_name(wrong) is None


def test_what_must_not_be_rounded_stays_f32(written: Written, tmp_path: Path) -> None:
    file = read_gguf(written("flan", "f16"))
    types = {name: tensor.type_name for name, tensor in file.tensors.items()}
    assert types["enc.blk.0.ffn_down.weight"] == types["dec.blk.0.attn_rel_b.weight"] == "F32"
    assert types["enc.blk.0.ffn_gate.weight"] == types["dec.blk.1.cross_attn_q.weight"] == "F16"
    requantize(file, tmp_path / "q8.gguf", "Q8_0", "Q8_0", "Q8_0", lambda share: None)
    again = read_gguf(tmp_path / "q8.gguf").tensors
    assert again["dec.blk.0.attn_rel_b.weight"].type_name == "F32"
    assert again["dec.blk.0.ffn_down.weight"].type_name == "Q8_0"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"relative_attention_max_distance": 40}, "takes 128 for relative_attention_max_distance"),
        ({"feed_forward_proj": "gated-silu"}, "takes gelu_new or .* this model has silu"),
        ({"feed_forward_proj": "gelu"}, "takes relu for feed_forward_proj"),
        ({"num_decoder_layers": 3}, "as many layers as the encoder has"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_before(
    changes: dict[str, Any], error: str, tmp_path: Path
) -> None:
    source = save_encoder_decoder("t5", tmp_path / "hf", **{**FITTING, **changes})
    with pytest.raises(UnsupportedModelError, match=error):
        write_gguf(open_source(source), open_source(source).torch_model(), tmp_path / "m.gguf")
    if BACKEND.version() is not None:
        with pytest.raises(UnsupportedModelError, match=error):
            export(source, tmp_path / "out", to=("gguf",))
    assert not (tmp_path / "m.gguf").exists() and not (tmp_path / "out").exists()


@needs_llama_cpp
@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8"])
def test_an_export_is_compared_with_its_source(stored: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(folders["flan"], out, to=("gguf",), weights=stored)
    manifest = open_bundle(out).manifest
    assert manifest.formats == manifest.encoders == {"gguf": "gguf/model.gguf"}
    assert manifest.unverified == () and manifest.decoder_start == (0,)
    facts = manifest.reports["gguf"]
    assert facts["n_tokens"] > 100 and facts["greedy_prompts"] == 8 and facts["canary_error"] < 0.05
    assert facts["agreement"] > {"fp32": 0.999, "fp16": 0.99, "int8": 0.95}[stored]
    again = verify(out)  # against the stored answers
    assert again.ok and again.formats[0].engine == "llamacpp"
    metadata = read_gguf(out / "gguf" / "model.gguf").metadata
    assert metadata["t5.decoder_start_token_id"] == 0 and metadata["t5.decoder_block_count"] == 2


@needs_llama_cpp
def test_another_model_is_not_accepted(folders: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    def forgets(self: T5Layout, name: str, values: Floats, config: Any) -> Floats:
        return -values if name == "decoder.final_layer_norm.weight" else values

    monkeypatch.setattr(T5Layout, "arranged", forgets)
    with pytest.raises(RefusedExportError, match="the canary's answer is wrong"):
        export(folders["flan"], tmp_path / "out", to=("gguf",), weights="fp32")
    assert not (tmp_path / "out").exists()


def charsmap(replaced: dict[bytes, bytes]) -> bytes:
    """SentencePiece's table of replacements for single bytes: a double array of 32-bit units, then the texts."""
    units, texts = [0] * 1024, b""
    units[0] = 256 << 10
    for byte, text in replaced.items():
        units[256 + byte[0]] = 512 << 10 | 1 << 8 | byte[0]
        units[768 + byte[0]] = 1 << 31 | len(texts)
        texts += text + b"\0"
    return struct.pack("<I1024I", 4096, *units) + texts


def unigram(prefix: str = "always", split: bool = True, changes: dict[str, Any] | None = None) -> tokenizers.Tokenizer:
    """A tokenizer in the manner of T5's."""
    inner = tokenizers.Tokenizer(Unigram())
    white = {b"\n": b" ", b"\r": b" ", b"\t": b" ", b"\x01": b"", b"~": b"-"}
    inner.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap(white))])
    spaces = pre_tokenizers.Metaspace("▁", prefix)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]) if split else spaces
    inner.decoder = decoders.Metaspace("▁", prefix)
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCAB_SIZE - 20, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(PROSE.splitlines(), trainer)
    inner.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return tokenizers.Tokenizer.from_str(json.dumps({**json.loads(inner.to_str()), **(changes or {})}))


def save_unigram(folder: Path, inner: tokenizers.Tokenizer) -> Path:
    save_encoder_decoder("flan", folder, eos_token_id=1, **FITTING)
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return folder


@needs_llama_cpp
def test_a_unigram_tokenizer_is_written(tmp_path: Path) -> None:
    source = open_source(save_unigram(tmp_path / "hf", unigram()))
    write_gguf(source, source.torch_model(), tmp_path / "m.gguf")  # compares with llama.cpp
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.model"] == "t5" and metadata["tokenizer.ggml.unknown_token_id"] == 2
    assert metadata["tokenizer.ggml.add_eos_token"] is True and metadata["tokenizer.ggml.add_bos_token"] is False
    again = tokenizer_from_gguf(metadata)
    for text in ("The  origin of\n species, </s> <extra_id_0>", " ~naïve~ \x01<unk> 🙂 ", "", "\n"):
        assert again.encode(text).tolist() == source.tokenizer.encode(text).tolist()
        assert again.encode_source(text).tolist() == source.tokenizer.encode_source(text).tolist()
    ids = source.tokenizer.encode("the origin of species - and a variety")
    assert again.decode(ids.tolist()) == "the origin of species - and a variety"


@needs_llama_cpp
def test_a_tokenizer_of_bytes_is_written(tmp_path: Path) -> None:
    save_encoder_decoder("flan", tmp_path, eos_token_id=END, **FITTING)
    byte_tokenizer().save(tmp_path / "tokenizer.json")
    source = open_source(tmp_path)
    write_gguf(source, source.torch_model(), tmp_path / "m.gguf")  # compares with llama.cpp
    again = tokenizer_from_gguf(read_gguf(tmp_path / "m.gguf").metadata)
    text = "teh  quikc\nbrwon 狐 🙂"
    assert again.encode(text, bos=False).tolist() == list(text.encode())
    assert again.encode_source(text).tolist() == source.tokenizer.encode_source(text).tolist() == [*text.encode(), END]


def test_a_unigram_tokenizer_that_llama_cpp_has_not_is_refused(tmp_path: Path) -> None:
    described = json.loads(unigram().to_str())
    lower = {"type": "Sequence", "normalizers": [described["normalizer"], {"type": "Lowercase"}]}
    digits = {"type": "Sequence", "pretokenizers": [described["pre_tokenizer"], {"type": "Punctuation"}]}
    for changes, error in (
        ({"model": {**described["model"], "byte_fallback": True}}, "spells what is unknown in bytes"),
        ({"normalizer": lower}, "normalizer has the step Lowercase"),
        ({"normalizer": None}, "read back, it cuts"),  # lines become words without a space between them
        ({"pre_tokenizer": digits}, "cuts texts by Punctuation"),
    ):
        source = open_source(save_unigram(tmp_path / error[:9], unigram(changes=changes)))
        with pytest.raises(UnsupportedModelError, match=error):
            tokenizer_metadata(source, VOCAB_SIZE)


def test_a_table_of_replacements_may_be_signed_bytes() -> None:
    described = json.loads(unigram().to_str())
    table = base64.b64decode(described["normalizer"]["normalizers"][0]["precompiled_charsmap"])
    pieces = described["model"]["vocab"]
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [piece for piece, _ in pieces],
        "tokenizer.ggml.scores": [score for _, score in pieces],
        "tokenizer.ggml.token_type": [3, 3, 2, 3] + [1] * (len(pieces) - 4),
        "tokenizer.ggml.remove_extra_whitespaces": True,
    }
    found = [
        tokenizer_from_gguf({**metadata, "tokenizer.ggml.precompiled_charsmap": form}).encode("the ~\norigin")
        for form in (table, list(table), np.frombuffer(table, np.int8).tolist())
    ]
    assert all(np.array_equal(found[0], one) for one in found)
    assert not np.array_equal(found[0], tokenizer_from_gguf(metadata).encode("the ~\norigin"))
