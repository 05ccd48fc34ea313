"""A Whisper out of CTranslate2's container is the model that was put into it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_families import tiny_tokenizer

from pilotfish.exporters.open_source import open_source
from pilotfish.exporters.sources.ctranslate2_file import read_container, whisper_folder
from pilotfish.loading.load import load
from pilotfish.runtime.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError

torch = pytest.importorskip("torch", reason="exporting needs torch")

_SPECIAL = {"<|endoftext|>": 2, "<|startoftranscript|>": 3, "<|notimestamps|>": 4}
_KINDS = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.float16): 4}


def text(value: str) -> bytes:
    return struct.pack("=H", len(value) + 1) + value.encode() + b"\0"


def container(tensors: dict[str, Any], aliases: dict[str, str], spec: str = "WhisperSpec") -> bytes:
    out = [struct.pack("=I", 6), text(spec), struct.pack("=II", 3, len(tensors))]
    for name, values in tensors.items():
        values = np.asarray(values)
        out += [text(name), struct.pack(f"=B{values.ndim}I", values.ndim, *values.shape)]
        out += [struct.pack("=BI", _KINDS[values.dtype], values.nbytes), values.tobytes()]
    out.append(struct.pack("=I", len(aliases)))
    return b"".join(out + [text(a) + text(b) for a, b in aliases.items()])


def as_ctranslate2(model: Any) -> dict[str, Any]:
    """The tensors of a Whisper as CTranslate2 names and fuses them."""
    state = {name.removeprefix("model."): values.numpy() for name, values in model.state_dict().items()}
    found: dict[str, Any] = {
        "decoder/embeddings/weight": state["decoder.embed_tokens.weight"],
        **{f"{side}/num_heads": np.int16(4) for side in ("encoder", "decoder")},
        **{f"{side}/position_encodings/encodings": state[f"{side}.embed_positions.weight"] for side in SIDES},
    }
    for name in ("conv1", "conv2"):
        found |= {f"encoder/{name}/{part}": state[f"encoder.{name}.{part}"] for part in ("weight", "bias")}

    def norm(theirs: str, ours: str) -> None:
        found[f"{theirs}/gamma"], found[f"{theirs}/beta"] = state[f"{ours}.weight"], state[f"{ours}.bias"]

    def product(theirs: str, *ours: str) -> None:
        found[f"{theirs}/weight"] = np.concatenate([state[f"{name}.weight"] for name in ours])
        zeros = np.zeros(len(state[f"{ours[0]}.weight"]), np.float32)
        found[f"{theirs}/bias"] = np.concatenate([state.get(f"{name}.bias", zeros) for name in ours])

    for side, layers in SIDES.items():
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for i in range(layers):
            theirs, ours = f"{side}/layer_{i}", f"{side}.layers.{i}"
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            product(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{p}_proj" for p in "qkv"))
            product(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                product(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                product(f"{theirs}/attention/linear_1", *(f"{ours}.encoder_attn.{p}_proj" for p in "kv"))
                product(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            product(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            product(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
    return found


SIDES = {"encoder": 2, "decoder": 3}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder as CTranslate2 writes it."""
    folder = tmp_path / "ct2"
    folder.mkdir()
    tensors = as_ctranslate2(tiny_encoder_decoder("whisper"))
    data = container(tensors, {"decoder/projection/weight": "decoder/embeddings/weight"})
    (folder / "model.bin").write_bytes(data)
    added = [{"content": name, "id": i} for name, i in _SPECIAL.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"type": "BPE"}}))
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [7]}))
    return folder


def test_it_is_the_model_that_was_put_in(kept: Path, tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    folder = whisper_folder(kept, tmp_path / "hf")
    model, ours = tiny_encoder_decoder("whisper"), WhisperForConditionalGeneration.from_pretrained(folder)
    ours.train(False)
    sound = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 20, 120)).astype(np.float32))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        theirs = model(input_features=sound, decoder_input_ids=ids).logits
        assert (ours(input_features=sound, decoder_input_ids=ids).logits - theirs).abs().max() < 1e-5
    said = json.loads((folder / "generation_config.json").read_text())
    assert said["forced_decoder_ids"] == [[1, 4]] and said["decoder_start_token_id"] == 3
    assert said["suppress_tokens"] == [7]


def test_what_is_no_such_container_is_refused(kept: Path, tmp_path: Path) -> None:
    whole = (kept / "model.bin").read_bytes()
    for data, error, message in (
        (whole[: len(whole) // 2], ModelFileError, "truncated"),
        (b"\x07\0\0\0" + whole[4:], UnsupportedModelError, "binary version 7"),
        (container({"x": np.zeros(3, np.float32)}, {}, "TransformerSpec"), UnsupportedModelError, "TransformerSpec"),
        (container({"x": np.zeros(3, np.float32)}, {}), ModelFileError, "lacks"),
    ):
        (kept / "model.bin").write_bytes(data)
        with pytest.raises(error, match=message):
            whisper_folder(kept, tmp_path / "hf")
    tensors = as_ctranslate2(tiny_encoder_decoder("whisper")) | {"decoder/embeddings/weight_scale": np.float32(1)}
    (kept / "model.bin").write_bytes(container(tensors, {}))
    assert "decoder/embeddings/weight_scale" in read_container(kept / "model.bin")[1]
    with pytest.raises(UnsupportedModelError, match="quantized"):
        whisper_folder(kept, tmp_path / "hf")
    (kept / "model.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"model\.bin"):
        whisper_folder(kept, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_it_is_a_source_like_any_other(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(kept / "tokenizer.json"))
    for _ in range(2):  # made, and found again
        source = open_source(kept)
        assert (
            source.encoder_decoder is not None
            and source.encoder_decoder.source_kind == "audio"
            and source.encoder_decoder.source_limit == 120
        )
        start = tuple(tokenizer.token_to_id(name) for name in ("<|startoftranscript|>", "<|notimestamps|>"))
        assert source.encoder_decoder.decoder_start == start and source.architecture == "whisper"
    assert len(list((tmp_path / "cache" / "converted").iterdir())) == 1


def test_graphs_made_elsewhere_are_explained(tmp_path: Path) -> None:
    (tmp_path / "encoder_model.ort").write_bytes(b"ORTM")
    with pytest.raises(UnsupportedModelError, match=r"made elsewhere \(encoder_model\.ort\).*pilotfish export"):
        load(tmp_path)
