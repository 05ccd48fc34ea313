"""Which kind of model file lies at a path: the one place that looks."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelFileError, ModelNotFoundError, OptionError, UnsupportedModelError
from .bundle import Bundle, open_bundle
from .folder_files import has_weights
from .folder_model import FolderModel
from .gguf_file import is_gguf
from .gguf_model import GgufModel
from .gguf_parts import gguf_parts
from .manifest import MANIFEST_NAME
from .model_file import DecoderModel, ModelFile


def open_model(path: Path) -> ModelFile:
    """The model at a path: a GGUF file whatever its name, or a folder with a bundle, one .gguf file, or safetensors.

    Raises ModelNotFoundError where nothing is, ModelFileError, OptionError where several are, and
    UnsupportedModelError for folders of another kind, with the way out.
    """
    if path.is_file():
        if path.suffix.lower() != ".gguf" and not is_gguf(path):
            raise ModelFileError(f"{path} is not a .gguf file; give one, or a folder with a model or a catalogue name.")
        return GgufModel(gguf_parts(path)[0])
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        raise ModelFileError(f"{path} is neither a file nor a folder; give a .gguf file, or a folder with a model.")
    raise ModelNotFoundError(f"there is no file or folder {path}.")


def bundle_of(model: ModelFile) -> Bundle:
    """The bundle that a model is. Raises ModelNotFoundError."""
    if isinstance(model, Bundle):
        return model
    raise ModelNotFoundError(f"{model} is a file, and a bundle is a folder with {MANIFEST_NAME} in it.")


def gguf_of(model: ModelFile) -> GgufModel:
    """The .gguf file that a model is or holds. Raises UnsupportedModelError."""
    if isinstance(model, GgufModel):
        return model
    if isinstance(model, Bundle) and "gguf" in model.formats:
        return GgufModel(model.file(model.manifest.formats["gguf"]))
    raise UnsupportedModelError(f"{model} holds no GGUF file; it holds {', '.join(model.formats)}.")


def decoder_of(model: ModelFile) -> DecoderModel:
    """The decoder that a model is, or the .gguf file that it holds. Raises UnsupportedModelError."""
    return model if isinstance(model, DecoderModel) else gguf_of(model)


def _in_folder(folder: Path) -> ModelFile:
    if (folder / MANIFEST_NAME).exists():
        return open_bundle(folder)
    files = [path for path in folder.glob("*.gguf") if "mmproj" not in path.name.lower()]  # which reads pictures
    models = sorted({gguf_parts(path)[0] for path in files})
    if len(models) == 1 and has_weights(folder):
        raise OptionError(
            f"{folder} holds two models, {models[0].name} and one in safetensors. Name that file to open it, or give "
            "the other a folder of its own."
        )
    if len(models) == 1:
        return GgufModel(models[0])
    if models:
        raise OptionError(f"{folder} holds {len(models)} .gguf files; name one: {', '.join(m.name for m in models)}.")
    if (folder / "config.json").exists():
        return FolderModel(folder)
    graphs = sorted(path.name for path in (*folder.glob("*.onnx"), *folder.glob("*.ort")))
    if graphs:
        raise UnsupportedModelError(
            f"{folder} holds ONNX Runtime files made elsewhere ({', '.join(graphs)}), without {MANIFEST_NAME}: what a "
            "token gets may depend on the others of its step (Moonshine's round all of them by one scale), so that "
            "checking drafts would change the answer. Export the weights that they were made from: "
            "pilotfish export FOLDER -o BUNDLE   For speech that can be a Whisper."
        )
    raise ModelNotFoundError(f"{folder} holds no model: no {MANIFEST_NAME}, no .gguf file and no config.json.")
