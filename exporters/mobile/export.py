"""export_mobile(): one model as the files that phones and neural processors open.

    export_mobile(source, folder, *, form=WeightForm(), model=None, onnx=None, targets=None, activations="int8",
                  context=1024, progress=None) -> MobileResult

Every target becomes a folder of its own, `<folder>/<target>/`, with the model, tokenizer.json, config.json and a
README that shows how an application loads it. A target is run once on this machine against the source; where that
cannot be done (a CoreML package off macOS), MobileResult.unverified names it.

| target | what it is | needs |
|---|---|---|
| ort | the decoder graph in ONNX Runtime's own format, with the list of its operators | onnxruntime |
| onnx-static | the graph of fixed shapes, for neural processors | onnxruntime |
| qnn | a context binary for Qualcomm's NPU | onnxruntime-qnn |
| pte | an ExecuTorch program for XNNPACK | executorch |
| coreml | a Core ML package; only on request | coremltools |
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...runtime.errors import EngineMissingError, OptionError, UnsupportedModelError
from ...runtime.progress import Progress, Share
from ...runtime.storage import temporary_name
from ..quantize.weight_form import WeightForm
from .pack import Pack, Written
from .readme import readme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..sources.model_source import ModelSource

_MODULES = {
    "ort": "ort",
    "onnx-static": "onnx_static",
    "qnn": "qnn",
    "pte": "pte",
    "coreml": "coreml",
}
TARGETS = tuple(_MODULES)
_TABLES = frozenset({"embedding", "output", "symmetric", "block"})
OPTIONS: Mapping[str, frozenset[str]] = {  # of an export, that each target looks at
    "ort": _TABLES | {"activations"},
    "onnx-static": _TABLES,
    "qnn": frozenset(),
    "pte": frozenset({"block", "context"}),
    "coreml": frozenset({"context"}),
}
DEFAULT_TARGETS = ("ort", "onnx-static", "qnn", "pte")


class Target(Protocol):
    """What each mobile_<target> module has. PACKAGES: modules it imports, and the command that adds each."""

    PACKAGES: Mapping[str, str]

    def refuse(self, pack: Pack) -> None:
        """Raise what writing would raise, before any long work."""
        ...

    def write(self, pack: Pack, folder: Path, progress: Share) -> Written:
        """Write the files and run them once where that can be done."""
        ...


@dataclass(slots=True)
class MobileResult:
    """What was written: each by target, which is the manifest's name of the format.

    formats: the file that is opened, relative to the bundle's folder. reports: what running it once against the
    source measured. unverified: written, not run. left_out: why a target that was not asked for by name is missing.
    """

    formats: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, dict[str, str]] = field(default_factory=dict)
    reports: dict[str, dict[str, float]] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


def export_mobile(
    source: ModelSource,
    folder: Path,
    *,
    form: WeightForm | None = None,
    model: PreTrainedModel | None = None,
    onnx: Path | None = None,
    targets: Sequence[str] | None = None,
    activations: Literal["int8", "f32"] = "int8",
    context: int = 1024,
    progress: Progress | None = None,
) -> MobileResult:
    """Write the targets into sub-folders of `folder`, which must exist; what was written, and how it compares.

    form: how weights are stored; None keeps a GGUF file's own quantization (and is int4 for a Hugging Face source).
    model: the source's torch model, where the caller has it at hand. onnx: the decoder graph made of it, likewise.
    targets: None is DEFAULT_TARGETS, of which those that cannot be made are left out with the reason; named ones that
        cannot be made are errors, raised before any long work.
    activations: of the target ort, where its weights are int8 or int4: "f32" keeps them from being rounded to int8.
    context: tokens that targets with a cache of fixed size hold.

    Raises OptionError, EngineMissingError, UnsupportedModelError, EngineError and ParityError; a target that fails
    leaves nothing in `folder`.
    """
    tell = progress or (lambda what, share: None)
    chosen = DEFAULT_TARGETS if targets is None else tuple(dict.fromkeys(targets))
    if form is None and source.format != "gguf":
        form = WeightForm()
    pack = Pack(source, form, model=model, onnx=onnx, activations=activations, context=context)
    result, ready = MobileResult(), dict[str, Target]()
    for name in chosen:
        try:
            ready[name] = checked(name, pack)
        except (EngineMissingError, UnsupportedModelError) as error:
            if targets is not None:
                raise
            result.left_out[name] = str(error)
    for i, (name, target) in enumerate(ready.items()):
        done, what = i / len(ready), f"writing {name}"
        tell(what, done)
        try:
            written = _write(name, target, pack, folder, lambda share: tell(what, done + share / len(ready)))  # noqa: B023
        except UnsupportedModelError as error:
            if targets is not None:
                raise
            result.left_out[name] = str(error)
            continue
        result.formats[name] = f"{name}/{written.file}"
        result.recipe[name] = written.recipe
        if written.report:
            result.reports[name] = written.report
        else:
            result.unverified += (name,)
    tell("done", 1.0)
    return result


def bytes_needed(name: str, stored: int, n_weights: int) -> int:
    """Bytes on disk at the worst moment of writing a target, roughly. stored: of the weights in their form."""
    whole = 4 * n_weights  # what is rounded or converted is in f32 first
    return {"ort": 2 * stored, "onnx-static": stored}.get(name, stored + whole)


def checked(name: str, pack: Pack) -> Target:
    """A target that can be made of this model here. Raises OptionError, EngineMissingError, UnsupportedModelError."""
    if name not in _MODULES:
        raise OptionError(f"there is no mobile target {name!r}; there are {', '.join(TARGETS)}.")
    target: Any = import_module(f".{_MODULES[name]}", __package__)
    for package, command in target.PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            raise EngineMissingError(f"the mobile target {name} needs the package {package}. Add it with: {command}")
    target.refuse(pack)
    made: Target = target
    return made


def _write(name: str, target: Target, pack: Pack, folder: Path, progress: Share) -> Written:
    """One target, under a temporary name until it is whole."""
    final = folder / name
    building = temporary_name(final)
    building.mkdir()
    try:
        written = target.write(pack, building, progress)
        _share_tokenizer(pack, folder, building)
        facts = _facts(pack, name, written)
        (building / "config.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
        (building / "README.md").write_text(readme(name, written.file, facts), "utf-8")
        shutil.rmtree(final, ignore_errors=True)
        building.rename(final)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return written


def _share_tokenizer(pack: Pack, folder: Path, building: Path) -> None:
    """tokenizer.json beside the model; where the disk can, a second name of the one that is there already."""
    for present in (folder / "tokenizer.json", *sorted(folder.glob("*/tokenizer.json"))):
        try:
            os.link(present, building / "tokenizer.json")
            return
        except OSError:
            continue
    pack.source.tokenizer.save(building / "tokenizer.json")


def _facts(pack: Pack, name: str, written: Written) -> dict[str, Any]:
    """What an application has to know about the model."""
    source, settings = pack.source, pack.source.settings
    heads = settings["num_attention_heads"]
    return {
        "model_id": source.model_id,
        "license": source.license,
        "architecture": source.architecture,
        "target": name,
        "vocab_size": settings["vocab_size"],
        "hidden_size": settings["hidden_size"],
        "n_layers": settings["num_hidden_layers"],
        "kv_heads": settings.get("num_key_value_heads") or heads,
        "head_dim": settings.get("head_dim") or settings["hidden_size"] // heads,
        "context_length": source.context_length,
        "bos_id": source.bos_id,
        "add_bos": source.add_bos,
        "eos_ids": list(source.eos_ids),
        "chat_template": source.chat_template,
        **written.recipe,
    }
