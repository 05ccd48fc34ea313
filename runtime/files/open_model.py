"""Which kind of model file lies at a path: the one place that looks."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelFileError, ModelNotFoundError, OptionError, UnsupportedModelError
from ..lfs_pointer import refuse_pointer
from .bundle import Bundle, open_bundle
from .folder_files import has_weights, json_object
from .folder_model import FolderModel
from .genai_folder import GENAI_CONFIG, GenaiFolder
from .gguf_file import is_gguf
from .gguf_model import GgufModel
from .gguf_parts import gguf_parts
from .ir_folder import IR_NAME, IrFolder
from .manifest import MANIFEST_NAME
from .model_file import DecoderModel, ModelFile
from .optimum_folder import OptimumFolder, optimum_graph

_PARTS = ("openvino_encoder_model.xml", "openvino_language_model.xml", "openvino_text_embeddings_model.xml")


def open_model(path: Path) -> ModelFile:
    """The model at a path: a GGUF file whatever its name, or a folder with a bundle, one .gguf file, safetensors, or a
    decoder that another tool exported to OpenVINO or ONNX.

    Raises ModelNotFoundError where nothing is, ModelFileError, OptionError where several are, and
    UnsupportedModelError for folders of another kind, with the way out.
    """
    if path.is_file():
        if path.suffix.lower() != ".gguf" and not is_gguf(path):
            refuse_pointer(path)
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
    what = "is a file" if model.path.is_file() else "was made elsewhere"
    raise ModelNotFoundError(f"{model} {what}, and a bundle is a folder with {MANIFEST_NAME} in it.")


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
    made = _made_elsewhere(folder)
    if made is not None:
        made.weight_files  # noqa: B018  # which looks at them
        return made
    graphs = sorted(path.name for path in (*folder.glob("*.onnx"), *folder.glob("*.ort")))
    if (folder / "config.json").exists() and not graphs:
        return FolderModel(folder)
    if graphs:
        raise UnsupportedModelError(
            f"{folder} holds ONNX Runtime files made elsewhere ({', '.join(graphs)}), and beside them no settings of a "
            "decoder (optimum's config.json with model.onnx, or genai_config.json). Export the weights that they were "
            "made from: pilotfish export FOLDER -o BUNDLE   For speech that can be a Whisper."
        )
    raise ModelNotFoundError(f"{folder} holds no model: no {MANIFEST_NAME}, no .gguf file and no config.json.")


def _made_elsewhere(folder: Path) -> ModelFile | None:
    """The decoder that another tool laid out, or the safetensors beside its graph, which are read in their stead; None
    where the folder holds no such graph. Raises UnsupportedModelError."""
    if (folder / IR_NAME).is_file():
        _require_decoder(folder)
        return IrFolder(folder)
    parts = [name for name in _PARTS if (folder / name).is_file()]
    if parts:
        raise _of_parts(folder, parts)
    if (folder / GENAI_CONFIG).is_file():
        return GenaiFolder(folder)
    if not (folder / "config.json").is_file():
        return None
    if has_weights(folder):
        return FolderModel(folder)
    graph = optimum_graph(folder)
    if graph is None:
        return None
    _require_decoder(folder)
    return OptimumFolder(folder, graph)


def _require_decoder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} has no config.json, which says what the graph in {IR_NAME} is. Fetch or copy it, too."
        )
    if json_object(folder / "config.json").get("is_encoder_decoder") is True:
        raise _of_parts(folder, sorted(path.name for path in (*folder.glob("*.xml"), *folder.glob("*.onnx"))))


def _of_parts(folder: Path, parts: list[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{folder} is made of several graphs ({', '.join(parts)}), and of what other tools made only decoders of one "
        "graph run. An encoder-decoder is exported from its weights once: pilotfish export FOLDER -o BUNDLE"
    )
