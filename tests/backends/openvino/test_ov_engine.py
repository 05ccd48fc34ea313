"""OpenVINO: what it opens and refuses, blocks shared between sequences, damaged files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from family_files import random_family

from pilotfish.backends import get
from pilotfish.runtime.errors import AbilityError, ModelFileError, OptionError, UnsupportedModelError
from pilotfish.runtime.files.bundle import Manifest, Source, describe_files, write_manifest
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats, Session, Weights
from pilotfish.testing.tiny_models import K_SIZES, Sizes, tiny_gguf

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

EXACT = {"dynamic_quantization": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "llama.gguf", quant="Q8_0")


def opened(path: Path, kv_dtype: str | None = None, **options: object) -> Weights:
    return get("openvino").open(open_model(path), device=None, threads=2, kv_dtype=kv_dtype, options=options)


def logits_of(weights: Weights, n: int = 40) -> Floats:
    tokens = np.random.default_rng(0).integers(0, weights.info.vocab_size, n)
    session = weights.session(256)
    found = session.forward(tokens, n_logits=n).logits.copy()
    session.close()
    weights.close()
    return found


def distance(path: Path, kv_dtype: str | None = "f32", **options: object) -> float:
    """From the reference engine, relative to the largest logit."""
    ours = logits_of(opened(path, kv_dtype, **options))
    theirs = logits_of(get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_what_it_says_of_itself(llama: Path) -> None:
    backend = get("openvino")
    assert backend.devices()[0] == "cpu" and backend.formats() == ("openvino", "gguf")
    assert backend.formats("gpu") == ()
    assert backend.version() == openvino.__version__.split("-")[0]
    with pytest.raises(OptionError, match="cpu"):
        backend.open(open_model(llama), device="tpu", threads=1, kv_dtype=None)


@pytest.mark.parametrize(
    "made",
    [
        {"quant": "F32"},
        {"quant": "F16"},
        {"quant": "Q5_0", "tied": False},
        {"quant": "Q8_0", "sizes": Sizes(heads=8, kv_heads=8, head_dim=8)},
        {"quant": "F32", "sizes": Sizes(hidden=96, heads=4, kv_heads=4, head_dim=24)},
        {"quant": "F32", "sizes": Sizes(heads=4, kv_heads=2, head_dim=32)},
        {"quant": "F32", "sizes": Sizes(heads=4, kv_heads=1)},
        {"quant": "F32", "architecture": "qwen2"},
        {"quant": "F32", "architecture": "qwen2", "sizes": Sizes(heads=4, kv_heads=1)},
        {"quant": "F32", "rope_factors": np.linspace(1, 8, 8)},
        {"quant": "F32", "metadata": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}},
    ],
    ids=str,
)
def test_a_gguf_file_is_computed_as_it_says(tmp_path: Path, made: dict[str, object]) -> None:
    path = tiny_gguf(tmp_path / "model.gguf", **made)  # type: ignore[arg-type]
    assert distance(path, dynamic_quantization=0) < 2e-5


def test_types_that_openvino_requantizes(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "model.gguf", quant="Q6_K", sizes=K_SIZES)
    assert 1e-5 < distance(path, dynamic_quantization=0) < 1e-2


def test_what_openvino_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="another engine"):
        opened(tiny_gguf(tmp_path / "iq4.gguf", quant="IQ4_NL"))
    with pytest.raises(UnsupportedModelError, match=r"caps its attention scores.*onnx, llamacpp"):
        opened(random_family("gemma2", tmp_path / "gemma2.gguf"))
    with pytest.raises(UnsupportedModelError, match=r"the architecture granite.*not known to get right.*onnx"):
        opened(random_family("granite", tmp_path / "granite.gguf"))


def test_a_graph_of_another_make_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilotfish.backends.openvino import gguf_heads

    monkeypatch.setattr(gguf_heads, "_AFTER_A_PROJECTION", {"Add"})
    with pytest.raises(UnsupportedModelError, match=r"between a projection and attention.*another engine"):
        opened(llama)


@pytest.mark.parametrize("kv_dtype", ["f8", "f16/u8", "u8/f32", "f32/f16", "bf16", "u3", "u8/u8/u8", "/u8"])
def test_cache_types_that_do_not_exist(llama: Path, kv_dtype: str) -> None:
    with pytest.raises(OptionError, match="u8/u4"):
        opened(llama, kv_dtype)


def test_caches_take_the_room_they_say(llama: Path) -> None:
    held = {}
    for kv_dtype in ("f32", "f16", "u8", "u8/u4", "u4/u8", "u4"):
        weights = opened(llama, kv_dtype)
        held[kv_dtype] = weights.session(64).nbytes
        assert kv_dtype in weights.info.settings
        weights.close()
    assert held["f32"] == 2 * held["f16"] > 2 * held["u8"] > 2 * held["u8/u4"] == 2 * held["u4/u8"] > 2 * held["u4"]


def test_numbers_of_a_quantized_cache_are_not_given_out(llama: Path) -> None:
    weights = opened(llama, "u8")
    session = weights.session(64)
    assert not {"keys", "attention"} & session.abilities
    with pytest.raises(AbilityError, match=r"u8.*kv_dtype='f16'.*reference engine"):
        session.keys_values(0)
    weights.close()


@pytest.mark.parametrize(
    "options",
    [{"precison": "f32"}, {"precision": "f64"}, {"dynamic_quantization": -1}, {"dynamic_quantization": "many"}],
)
def test_options_are_checked(llama: Path, options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"precision='f32', dynamic_quantization=None, q4_k_minima='f16'"):
        opened(llama, **options)


def test_settings_that_change_bits_are_told_apart(llama: Path) -> None:
    chosen: list[dict[str, object]] = [{}, {"dynamic_quantization": 0}, {"q4_k_minima": "integer"}]
    settings = set()
    for options in chosen:
        weights = opened(llama, **options)
        settings.add(weights.info.settings)
        weights.close()
    assert len(settings) == len(chosen)


@pytest.mark.parametrize(("quant", "group"), [("Q8_0", 32), ("Q6_K", 16), ("F32", 32)])
def test_activations_are_grouped_as_the_weights_are(tmp_path: Path, quant: str, group: int) -> None:
    weights = opened(tiny_gguf(tmp_path / "model.gguf", quant=quant, sizes=K_SIZES))
    assert f"-dq{group}-" in weights.info.settings
    weights.close()


def bundle(source: Path, folder: Path) -> Path:
    """An IR with a cache as state, as exporters write it: the graph of a GGUF file of OpenVINO's own, cut and sewn."""
    from stateful_ir import stateful_ir

    folder.mkdir()
    openvino.save_model(stateful_ir(source), folder / "openvino_model.xml", compress_to_fp16=False)
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    facts = describe_files(folder)
    write_manifest(
        folder,
        Manifest(
            model_id="tiny",
            architecture="llama",
            context_length=512,
            source=Source(name="tiny", sha256="0" * 64, format="gguf"),
            files=facts,
            formats={"openvino": "openvino_model.xml"},
        ),
    )


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle, and the GGUF file of the same model."""
    folder = tmp_path_factory.mktemp("ir")
    source = tiny_gguf(folder / "f32.gguf", quant="F32")
    return bundle(source, folder / "bundle"), source


def test_an_ir_is_computed_as_it_says(ir: tuple[Path, Path]) -> None:
    ours = logits_of(opened(ir[0], "f32"))
    theirs = logits_of(get("reference").open(open_model(ir[1]), device=None, threads=1, kv_dtype=None))
    assert np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max()
    weights = opened(ir[0])
    assert (weights.info.n_heads, weights.info.kv_heads, weights.info.head_dim) == (4, 2, 16)
    assert (weights.info.n_layers, weights.info.hidden_size, weights.info.context_length) == (2, 64, 512)
    weights.close()


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def scribbled(data: bytes) -> bytes:
    """Another byte every 997."""
    changed = bytearray(data)
    for at in range(100, len(changed), 997):
        changed[at] ^= 0xFF
    return bytes(changed)


@pytest.mark.parametrize("damage", [cut, scribbled, lambda data: b""], ids=["cut", "scribbled", "empty"])
@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin"])
@pytest.mark.parametrize("sealed", [False, True], ids=["as found", "with matching digests"])
def test_a_damaged_ir_is_refused(
    ir: tuple[Path, Path], tmp_path: Path, name: str, damage: Callable[[bytes], bytes], sealed: bool
) -> None:
    folder = copy_of(ir[0], tmp_path / "bundle")
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    if sealed:  # by somebody who means it; numbers that are only wrong cannot be told from right ones
        seal(folder)
        if name.endswith("bin") and damage is scribbled:
            opened(folder).close()
            return
    with pytest.raises(ModelFileError):
        opened(folder)


def test_a_damaged_gguf_file_is_refused(llama: Path, tmp_path: Path) -> None:
    whole = llama.read_bytes()
    for n in (0, 10, 1000, len(whole) // 2, len(whole) - 100):
        path = tmp_path / f"{n}.gguf"
        path.write_bytes(whole[:n])
        with pytest.raises(ModelFileError):
            opened(path)


def test_a_bundle_of_another_format(ir: tuple[Path, Path], tmp_path: Path) -> None:
    folder = copy_of(ir[0], tmp_path / "bundle")
    manifest = (folder / "pilotfish.json").read_text("utf-8").replace('"openvino":', '"onnx":')
    (folder / "pilotfish.json").write_text(manifest, "utf-8")
    with pytest.raises(ModelFileError, match="onnx"):
        opened(folder)


def test_an_ir_that_is_no_decoder(ir: tuple[Path, Path], tmp_path: Path) -> None:
    from openvino import Model, Type
    from openvino import opset13 as op

    for names in (("x",), ("input_ids", "position_ids")):
        folder = copy_of(ir[0], tmp_path / names[0])
        inputs = [op.parameter([-1, -1], Type.i64, name) for name in names]
        for node, name in zip(inputs, names, strict=True):
            node.output(0).set_names({name})
        openvino.save_model(
            Model([op.result(sum(inputs[1:], inputs[0]))], inputs, "sum"), folder / "openvino_model.xml"
        )
        seal(folder)
        with pytest.raises(UnsupportedModelError, match="decoder"):
            opened(folder)


def run(session: Session, n: int, seed: int = 0) -> None:
    tokens = np.random.default_rng(seed).integers(0, session.info.vocab_size, n)
    session.forward(tokens, n_logits=0)


def test_a_closed_session_gives_memory_back_and_others_read_on(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "llama.gguf", quant="Q8_0", sizes=Sizes(context=4096))
    weights = opened(path)
    pool = weights.model.pool  # type: ignore[attr-defined]
    tokens = np.random.default_rng(0).integers(0, weights.info.vocab_size, 1200)
    long, after = weights.session(2048), weights.session(2048)
    for start in range(0, 1200, 100):
        long.forward(tokens[start : start + 100], n_logits=0)
    short = long.fork(np.r_[0:4, 1140:1200], 200)
    alone = long.fork(np.r_[0:4, 1140:1200], 200)
    expected = alone.forward(tokens[:9], n_logits=9).logits.copy()
    shared = short.fork()
    before, generation = pool.nbytes, pool.generation
    assert short.nbytes < before // 4  # 64 entries
    long.close()
    assert pool.nbytes <= before // 4 and pool.generation == generation + 1 and pool.held == 2 + 3 + 1
    for session in (short, shared):  # the first of them gets a copy of the block that both would write into
        assert np.array_equal(session.forward(tokens[:9], n_logits=9).logits, expected)
    after.forward(tokens[:100], n_logits=0)
    assert np.array_equal(after.keys_values(0)[0].shape, (weights.info.kv_heads, 100, weights.info.head_dim))
    for session in (short, shared, alone, after):
        session.close()
    assert pool.held == 0
    weights.close()


def test_sequences_share_one_pool_and_what_they_have_in_common(llama: Path) -> None:
    weights = opened(llama)
    pool = weights.model.pool  # type: ignore[attr-defined]
    one = weights.session(1024)
    run(one, 100)
    held = pool.held
    fork = one.fork()
    assert pool.held == held == 4  # 100 entries in blocks of 32; the fork costs nothing
    run(fork, 1)  # the last block is shared and not full: the writer gets a copy
    assert pool.held == held + 1
    run(one, 1)  # now alone in it
    assert pool.held == held + 1
    one.close()
    assert pool.held == 4
    fork.truncate(40)
    assert pool.held == 2
    fork.keep(np.arange(30, 40))
    assert pool.held == 1
    fork.close()
    assert pool.held == 0
    weights.close()


def test_a_cache_grows_with_its_entries(llama: Path) -> None:
    weights = opened(llama)
    session, other = weights.session(), weights.session()
    small = session.nbytes
    run(session, 700)
    assert small < session.nbytes < weights.info.context_length * small / 512
    run(other, 700)
    kept = [x.copy() for x in session.keys_values(1)]
    run(other, 1300, seed=1)  # the pool grows; what others hold stays
    assert all(np.array_equal(x, y) for x, y in zip(kept, session.keys_values(1), strict=True))
    weights.close()


def test_a_state_of_another_cache_type_is_refused(llama: Path) -> None:
    one, other = opened(llama, "f16"), opened(llama, "u8")
    session, stranger = one.session(64), other.session(64)
    run(session, 10)
    with pytest.raises(OptionError, match="settings"):
        stranger.restore(session.save())
    one.close()
    other.close()
