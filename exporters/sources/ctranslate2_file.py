"""A Whisper in CTranslate2's container as a Hugging Face folder, which is what everything else reads.

The container is a list of named tensors. Source: CTranslate2's own model_spec.py, binary version 6.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from ...runtime.errors import ModelFileError, ModelNotFoundError, OptionError, UnsupportedModelError
from ...runtime.lfs_pointer import refuse_pointer
from ...runtime.storage import cache_dir, file_digest, temporary_name

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

_Fused: TypeAlias = tuple[str, tuple[tuple[str, ...], ...]]  # their name, and which of our matrices are one of theirs

_VERSION = 6
_CONVERSION = 2  # of what is written here: another number, and what was kept is made anew
_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by number; then bfloat16, which numpy lacks
_GELU = 3  # the exact one, by number
_MOST_AXES = 4
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
_LATEST_BEGINNING = 50  # steps of 0.02 s, of Whisper's own settings
_MANY_LANGUAGES = 51865  # tokens from which on a Whisper knows more than English


def whisper_folder(path: Path, folder: Path) -> Path:
    """The folder, newly written, with a Whisper that CTranslate2 converted: configuration, f32 weights, tokenizer.

    path: a folder with model.bin, tokenizer.json and, as of most converters, config.json.
    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError for another model or quantized weights, and
    OptionError where something else has the folder's name.
    """
    from safetensors.numpy import save_file

    for name in ("model.bin", "tokenizer.json"):
        if not (path / name).is_file():
            raise ModelNotFoundError(f"{path} holds no {name}: it is not a Whisper as CTranslate2 keeps it.")
    if folder.exists():
        raise OptionError(f"{folder} exists. Choose another folder.")
    spec, tensors = read_container(path / "model.bin")
    if spec != "WhisperSpec":
        raise UnsupportedModelError(f"{path / 'model.bin'} holds a {spec}: not yet, only a WhisperSpec is converted.")
    tokens = json.loads((path / "tokenizer.json").read_bytes())
    special = {token["content"]: int(token["id"]) for token in tokens.get("added_tokens", [])}
    try:
        weights, config = dict(_renamed(tensors)), _config(tensors, special)
        generation = _generation(path, special, config["vocab_size"])
    except KeyError as error:
        raise ModelFileError(f"{path} lacks {error}, which every Whisper has. Fetch it again.") from error
    building = temporary_name(folder)
    try:
        building.mkdir(parents=True)
        save_file(weights, building / "model.safetensors", metadata={"format": "pt"})
        (building / "config.json").write_text(json.dumps(config, indent=2))
        (building / "generation_config.json").write_text(json.dumps(generation, indent=2))
        said = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": False}
        (building / "tokenizer_config.json").write_text(json.dumps(said))
        shutil.copyfile(path / "tokenizer.json", building / "tokenizer.json")
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def is_container(path: Path) -> bool:
    """Whether a folder holds a model as CTranslate2 keeps it, and none as others do."""
    return (path / "model.bin").is_file() and not any(path.glob("*.safetensors"))


def converted(path: Path) -> Path:
    """The Hugging Face folder of a container, made once and kept in the cache. Raises what whisper_folder raises."""
    files = [path / name for name in ("model.bin", "tokenizer.json", "config.json")]
    digests = "".join(file_digest(file) for file in files if file.is_file())
    name = f"{path.resolve().name}-{sha256(f'{_CONVERSION} {digests}'.encode()).hexdigest()[:16]}"
    folder = cache_dir() / "converted" / name
    return folder if folder.is_dir() else whisper_folder(path, folder)


def read_container(path: Path) -> tuple[str, Arrays]:
    """Name of the model's specification, and every tensor by name. Raises ModelFileError and UnsupportedModelError."""
    try:
        with path.open("rb") as file:
            (version,) = _unpack(file, "I")
            if version != _VERSION:
                refuse_pointer(path)
                raise UnsupportedModelError(f"{path} has the binary version {version}: not yet, only {_VERSION}.")
            spec = _text(file)
            _, count = _unpack(file, "II")
            tensors = dict(_tensor(file, path) for _ in range(count))
            (aliases,) = _unpack(file, "I")
            pairs = [(_text(file), _text(file)) for _ in range(aliases)]
    except (OSError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ModelFileError(f"{path} is truncated or no model of CTranslate2: {error}.") from error
    return spec, tensors | {alias: tensors[name] for alias, name in pairs if name in tensors}


def _tensor(file: BinaryIO, path: Path) -> tuple[str, npt.NDArray[Any]]:
    name = _text(file)
    (axes,) = _unpack(file, "B")
    if axes > _MOST_AXES:
        raise ModelFileError(f"{path} is damaged: {name} has {axes} axes.")
    shape = _unpack(file, f"{axes}I")
    kind, n_bytes = _unpack(file, "=BI")
    if kind >= len(_TYPES):
        raise UnsupportedModelError(f"{path}: {name} is stored as type {kind}: not yet. Convert it to float16.")
    data = file.read(n_bytes)
    return name, np.frombuffer(data, dtype=_TYPES[kind]).reshape(shape)


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = form if form.startswith("=") else f"={form}"
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _text(file: BinaryIO) -> str:
    (size,) = _unpack(file, "H")
    return file.read(size)[:-1].decode()  # it ends with a zero


def _renamed(tensors: Mapping[str, Any]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The weights by the names that transformers gives them."""
    if any(name.endswith("weight_scale") for name in tensors):
        raise UnsupportedModelError("its weights are quantized: not yet. Convert the model with float16 weights.")
    if any(int(tensors.get(f"{side}/activation", _GELU)) != _GELU for side in ("encoder", "decoder")):
        raise UnsupportedModelError("its activation is not Whisper's: not yet.")

    def whole(name: str) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(tensors[name].astype(np.float32))

    yield "model.encoder.embed_positions.weight", whole("encoder/position_encodings/encodings")
    yield "model.decoder.embed_positions.weight", whole("decoder/position_encodings/encodings")
    yield "model.decoder.embed_tokens.weight", whole("decoder/embeddings/weight")
    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            yield f"model.encoder.{name}.{part}", whole(f"encoder/{name}/{part}")
    for side in ("encoder", "decoder"):
        yield from _norm(f"model.{side}.layer_norm", f"{side}/layer_norm", whole)
        for i in range(_n_layers(tensors, side)):
            theirs, ours = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            split: dict[str, _Fused] = {
                "self_attn": ("self_attention", (("q_proj", "k_proj", "v_proj"), ("out_proj",)))
            }
            if side == "decoder":
                split["encoder_attn"] = ("attention", (("q_proj",), ("k_proj", "v_proj"), ("out_proj",)))
            for name, (kind, fused) in split.items():
                yield from _norm(f"{ours}.{name}_layer_norm", f"{theirs}/{kind}/layer_norm", whole)
                for number, names in enumerate(fused):
                    yield from _products(f"{ours}.{name}", names, f"{theirs}/{kind}/linear_{number}", whole)
            yield from _norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm", whole)
            for kind, name in (("linear_0", "fc1"), ("linear_1", "fc2")):
                yield from _products(ours, (name,), f"{theirs}/ffn/{kind}", whole)


def _norm(ours: str, theirs: str, whole: Any) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    yield f"{ours}.weight", whole(f"{theirs}/gamma")
    yield f"{ours}.bias", whole(f"{theirs}/beta")


def _products(
    ours: str, names: tuple[str, ...], theirs: str, whole: Any
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """One matrix of several, one below the other, taken apart. Keys have no bias: it is zero in the container."""
    for part in ("weight", "bias"):
        for name, rows in zip(names, np.split(whole(f"{theirs}/{part}"), len(names)), strict=True):
            if (name, part) != ("k_proj", "bias"):
                yield f"{ours}.{name}.{part}", np.ascontiguousarray(rows)


def _n_layers(tensors: Mapping[str, Any], side: str) -> int:
    return len({name.split("/")[1] for name in tensors if name.startswith(f"{side}/layer_") and name.count("/") > 2})


def _config(tensors: Mapping[str, Any], special: Mapping[str, int]) -> dict[str, Any]:
    vocab_size, width = tensors["decoder/embeddings/weight"].shape
    heads = {side: int(tensors[f"{side}/num_heads"]) for side in ("encoder", "decoder")}
    end = special["<|endoftext|>"]
    return {
        "model_type": "whisper",
        "vocab_size": vocab_size,
        "d_model": width,
        "num_mel_bins": tensors["encoder/conv1/weight"].shape[1],
        "max_source_positions": len(tensors["encoder/position_encodings/encodings"]),
        "max_target_positions": len(tensors["decoder/position_encodings/encodings"]),
        **{f"{side}_layers": _n_layers(tensors, side) for side in heads},
        **{f"{side}_attention_heads": n for side, n in heads.items()},
        **{f"{side}_ffn_dim": len(tensors[f"{side}/layer_0/ffn/linear_0/bias"]) for side in heads},
        "decoder_start_token_id": special["<|startoftranscript|>"],
        **{f"{name}_token_id": end for name in ("bos", "eos", "pad")},
    }


def _generation(path: Path, special: Mapping[str, int], n_tokens: int) -> dict[str, Any]:
    """How answers begin. A model of many languages hears which one is spoken, unless it is told."""
    said = json.loads((path / "config.json").read_bytes()) if (path / "config.json").is_file() else {}
    many: dict[str, Any] = {"is_multilingual": n_tokens >= _MANY_LANGUAGES}
    forced: list[list[int | None]] = [[1, special["<|notimestamps|>"]]]
    if many["is_multilingual"]:
        tasks = {name: special[f"<|{name}|>"] for name in ("transcribe", "translate")}
        many["lang_to_id"] = {name: token for name, token in special.items() if _LANGUAGE.fullmatch(name)}
        many["task_to_id"] = tasks
        forced = [[1, None], [2, tasks["transcribe"]]]
    return {
        "decoder_start_token_id": special["<|startoftranscript|>"],
        "forced_decoder_ids": forced,
        "no_timestamps_token_id": special["<|notimestamps|>"],
        "max_initial_timestamp_index": _LATEST_BEGINNING,
        **many,
        "eos_token_id": special["<|endoftext|>"],
        "suppress_tokens": said.get("suppress_ids", []),
        "begin_suppress_tokens": said.get("suppress_ids_begin", []),
    }
