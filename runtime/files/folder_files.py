"""What lies in a Hugging Face folder: which files are its weights, its tokenizer, chat template and settings.

Nothing in the folder is executed: no program code that a model brings, and no pickled weights, which are programs too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ..checks import shown
from ..errors import ModelFileError, ModelNotFoundError, OptionError, UnsupportedModelError
from ..lfs_pointer import refuse_pointer
from ..text.library_tokenizer import read_tokenizer
from ..text.tokenizer import Tokenizer

_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TEXT_PART = re.compile(r"(model\.)?language_model\.(model\.)?(?P<name>.+)")  # three releases wrote it in three ways
_OTHER_PARTS = re.compile(r"(model\.)?(vision_tower|multi_modal_projector|embed_vision|audio_tower|embed_audio)\.")
_BUFFER = re.compile(r".*rotary_emb\.inv_freq")  # old Llama files store what the configuration says anyway
_LICENSES = {"Apache License": "apache-2.0", "MIT License": "mit", "BSD 3-Clause": "bsd-3-clause"}
_ANSWERED_BY = (  # besides the weights
    *("config.json", "generation_config.json", "quantize_config.json", "quant_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"),
)


def settings_in(path: Path) -> dict[str, Any]:
    """The entries of the folder's config.json. Raises ModelNotFoundError and ModelFileError."""
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(f"{path} holds no config.json: it is not a Hugging Face model folder.")
    return json_object(path / "config.json")


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is absent. Raises ModelFileError."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise ModelFileError(f"{path} cannot be read as JSON: {error}. Fetch or copy it again.") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} does not hold a JSON object. Fetch or copy it again.")
    return value


def has_weights(path: Path) -> bool:
    """Whether a folder holds safetensors, or says that it should."""
    return (path / _INDEX).exists() or next(path.glob("*.safetensors"), None) is not None


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of the folder's model.

    Raises ModelFileError where one is missing, OptionError where two models lie there, UnsupportedModelError where the
    weights are pickled, and ModelNotFoundError where there are none.
    """
    single, others = path / "model.safetensors", sorted(path.glob("*.safetensors"))
    if (path / _INDEX).exists():
        files = named_by(path / _INDEX)
        if single.is_file() and single not in files:
            raise OptionError(
                f"{path} holds two models, {single.name} and the one that {_INDEX} names. Keep one of them there."
            )
        return files
    if single.is_file():
        return [single]
    if len(others) == 1 and not (path / "adapter_config.json").exists():
        return others
    if (path / "adapter_config.json").exists():
        raise UnsupportedModelError(
            f"{path} holds an adapter alone. Merge it into its model where it was made (merge_and_unload of peft), and "
            "open the folder of that."
        )
    if others:
        raise OptionError(
            f"{path} holds {len(others)} safetensors files ({', '.join(file.name for file in others[:4])}) and no "
            f"{_INDEX} that says which belong together. Fetch that file, or leave one model there, model.safetensors."
        )
    _require_fetched(path, "its weights")
    pickled = [file for pattern in _PICKLED for file in path.glob(pattern)]
    for file in pickled:
        refuse_pointer(file)
    if pickled:
        raise UnsupportedModelError(
            f"{path} holds its weights as pickled files only, which run as programs when they are read. Where you "
            'trust them, transformers writes them anew: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{path}').save_pretrained('{path}')\""
        )
    raise ModelNotFoundError(f"{path} holds no weights (model.safetensors, or {_INDEX} and what it names).")


def named_by(index: Path) -> list[Path]:
    """The files that an index of weights names. Raises ModelFileError where one is missing."""
    path = index.parent
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise ModelFileError(f"{index} has no weight_map. Fetch or copy it again.")
    names = sorted(set(places.values()))
    for name in names:
        if name != Path(name).name:
            raise ModelFileError(
                f"{index} points outside of the files beside it, to {shown(name)}, and no other is read for it. Fetch "
                "the model anew, or put the file there and name it in the index without a folder."
            )
        if not (path / name).is_file():
            _require_fetched(path, name)
            raise ModelFileError(f"{index} names {name}, which is not there. Fetch the missing file.")
    return [path / name for name in names]


def _require_fetched(path: Path, what: str) -> None:
    """Raise ModelFileError where a download that is not done lies in a folder, or in the hub's cache that it is of."""
    places = [path, path / ".cache" / "huggingface" / "download"]
    if path.parent.name == "snapshots":
        places.append(path.parent.parent / "blobs")
    if any(next(place.glob("*.incomplete"), None) for place in places):
        raise ModelFileError(
            f"{path} is still being fetched, or its download was stopped: {what} is not whole (*.incomplete). Let it "
            "end, or start it again."
        )


def answering_files(path: Path) -> list[Path]:
    """The files beside the weights that decide what the model answers."""
    return [path / name for name in _ANSWERED_BY if (path / name).is_file()]


def text_name(stored: str) -> str | None:
    """The name of a tensor in the text model alone; None where it belongs to something else."""
    if _OTHER_PARTS.match(stored) or _BUFFER.fullmatch(stored):
        return None
    part = _TEXT_PART.fullmatch(stored)
    if part is None:
        return stored
    return part["name"] if part["name"].startswith("lm_head.") else f"model.{part['name']}"


def require_tokenizer(path: Path) -> Path:
    """The tokenizer.json of a folder. Raises UnsupportedModelError where there is none."""
    if not (path / "tokenizer.json").is_file():
        raise UnsupportedModelError(
            f"{path} has no tokenizer.json. Where it has another tokenizer, transformers' AutoTokenizer can load it "
            "and save_pretrained() writes the file."
        )
    return path / "tokenizer.json"


def tokenizer_in(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a folder. settings: of its config.json."""
    return with_ends(read_tokenizer(require_tokenizer(path)), path, settings)


def with_ends(
    inner: tokenizers.Tokenizer, path: Path, settings: Mapping[str, Any], *, framed: bool = False
) -> Tokenizer:
    """The tokenizer, with what a folder says of its beginnings and ends. framed: tokens of the folder's own stand
    around every text, the first of which may be a language. Raises ModelFileError for an end that is no token of it."""
    said = json_object(path / "tokenizer_config.json")
    generation = json_object(path / "generation_config.json")
    plain = Tokenizer(inner)
    bos_id = _special_id(plain, said.get("bos_token"))
    ends = [_special_id(plain, said.get("eos_token"))]
    for found in (generation.get("eos_token_id"), settings.get("eos_token_id")):
        ends += found if isinstance(found, list) else [found]
    whole = [end for end in ends if isinstance(end, int) and not isinstance(end, bool) and end >= 0]  # -1: none
    if max(whole, default=-1) >= plain.vocab_size:
        raise ModelFileError(
            f"{path} ends answers at token {max(whole)} (eos_token_id), and its tokenizer has {plain.vocab_size} "
            "tokens: they are of different models. Fetch or copy the tokenizer and the settings again."
        )
    starts = None if framed else plain.starts_with
    if bos_id is None and starts is not None:
        bos_id = starts
    add = said.get("add_bos_token")
    add_bos = add if isinstance(add, bool) else starts is not None and starts == bos_id
    return Tokenizer(inner, bos_id=bos_id, eos_ids=list(dict.fromkeys(whole)), add_bos=add_bos)


def _special_id(tokenizer: Tokenizer, token: object) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.id_of(text) if isinstance(text, str) else None


def chat_template_in(path: Path) -> str | None:
    """The jinja2 text of a folder's chat template; of several the one that is named default."""
    if (path / "chat_template.jinja").is_file():
        return text_in(path / "chat_template.jinja")
    said, apart = json_object(path / "tokenizer_config.json"), json_object(path / "chat_template.json")
    for found in (said.get("chat_template"), apart.get("chat_template")):
        if isinstance(found, str):
            return found
        if isinstance(found, list):  # several, named
            named = {part.get("name"): part.get("template") for part in found if isinstance(part, dict)}
            default = named.get("default")
            return default if isinstance(default, str) else None
    return None


def model_id_of(path: Path, settings: Mapping[str, Any]) -> str:
    """The name it is known by: a hub's cache folder says it, else the configuration, else the folder's own name."""
    for part in reversed(path.resolve().parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    name = settings.get("_name_or_path")
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    return path.resolve().name


def license_in(path: Path) -> str | None:
    """What the model card says, else what the license file begins with; None where neither is there."""
    if (path / "README.md").is_file():
        front = re.match(r"---\n(.*?)\n---", text_in(path / "README.md"), re.DOTALL)
        said = dict(re.findall(r"^(license|license_name):[ \t]*['\"]?([^'\"\n]+)", front[1], re.M)) if front else {}
        if said.get("license") not in (None, "other"):
            return str(said["license"]).strip()
        if "license_name" in said:
            return str(said["license_name"]).strip()
    for file in sorted(path.glob("LICENSE*")):
        if file.is_file():
            lines = [line.strip() for line in text_in(file).splitlines() if line.strip()]
            first = lines[0] if lines else ""
            return (
                next((name for words, name in _LICENSES.items() if words.lower() in first.lower()), first[:80]) or None
            )
    return None


def text_in(path: Path) -> str:
    """The text in a file. Raises ModelFileError."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
