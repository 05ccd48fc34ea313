"""What .gguf files of each family say becomes a description; what is not understood is refused with a way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from family_files import CONTEXT, MADE, random_family

from pilotfish.runtime.errors import ModelFileError, UnsupportedModelError
from pilotfish.runtime.files import decoder_shape as module
from pilotfish.runtime.files.decoder_description import DecoderShape
from pilotfish.runtime.files.decoder_families import FAMILIES
from pilotfish.runtime.files.decoder_shape import decoder_shape
from pilotfish.runtime.files.gguf_file import GgufFile, GgufTensor, read_gguf


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    folder = tmp_path_factory.mktemp("families")
    return {name: read_gguf(random_family(name, folder / f"{name}.gguf")) for name in MADE}


def changed(file: GgufFile, metadata: Mapping[str, object], without: str = "") -> GgufFile:
    """The file with other metadata (None: without it; names without the prefix), and without a tensor."""
    entries = {f"{file.architecture}.{key}": value for key, value in metadata.items()}
    kept = {key: value for key, value in {**file.metadata, **entries}.items() if value is not None}
    return GgufFile(file.path, kept, {name: x for name, x in file.tensors.items() if name != without})


def windows(shape: DecoderShape) -> list[int | None]:
    return [layer.window for layer in shape.layers]


def test_every_family_that_is_read_is_tried() -> None:
    assert {made.architecture for made in MADE.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", MADE)
def test_a_key_and_a_tensor_that_nobody_reads_are_refused_by_name(name: str, files: dict[str, GgufFile]) -> None:
    file = files[name]
    decoder_shape(file)
    with pytest.raises(UnsupportedModelError, match=rf"{file.architecture}\.swin_norm\)"):
        decoder_shape(changed(file, {"swin_norm": True}))
    decoder_shape(changed(file, {"swin_norm": False}))
    mixes = FAMILIES[file.architecture].mixture is not None
    error, words = (ModelFileError, "ffn_gate_inp") if mixes else (UnsupportedModelError, "mixtures of experts .*count")
    with pytest.raises(error, match=words):
        decoder_shape(changed(file, {"expert_count": 8, "expert_used_count": 2}))
    spare = GgufTensor("blk.0.spare.weight", "F32", (1,), np.zeros(4, np.uint8))
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.spare\.weight"):
        decoder_shape(GgufFile(file.path, file.metadata, {**file.tensors, spare.name: spare}))
    for missing in (tensor for tensor in file.tensors if tensor.startswith("blk.1.") and "bias" not in tensor):
        with pytest.raises(ModelFileError, match=missing):
            decoder_shape(changed(file, {}, without=missing))


@pytest.mark.parametrize(
    ("name", "metadata", "expected"),
    [
        ("gemma2", {}, [8, None, 8]),
        ("gemma2", {"attention.sliding_window": None}, [None] * 3),  # 4,096, more than the context
        ("gemma2", {"attention.sliding_window": None, "context_length": 8192}, [4096, None, 4096]),
        ("gemma2", {"attention.sliding_window_pattern": 3}, [8, 8, None]),
        ("gemma3", {}, [8, 8, None]),
        ("gemma3", {"attention.sliding_window_pattern": None}, [8, 8, 8]),  # every sixth layer sees everything
        ("gemma3", {"attention.sliding_window": None}, [None] * 3),
        ("gemma3", {"attention.sliding_window": CONTEXT}, [None] * 3),
        ("phi3", {}, [None] * 3),
        ("phi3", {"attention.sliding_window": None}, [None] * 3),
        ("phi3 with a window", {}, [10] * 3),
    ],
    ids=str,
)
def test_windows(
    name: str, metadata: dict[str, object], expected: list[int | None], files: dict[str, GgufFile]
) -> None:
    assert windows(decoder_shape(changed(files[name], metadata))) == expected


def test_gemma_3_rotates_layers_with_a_window_by_a_base_of_their_own(files: dict[str, GgufFile]) -> None:
    def second_frequencies(metadata: dict[str, object]) -> list[float]:
        layers = decoder_shape(changed(files["gemma3"], metadata)).layers
        return [float(x.rotation.inverse_frequencies[1]) for x in layers if x.rotation is not None]

    near, far = 10000.0 ** (-2 / 32), 1e6 ** (-2 / 32) / 8
    assert second_frequencies({}) == pytest.approx([near, near, far])
    assert second_frequencies({"rope.freq_base_swa": 500.0})[0] == pytest.approx(500.0 ** (-2 / 32))
    assert second_frequencies({"attention.sliding_window": CONTEXT}) == pytest.approx([near, near, far])
    assert second_frequencies({"attention.sliding_window": None}) == pytest.approx([far] * 3)


def test_what_files_are_silent_about(files: dict[str, GgufFile]) -> None:
    silent: dict[str, object] = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    gemma2 = decoder_shape(changed(files["gemma2"], silent))
    assert (gemma2.attention_softcap, gemma2.logit_softcap) == (50.0, 30.0)
    uncapped = decoder_shape(changed(files["gemma2"], dict.fromkeys(silent, 0.0)))
    assert (uncapped.attention_softcap, uncapped.logit_softcap) == (None, None)
    assert decoder_shape(files["gemma3"]).logit_softcap is None
    assert decoder_shape(changed(files["gemma3"], {"final_logit_softcapping": 30.0})).logit_softcap == 30.0
    plain = decoder_shape(changed(files["granite"], dict.fromkeys(FAMILIES["granite"].scalars)))
    assert plain.beyond_llama() is None and decoder_shape(files["granite"]).beyond_llama() is not None


def test_the_largest_gemma_scales_scores_by_its_width(
    files: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoder_shape(files["gemma2"]).score_scale == 32**-0.5
    family = replace(FAMILIES["gemma2"], wide_scale_layers=3)
    monkeypatch.setattr(module, "FAMILIES", {"gemma2": family})
    assert decoder_shape(files["gemma2"]).score_scale == (64 / 4) ** -0.5


def test_long_factors_end_where_the_short_ones_do(files: dict[str, GgufFile]) -> None:
    assert decoder_shape(files["phi3 longrope"]).context_length == CONTEXT
    with pytest.raises(ModelFileError, match=r"no tensor rope_factors_long\.weight"):
        decoder_shape(changed(files["phi3 longrope"], {}, without="rope_factors_long.weight"))


def test_granite_without_rotation(files: dict[str, GgufFile]) -> None:
    layers = decoder_shape(changed(files["granite"], {"rope.scaling.finetuned": False})).layers
    assert [layer.rotation for layer in layers] == [None] * 3


@pytest.mark.parametrize(
    ("name", "metadata", "what"),
    [
        ("olmo2", {"attention.sliding_window": 8}, "sliding-window attention"),
        ("qwen3", {"attention.sliding_window": 8}, "sliding-window attention"),
        ("qwen3", {"attention.value_length": 16}, r"values of 16 numbers and keys of 32"),
        ("gemma3", {"attention.key_length_swa": 16}, "keys in layers with a window of 16 numbers"),
        ("gemma3", {"rope.dimension_count_swa": 16}, "heads by different lengths"),
        ("gemma2", {"rope.freq_base_swa": 500.0}, "a base of their own"),
        ("gemma2", {"rope.scaling.type": "yarn"}, "'yarn'"),
        ("smollm3", {"rope.dimension_count": 8}, "rotates 8 of 16 dimensions"),
        ("qwen3", {"attention.causal": False}, "not causal"),
        ("qwen3", {"pooling_type": 3}, "pooled embeddings"),
        ("qwen3", {"final_logit_softcapping": 30.0}, "capped logits"),
        ("qwen3 yarn", {"rope.scaling.yarn_attn_factor": 2.0}, "a YaRN of its own"),
        ("qwen3", {"attention.head_count_kv": [2, 1, 2]}, "layers of different sizes"),
        ("qwen3", {"feed_forward_length": [128, 256, 128]}, "layers of different sizes"),
        ("gemma4", {"attention.shared_kv_layers": 1}, "do not follow a layer with a window and one without"),
        ("gemma4", {"attention.value_length_swa": 8}, "values in layers with a window of 8 numbers and keys of 16"),
        ("gemma4", {"rope.scaling.factor": 4.0}, "'linear'"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    name: str, metadata: dict[str, object], what: str, files: dict[str, GgufFile]
) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        decoder_shape(changed(files[name], metadata))


@pytest.mark.parametrize(
    ("name", "metadata", "what"),
    [
        ("gemma3", {"attention.sliding_window_pattern": [True]}, "a yes or no for each of 3 layers"),
        ("gemma3", {"attention.sliding_window": -1}, "a positive number"),
        ("granite", {"logit_scale": "large"}, "a positive number"),
        ("granite", {"rope.scaling.finetuned": 3}, "true or false"),
        ("qwen3", {"rope.freq_base": 1.0}, "more than 1"),
        ("qwen3", {"rope.dimension_count": 34}, "34 of 32 numbers"),
        ("qwen3", {"rope.scaling.type": 4}, "a text"),
        ("qwen3", {"attention.key_length": 1 << 29}, "are no heads"),
        ("qwen3", {"attention.head_count_kv": [2, 2]}, "a positive number for each of 3 layers"),
        ("qwen3", {"attention.head_count_kv": [2, 2, -2]}, "a positive number for each of 3 layers"),
        ("qwen3", {"attention.head_count_kv": [2, 2, 3]}, "cannot share 3 key-value heads evenly"),
        ("gemma4", {"attention.key_length_swa": 1}, "heads of 1 numbers are no heads"),
        ("gemma4", {"attention.shared_kv_layers": 5}, "all 5 layers share keys and values"),
        ("gemma4", {"attention.head_count_kv": [2, 2, 2, 1, 2]}, "layer 3 has 1 key-value heads and shares the 2"),
        ("gemma4", {"attention.sliding_window": None}, "attention.sliding_window is None"),
        ("gemma4", {"rope.dimension_count_swa": 18}, "18 of 16 numbers"),
    ],
)
def test_numbers_that_cannot_be(name: str, metadata: dict[str, object], what: str, files: dict[str, GgufFile]) -> None:
    with pytest.raises(ModelFileError, match=what):
        decoder_shape(changed(files[name], metadata))


def test_a_list_of_equal_sizes_is_one_size(files: dict[str, GgufFile]) -> None:
    lists = {"attention.head_count_kv": [2, 2, 2], "feed_forward_length": [128, 128, 128]}
    shape = decoder_shape(changed(files["qwen3"], lists))
    assert (shape.kv_heads, shape.ffn_size, shape.even) == (2, 128, True) and shape.layers[0].sizes is None


def test_layers_that_differ(files: dict[str, GgufFile]) -> None:
    shape = decoder_shape(files["gemma4"])
    assert [shape.sizes(i).head_dim for i in range(5)] == [16, 16, 32, 16, 32]
    assert [shape.sizes(i).ffn_size for i in range(5)] == [128, 128, 128, 256, 256]
    assert [layer.cache_of for layer in shape.layers] == [None, None, None, 1, 2]
    assert [x.head_dim for x in shape.kept] == [16, 16, 32] and not shape.even
    shape = decoder_shape(files["gemma4 without layer inputs"])
    assert [(shape.sizes(i).kv_heads, shape.layers[i].keys_as_values) for i in range(3)] == [(2, False)] + [
        (1, True)
    ] * 2
    assert not shape.even and shape.beyond_llama() is not None


def test_values_that_a_part_of_the_layers_lack_are_missed(files: dict[str, GgufFile]) -> None:
    """Only where no layer that sees everything has any are keys the values."""
    file = files["gemma4 without layer inputs"]
    values = replace(file.tensors["blk.1.attn_k.weight"], name="blk.1.attn_v.weight")
    with pytest.raises(ModelFileError, match=r"no tensor blk\.2\.attn_v\.weight"):
        decoder_shape(GgufFile(file.path, file.metadata, {**file.tensors, values.name: values}))


def test_keys_of_layers_that_share_others_are_passed_over(files: dict[str, GgufFile]) -> None:
    """Checkpoints have them, though nobody computes them."""
    file = files["gemma4"]
    spare = {f"blk.{i}.{x}.weight": file.tensors[f"blk.1.{x}.weight"] for i in (3, 4) for x in ("attn_k", "attn_v")}
    decoder_shape(GgufFile(file.path, file.metadata, {**file.tensors, **spare}))


def test_pairs_that_do_not_turn_do_not_turn_at_all(files: dict[str, GgufFile]) -> None:
    full = decoder_shape(files["gemma4"]).layers[2].rotation
    assert full is not None and full.rotated == 32 and (full.inverse_frequencies[4:] == 0).all()
    assert (full.inverse_frequencies[:4] > 0).all() and (full.at(np.array([200]))[1][0, 4:] == 0).all()


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_parts_of_a_file_that_see_and_hear_are_passed_over(name: str, files: dict[str, GgufFile]) -> None:
    """Ollama keeps them beside the decoder, in one file."""
    file = changed(files[name], {"vision.block_count": 16, "audio.block_count": 12, "mm.tokens_per_image": 256})
    parts = ("v.blk.0.attn_q.weight", "v.clamp_data", "a.blk.0.ln1.weight", "mm.input_projection.weight")
    others = {part: GgufTensor(part, "F32", (1,), np.zeros(4, np.uint8)) for part in parts}
    decoder_shape(GgufFile(file.path, file.metadata, {**file.tensors, **others}))
