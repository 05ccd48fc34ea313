"""The GGUF reader: right on sound files, one clear error on every other."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pilotfish.runtime.errors import ModelFileError, ModelNotFoundError, PilotfishError, UnsupportedModelError
from pilotfish.runtime.files.decoder_shape import decoder_shape
from pilotfish.runtime.files.gguf_file import GgufFile, read_gguf
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf
from pilotfish.testing.tiny_models import MERGES, Sizes, tiny_gguf


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "sound.gguf", quant="Q4_1", sizes=Sizes(layers=1))


def header_bytes(path: Path) -> int:
    return path.stat().st_size - sum(t.data.nbytes for t in read_gguf(path).tensors.values())


def test_reads_what_the_gguf_package_reads(sound: Path) -> None:
    ours, theirs = read_gguf(sound), gguf.GGUFReader(sound)
    assert ours.architecture == "llama"
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert dict(ours.metadata) == fields
    assert len(ours.tensors) == len(theirs.tensors) > 5
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.type_name == tensor.tensor_type.name
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert mine.data.tobytes() == tensor.data.tobytes()


def test_every_kind_of_metadata(tmp_path: Path) -> None:
    path = tmp_path / "kinds.gguf"
    writer = gguf.GGUFWriter(path, "kinds")
    values: dict[str, object] = {"text": "naïve 🙂", "list": ["", "a", "日本"], "numbers": [1, -2, 3], "yes": True}
    writer.add_string("text", "naïve 🙂")
    writer.add_array("list", ["", "a", "日本"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_bool("yes", True)
    for name, value in {"uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1}.items():
        getattr(writer, f"add_{name}")(name, value)
        values[name] = value
    for name, wide in {
        "int32": -(2**31),
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float32": 0.5,
        "float64": 1e300,
    }.items():
        getattr(writer, f"add_{name}")(name, wide)
        values[name] = wide
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    assert values.items() <= dict(file.metadata).items()
    assert file.tensors["t"].shape == (2, 3)
    assert file.tensors["t"].values().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_tokenizer_survives(sound: Path) -> None:
    metadata = read_gguf(sound).metadata
    assert metadata["tokenizer.ggml.merges"] == list(MERGES)
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode("hello the sea é 🙂")) == "hello the sea é 🙂"


def test_missing_folder_foreign_empty(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nothing\.gguf"):
        read_gguf(tmp_path / "nothing.gguf")
    with pytest.raises(ModelFileError, match="not a file"):
        read_gguf(tmp_path)
    for content in (b"", b"PK\x03\x04" + bytes(100), b"<!DOCTYPE html>" * 10):
        (tmp_path / "foreign.gguf").write_bytes(content)
        with pytest.raises(ModelFileError, match=r"foreign\.gguf is not a GGUF file"):
            read_gguf(tmp_path / "foreign.gguf")
    (tmp_path / "short.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match=r"short\.gguf is truncated"):
        read_gguf(tmp_path / "short.gguf")


@pytest.mark.parametrize(("version", "what"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_other_versions(sound: Path, tmp_path: Path, version: int, what: str) -> None:
    data = bytearray(sound.read_bytes())
    data[4:8] = struct.pack("<I", version)
    (tmp_path / "other.gguf").write_bytes(data)
    with pytest.raises(UnsupportedModelError, match=f"other.gguf.*{what}"):
        read_gguf(tmp_path / "other.gguf")


def test_truncated_anywhere(sound: Path, tmp_path: Path) -> None:
    data, cut = sound.read_bytes(), tmp_path / "cut.gguf"
    ends = [*range(24, 400, 7), header_bytes(sound) - 1, header_bytes(sound) + 1, len(data) // 2, len(data) - 1]
    for end in ends:
        cut.write_bytes(data[:end])
        with pytest.raises(ModelFileError, match=r"cut\.gguf is truncated or damaged"):
            read_gguf(cut)


@pytest.mark.parametrize("where", [8, 16, 24])  # number of tensors, number of metadata entries, length of a string
@pytest.mark.parametrize("value", [2**31, 2**40, 2**63, 2**64 - 1])
def test_absurd_counts_are_refused_before_anything_is_allocated(
    sound: Path, tmp_path: Path, where: int, value: int
) -> None:
    data = bytearray(sound.read_bytes())
    data[where : where + 8] = struct.pack("<Q", value)
    (tmp_path / "absurd.gguf").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"absurd\.gguf"):
        read_gguf(tmp_path / "absurd.gguf")


def test_arrays_do_not_nest_forever(tmp_path: Path) -> None:
    nested = struct.pack("<IQ", 9, 1) * 100_000
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    (tmp_path / "deep.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + nested)
    with pytest.raises(ModelFileError, match="arrays inside arrays"):
        read_gguf(tmp_path / "deep.gguf")


@pytest.mark.parametrize(("kind", "n"), [(9, 1 << 22), (9, (1 << 16) + 1), (8, 1 << 24), (0, 1 << 24), (8, 1 << 60)])
def test_a_header_of_zeros_is_refused_for_what_it_claims_before_that_is_read(tmp_path: Path, kind: int, n: int) -> None:
    """Zeros are empty strings, and empty arrays of bytes: sound, whatever number of them is claimed."""
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, n)
    path = tmp_path / "zeros.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
        file.truncate(1 << 28)  # sparse
    claims = rf"(it claims {n} array elements|its metadata holds {n} arrays inside an array)"
    with pytest.raises(ModelFileError, match=rf"zeros\.gguf is truncated or damaged: {claims}"):
        read_gguf(path)


def open_all(path: Path) -> GgufFile:
    """Everything that trusts a header."""
    file = read_gguf(path)
    decoder_shape(file)
    tokenizer_from_gguf(file.metadata)
    return file


def test_ten_thousand_damaged_headers(sound: Path, tmp_path: Path) -> None:
    """Whatever the bytes: a sound file or an error of ours; never a crash, a hang or another error."""
    original, end = sound.read_bytes()[: header_bytes(sound)], header_bytes(sound)
    tail = sound.stat().st_size - end
    rng = np.random.default_rng(0)
    words = [0, 1, 2**31, 2**32 - 1, 2**40, 2**61, 2**63 - 1, 2**63, 2**64 - 1]
    refused = 0
    for i in range(10_000):
        data = bytearray(original)
        at = int(rng.integers(0, end - 8)) if i % 3 else int(rng.integers(0, 700))  # sizes and counts come first
        match i % 5:
            case 0:
                data[at] = int(rng.integers(0, 256))
            case 1:
                data[at : at + 8] = struct.pack("<Q", words[int(rng.integers(len(words)))])
            case 2:
                del data[at:]
            case 3:
                del data[at : at + int(rng.integers(1, 40))]
            case _:
                data[at : at + 4] = struct.pack("<I", int(rng.integers(0, 16)))
        damaged = tmp_path / f"{i}.gguf"
        with damaged.open("wb") as file:
            file.write(data)
            file.truncate(len(data) + tail)
        try:
            open_all(damaged)
        except PilotfishError:
            refused += 1
        damaged.unlink()
    assert refused > 5_000


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64),
    st.floats(),
    st.sampled_from(["", "llama", "linear", "yarn", "gpt2"]),
    st.lists(st.integers(-2, 2**33), max_size=3),
    st.lists(st.sampled_from(["a", "a b", ""]), max_size=3),
)
KEYS = [
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size", "expert_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon"),
    *("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.dimension_count", "attention.sliding_window"),
]


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([f"llama.{k}" for k in KEYS] + ["general.architecture"]), VALUES, min_size=1))
@example({"llama.attention.head_count_kv": 0.5})
def test_no_metadata_breaks_the_shape(sound: Path, changes: dict[str, object]) -> None:
    file = read_gguf(sound)
    metadata = {k: v for k, v in {**file.metadata, **changes}.items() if v is not None}
    try:
        shape = decoder_shape(GgufFile(file.path, metadata, file.tensors))
    except (ModelFileError, UnsupportedModelError) as error:
        assert str(file.path) in str(error)
    else:
        cos, sin = shape.rotations[0].tables(shape.context_length if shape.context_length < 5000 else 5000)
        assert cos.shape == sin.shape == (min(shape.context_length, 5000), 8)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"nextn_predict_layers": 1}, "layers that predict several tokens"),
        ({"attention.sliding_window": 4096}, "sliding-window"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, "'longrope'"),
        ({"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 0.5}, "a YaRN of its own"),
        ({"attention.clamp_kqv": 8.0}, r"not known here \(llama.attention.clamp_kqv\)"),
        ({"rope.dimension_count": 8}, "rotates 8 of 16 dimensions"),
        ({"context_length": 1 << 28}, "contexts of 268435456 tokens"),
        ({"attention.scale": 0.25}, "a scale of attention"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    tmp_path: Path, metadata: dict[str, int | float | str], what: str
) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", sizes=Sizes(layers=1), metadata=metadata)
    with pytest.raises(UnsupportedModelError, match=what):
        decoder_shape(read_gguf(path))


def test_a_pointer_of_git_lfs_is_no_damaged_file(tmp_path: Path) -> None:
    for name in ("m.gguf", "sha256-abc"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(ModelFileError, match=r"Git LFS pointer.*git lfs pull"):
            open_model(tmp_path / name).tokenizer  # noqa: B018


def test_other_architectures_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "falcon.gguf", architecture="falcon", sizes=Sizes(layers=1))
    with pytest.raises(UnsupportedModelError, match=r"'falcon'.*llama, qwen2, qwen3"):
        decoder_shape(read_gguf(path))
    extra = {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
    path = tiny_gguf(tmp_path / "norms.gguf", sizes=Sizes(layers=1), extra_tensors=extra)
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_q_norm\.weight"):
        decoder_shape(read_gguf(path))


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({}, 1.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scale_linear": 2.0}, 2.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, 1.0),
    ],
)
def test_linear_rope_scaling(tmp_path: Path, metadata: dict[str, int | float | str], factor: float) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", sizes=Sizes(layers=1), metadata=metadata)
    expected = 10000.0 ** (-np.arange(0, 16, 2) / 16) / factor
    assert np.allclose(decoder_shape(read_gguf(path)).rotations[0].inverse_frequencies, expected, rtol=1e-12)
