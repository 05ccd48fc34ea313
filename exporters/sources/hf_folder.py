"""A Hugging Face folder as a source: config.json, safetensors, tokenizer.json and what lies beside them.

Nothing in the folder is executed: no program code that a model brings, and no pickled weights, which are programs too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...runtime.errors import EngineMissingError, ModelFileError, ModelNotFoundError, UnsupportedModelError
from ...runtime.files.folder_files import chat_template_in, json_object, settings_in, tokenizer_in
from ...runtime.files.generation_settings import generating, languages_of, said_by
from ...runtime.storage import file_digest
from ...runtime.text.tokenizer import Tokenizer
from .encoder_decoder_families import ENCODER_DECODERS, encoder_decoder_facts, encoder_decoder_settings
from .families import text_settings
from .model_source import EXPORT_EXTRA, ModelSource, build_config

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TEXT_PART = re.compile(r"(model\.)?language_model\.(model\.)?(?P<name>.+)")  # three releases wrote it in three ways
_VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
_BUFFER = re.compile(r".*rotary_emb\.inv_freq")  # old Llama files store what the configuration says anyway
_LICENSES = {"Apache License": "apache-2.0", "MIT License": "mit", "BSD 3-Clause": "bsd-3-clause"}
_FLOATS = {"F32", "F16", "BF16", "F64"}


def read_folder(path: Path) -> tuple[dict[str, Any], list[Path], Tokenizer, str | None]:
    """Settings, weight files, tokenizer and chat template of a Hugging Face folder: all that is read without another
    package.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError.
    """
    settings = settings_in(path)
    is_pair = settings.get("model_type") in ENCODER_DECODERS
    settings = encoder_decoder_settings(settings, path) if is_pair else text_settings(settings, path)
    files = _weight_files(path)
    for file in files:
        _require_header(file)
    return settings, files, tokenizer_in(path, settings), chat_template_in(path)


def open_folder(path: Path) -> ModelSource:
    """The model in a Hugging Face folder.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError, all before a weight is read.
    """
    settings, files, tokenizer, template = read_folder(path)
    said = said_by(json_object(path / "generation_config.json"), json_object(path / "config.json"))
    config: Any = build_config(settings, path)
    facts = encoder_decoder_facts(config, said) if settings["model_type"] in ENCODER_DECODERS else None
    weights = SafetensorsWeights(path, files)
    length = facts.context_length if facts is not None else int(config.max_position_embeddings)
    languages = {} if facts is None else languages_of(tokenizer)
    digests = "".join(f"{file.name} {file_digest(file)}\n" for file in (path / "config.json", *files))
    return ModelSource(
        path=path,
        format="huggingface",
        sha256=sha256(digests.encode()).hexdigest(),
        model_id=_model_id(path, settings),
        license=_license(path),
        architecture=str(settings["model_type"]),
        context_length=length,
        tokenizer=tokenizer,
        chat_template=template,
        bos_id=tokenizer.bos_id,
        add_bos=tokenizer.add_bos,
        eos_ids=tokenizer.ordered_eos_ids,
        settings=settings,
        weights=weights,
        encoder_decoder=facts,
        generating=generating(said, int(config.vocab_size), languages),
    )


class SafetensorsWeights:
    """Weights in safetensors files, their headers read; a text part lies under its own name."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        """Raises ModelFileError for files that are cut short or contradict each other."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise EngineMissingError(f"exporting needs the package {error.name}. {EXPORT_EXTRA}") from error
        self._open = cast("Any", safe_open)
        self._at: dict[str, tuple[Path, str]] = {}  # name -> file, name in it
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            try:
                with self._open(file, framework="numpy") as opened:
                    for stored in opened.keys():  # noqa: SIM118
                        piece = opened.get_slice(stored)
                        self._add(path, file, stored, tuple(piece.get_shape()), piece.get_dtype())
            except (SafetensorError, OSError) as error:
                raise ModelFileError(f"{file} is truncated or damaged: {error}. Fetch or copy it again.") from error

    def _add(self, path: Path, file: Path, stored: str, shape: tuple[int, ...], dtype: str) -> None:
        name = _text_name(stored)
        if name is None:
            return
        if name in self._at:
            raise ModelFileError(f"{path} holds the tensor {stored} twice. Remove the files that do not belong to it.")
        if dtype not in _FLOATS:
            raise UnsupportedModelError(
                f"{file}: tensor {stored} is stored as {dtype}: not yet, because only whole floats are read. "
                "Give the model that this one was quantized from."
            )
        self._at[name], self._shapes[name] = (file, stored), shape

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read_into(self, name: str, target: torch.Tensor) -> None:
        file, stored = self._at[name]
        with self._open(file, framework="pt") as opened:
            target.copy_(opened.get_tensor(stored))


def _text_name(stored: str) -> str | None:
    """The name of a tensor in the text model alone; None where it belongs to something else."""
    if _VISION.match(stored) or _BUFFER.fullmatch(stored):
        return None
    part = _TEXT_PART.fullmatch(stored)
    if part is None:
        return stored
    return part["name"] if part["name"].startswith("lm_head.") else f"model.{part['name']}"


def _weight_files(path: Path) -> list[Path]:
    if (path / _INDEX).exists():
        places = json_object(path / _INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
            raise ModelFileError(f"{path / _INDEX} has no weight_map. Fetch or copy it again.")
        names = sorted(set(places.values()))
        for name in names:
            if name != Path(name).name or not (path / name).is_file():
                raise ModelFileError(f"{path / _INDEX} names {name}, which is not there. Fetch the missing file.")
        return [path / name for name in names]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if any(next(path.glob(pattern), None) for pattern in _PICKLED):
        raise UnsupportedModelError(
            f"{path} holds its weights as pickled files only, which run as programs when they are read. "
            "Save the model as safetensors where it was made."
        )
    raise ModelNotFoundError(f"{path} holds no weights (model.safetensors, or {_INDEX} and what it names).")


def _require_header(file: Path) -> None:
    """Raise ModelFileError where a safetensors file does not have the length that its header says.

    Source: the safetensors format: the header's length in 8 bytes, a header in JSON, and the values.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = file.stat().st_size
            if not 0 < length <= size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        end = max((fact["data_offsets"][1] for name, fact in header.items() if name != "__metadata__"), default=0)
        if end != size - 8 - length:
            raise ValueError(f"{end} bytes of values were announced, and {size - 8 - length} are there")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{file} is truncated or damaged: {error}. Fetch or copy it again.") from error


def _model_id(path: Path, settings: Mapping[str, Any]) -> str:
    """The name it is known by: a hub's cache folder says it, else the configuration, else the folder's own name."""
    for part in reversed(path.resolve().parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    name = settings.get("_name_or_path")
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    return path.resolve().name


def _license(path: Path) -> str | None:
    """What the model card says, else what the license file begins with; None where neither is there."""
    if (path / "README.md").is_file():
        front = re.match(r"---\n(.*?)\n---", _text(path / "README.md"), re.DOTALL)
        said = dict(re.findall(r"^(license|license_name):[ \t]*['\"]?([^'\"\n]+)", front[1], re.M)) if front else {}
        if said.get("license") not in (None, "other"):
            return str(said["license"]).strip()
        if "license_name" in said:
            return str(said["license_name"]).strip()
    for file in sorted(path.glob("LICENSE*")):
        if file.is_file():
            lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
            first = lines[0] if lines else ""
            return (
                next((name for words, name in _LICENSES.items() if words.lower() in first.lower()), first[:80]) or None
            )
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
