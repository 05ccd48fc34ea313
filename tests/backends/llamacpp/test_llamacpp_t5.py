"""T5 on llama.cpp: the engine contract, transformers' answers, and the whole product over tiny models."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiers import quick

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_encoder_decoders import save_encoder_decoder  # noqa: E402
from tiny_families import VOCAB_SIZE  # noqa: E402

from pilotfish import load  # noqa: E402
from pilotfish.backends import get  # noqa: E402
from pilotfish.backends.llamacpp.check_file import check_file  # noqa: E402
from pilotfish.exporters.gguf.quantize import quantize_gguf  # noqa: E402
from pilotfish.exporters.gguf.writer import write_gguf  # noqa: E402
from pilotfish.exporters.open_source import open_source  # noqa: E402
from pilotfish.exporting.export import export  # noqa: E402
from pilotfish.runtime.errors import ContextFullError, ModelFileError, OptionError, UnsupportedModelError  # noqa: E402
from pilotfish.runtime.files.gguf_file import read_gguf  # noqa: E402
from pilotfish.runtime.files.open_model import open_model  # noqa: E402
from pilotfish.runtime.interfaces import EncoderInfo, Weights  # noqa: E402
from pilotfish.runtime.speculation.draft_length import Fixed  # noqa: E402
from pilotfish.runtime.speculation.proposers import SourceCopy, Suffix  # noqa: E402
from pilotfish.testing import CHECKS, Subject, answer_contract  # noqa: E402
from pilotfish.testing.subject import run  # noqa: E402
from pilotfish.testing.tiny_models import tiny_gguf  # noqa: E402

BACKEND = get("llamacpp")
pytestmark = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")

# What llama.cpp takes for granted of distances, and no more layers in the decoder than in the encoder.
FITTING: dict[str, Any] = {
    "relative_attention_max_distance": 128,
    "d_model": 64,
    "num_decoder_layers": 2,
    "n_positions": 512,
}
NOISE = {"f32": 2e-5, "Q8_0": 0.1}  # between widths, relative to the largest logit
CLASSES = ((1,), (*range(2, 18), 32, 33))  # as of decoders without flash attention


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PILOTFISH_THREADS", "1")  # llama.cpp's threads wait for each other without sleeping
        yield


Written = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Gives a model as a GGUF file whose weights are stored in a given way."""
    folder = tmp_path_factory.mktemp("gguf")

    @functools.cache
    def write(name: str, stored: str) -> Path:
        path = folder / f"{name}-{stored}.gguf"
        if stored == "f32":
            source = open_source(save_encoder_decoder(name, folder / name, **FITTING))
            write_gguf(source, source.torch_model(), path, stored="f32")
        else:
            quantize_gguf(write(name, "f32"), path, stored, threads=1)
        return path

    return write


def opened(path: Path, kv_dtype: str | None = None, threads: int = 1, **options: object) -> Weights:
    return BACKEND.open(open_model(path), device=None, threads=threads, kv_dtype=kv_dtype, options=options)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", quick([f"{n} {s}" for n in ("t5", "flan") for s in NOISE], "t5 f32", "flan Q8_0"))
def test_contract(kind: str, check: Callable[[Subject], None], written: Written) -> None:
    name, stored = kind.split()
    check(Subject(partial(opened, written(name, stored)), NOISE[stored], CLASSES))


def test_wide_steps_give_equal_bits_with_a_smaller_cache(written: Written) -> None:
    subject = Subject(partial(opened, written("flan", "Q8_0"), "f16"), NOISE["Q8_0"], CLASSES, (0, 64))
    answer_contract.widths_of_a_row_class_give_equal_bits(subject)


def test_it_knows_what_the_file_says(written: Written) -> None:
    weights = opened(written("t5", "f32"))
    info = weights.info
    assert info.encoder == EncoderInfo(decoder_start=(0,)) and info.context_length == 512 and info.n_layers == 2
    assert "f32 keys f32 values" in info.settings and {"encode", "fork", "save", "tree"} <= weights.session().abilities
    weights.close()
    with pytest.raises(OptionError, match="flash attention does not"):
        opened(written("t5", "f32"), flash_attention="on")


def test_a_source_longer_than_a_step(written: Written) -> None:
    """An encoder reads it at once, in a context made for it, which a fork and a saved cache make again."""
    weights = opened(written("t5", "f32"))
    session = weights.session()
    source = np.random.default_rng(1).integers(3, VOCAB_SIZE, 700)
    answer = np.array([0, *np.random.default_rng(2).integers(3, VOCAB_SIZE, 30)])
    session.encode(source[:9])
    session.encode(source)
    found = run(session, answer, 4)
    with torch.no_grad():
        model: Any = open_source(written("t5", "f32").parent / "t5").torch_model()
        out = model(input_ids=torch.tensor(source)[None], decoder_input_ids=torch.tensor(answer)[None])
    assert np.abs(found - out.logits[0].numpy()).max() < 1e-4
    fork, other = session.fork(np.arange(0, 31, 2)), weights.session()
    other.restore(session.save())
    assert fork.positions.tolist() == list(range(0, 31, 2)) and other.positions.tolist() == list(range(31))
    expected = session.forward(answer[:3], n_logits=3).logits
    assert np.array_equal(other.forward(answer[:3], n_logits=3).logits, expected)
    weights.close()


def test_a_source_too_long_for_the_memory_is_refused_before_it_is_read(written: Written) -> None:
    weights = opened(written("t5", "f32"))
    session = weights.session()
    session.encode(np.arange(3, 9))
    expected = session.forward(np.array([0, 5]), n_logits=2).logits
    with pytest.raises(ContextFullError, match=r"source has 1000000 tokens: .* MiB are free\. Shorten"):
        session.encode(np.zeros(1_000_000, np.int64))
    assert session.positions.tolist() == [0, 1]
    session.truncate(0)
    assert np.array_equal(session.forward(np.array([0, 5]), n_logits=2).logits, expected)
    weights.close()


def test_a_cache_that_grows_keeps_the_source(written: Written) -> None:
    folder = written("t5", "f32").parent
    source = open_source(save_encoder_decoder("t5", folder / "long", **{**FITTING, "n_positions": 900}))
    write_gguf(source, source.torch_model(), folder / "long.gguf", stored="f32")
    weights = opened(folder / "long.gguf")
    session, answer = weights.session(), np.random.default_rng(2).integers(3, VOCAB_SIZE, 700)
    session.encode(answer[:20])
    before = session.nbytes
    found = run(session, answer, 100)
    assert session.nbytes > before
    with torch.no_grad():
        model: Any = source.torch_model()
        out = model(input_ids=torch.tensor(answer[:20])[None], decoder_input_ids=torch.tensor(answer)[None])
    assert np.abs(found - out.logits[0].numpy()).max() < 1e-4
    weights.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated T5; random, but it talks."""
    folder = tmp_path_factory.mktemp("talking")
    return export(save_encoder_decoder("flan", folder, **FITTING), folder / "bundle", to=("gguf",), weights="fp32")


TEXTS = ("teh quikc brwon fox", "x", "a longer text, " * 9)


def test_greedy_is_that_of_transformers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOTFISH_ENGINE", raising=False)  # so that the engine is chosen
    model: Any = open_source(bundle.parent).torch_model()
    with load(bundle, threads=1) as loaded:
        assert loaded.info.engine == "llamacpp" and loaded.choice is not None
        for text in TEXTS:
            ids = loaded.encode(text)
            with torch.no_grad():
                found = model.generate(torch.tensor(ids)[None], max_new_tokens=40, do_sample=False)[0, 1:]
            assert list(loaded.generate(text, max_new_tokens=40).token_ids) == found.tolist()


def test_drafts_change_nothing(bundle: Path) -> None:
    drawn = [{"temperature": 15.0, "seed": seed} for seed in (4, 5)]
    asks: list[dict[str, Any]] = [{"temperature": 0.0}, {"beams": 3}, *drawn]
    with load(bundle / "gguf" / "model.gguf", engine="llamacpp", threads=1, speculate=False) as plain:
        expected = [plain.generate(t, max_new_tokens=48, **a).token_ids for t in TEXTS for a in asks]
    assert len(set(expected)) >= 5
    for policy in (True, Fixed(4)):
        lookups = (SourceCopy(), Suffix())
        with load(bundle, engine="llamacpp", threads=1, speculate=policy, proposers=lookups) as drafting:
            found = [drafting.generate(t, max_new_tokens=48, **a) for t in TEXTS for a in asks]
            assert [r.token_ids for r in found] == expected
    assert sum(r.stats.drafted for r in found) > 50  # of Fixed(4)


def test_a_decoder_does_not_draft_for_it(bundle: Path, tmp_path: Path) -> None:
    pair = bundle / "gguf" / "model.gguf"
    decoder = tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(OptionError, match="is a decoder, and this model is an encoder-decoder"):
        load(pair, engine="llamacpp", threads=1, draft=decoder)
    with pytest.raises(OptionError, match="is an encoder-decoder model, and this model is a decoder"):
        load(decoder, engine="llamacpp", threads=1, draft=pair)


@pytest.mark.parametrize(
    ("key", "number", "says"),
    [
        (b"t5.attention.relative_buckets_count", 300, "tells 300 distances apart"),
        (b"t5.attention.relative_buckets_count", 8, "attn_rel_b.weight has shape"),
        (b"t5.decoder_block_count", 9, "as many as the encoder has"),
        (b"t5.decoder_block_count", 1, "dec.blk.1.attn_k.weight, which a T5"),
        (b"t5.block_count", 1 << 20, "claims 1048576 layers"),
        (b"t5.context_length", 1 << 25, "answers of 33554432 tokens"),
        (b"t5.decoder_start_token_id", 4000, "token 4000 of 300"),
        (b"t5.decoder_start_token_ix", 0, "does not say which token"),
        (b"t5.feed_forward_length", 7, "ffn_up.weight has shape"),
    ],
)
def test_what_llama_cpp_would_stumble_over(
    key: bytes, number: int, says: str, written: Written, tmp_path: Path
) -> None:
    raw = bytearray(written("t5", "f32").read_bytes())
    at = raw.index(key[:-1])  # the last letter may be damaged, too
    raw[at : at + len(key)] = key
    struct.pack_into("<I", raw, at + len(key) + 4, number)
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises((ModelFileError, UnsupportedModelError), match=says):
        check_file(read_gguf(tmp_path / "m.gguf"))
