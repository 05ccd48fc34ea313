"""transformers models to OpenVINO: the stateful decoder that optimum-intel traces, its weights compressed by NNCF.

optimum-intel can compress by itself, but has been seen to write uncompressed weights without a word; so it is asked for
f32, and what NNCF made of that is looked at.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import EngineMissingError, UnsupportedModelError
from ...runtime.progress import Share
from ...runtime.telemetry import without_telemetry
from ..sources.families import SUPPORTED, refuse_format, window_of
from ..sources.model_source import EXPORT_EXTRA
from .compress import ON_OWN_GRID, Compression, compress
from .matrices import Model, matrices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL = "openvino_model.xml"
_TRACED = "traced.xml"
_TASK = "text-generation-with-past"
_CHANGED = ("torchscript", "return_dict")  # entries of a configuration that optimum-intel overwrites


def trace_openvino(model: PreTrainedModel, folder: Path, wanted: Compression) -> dict[str, str]:
    """Write the decoder in f32, to be compressed; what a manifest's recipe says of the model.

    model: in f32 on the CPU; it is the same afterwards. Raises UnsupportedModelError, OptionError and
    EngineMissingError before anything is written.
    """
    _check(model, wanted)
    try:
        with _offline():
            _trace(model, folder / _TRACED)
    except BaseException:
        remove_ir(folder / _TRACED)
        raise
    recipe = {"n_heads": str(model.config.num_attention_heads)}
    window = window_of(model.config)
    if window is not None:
        recipe["sliding_window"] = str(window)
    return recipe


def compress_openvino(folder: Path, wanted: Compression, progress: Share | None = None) -> dict[str, str]:
    """Make openvino_model.xml and .bin of the traced decoder, which is removed; how, as entries of a recipe.

    Memory: what is compressed, beside the traced weights, which lie in a file and are mapped; data-aware methods run
    the model, which takes twice its size in f32. Raises EngineError where OpenVINO or NNCF fails.
    """
    tell = progress or (lambda share: None)
    try:
        with _offline():
            counts = _compress(folder, wanted, tell)
    finally:
        remove_ir(folder / _TRACED)
    tell(1.0)
    return recipe_of(wanted, counts, f"optimum-intel {metadata.version('optimum-intel')}")


def _compress(folder: Path, wanted: Compression, tell: Share) -> dict[str, int]:
    import openvino

    tell(0.0)
    graph = openvino.Core().read_model(folder / _TRACED)
    counts = compress(graph, matrices, wanted, lambda share: tell(0.9 * share))
    save_ir(graph, folder / MODEL)
    return counts


def save_ir(graph: Model, path: Path) -> None:
    """Write an IR, weights as they are stored, and then give it its name."""
    import openvino

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".openvino-", ignore_cleanup_errors=True) as building:
        made = Path(building) / path.name
        openvino.save_model(graph, made, compress_to_fp16=False)
        for name in (made.with_suffix(".bin"), made):
            name.replace(path.parent / name.name)


def remove_ir(path: Path) -> None:
    """Remove an IR, if it is there."""
    for suffix in (".xml", ".bin"):
        with contextlib.suppress(OSError):  # Windows keeps what is still mapped; the folder is not kept either then
            path.with_suffix(suffix).unlink(missing_ok=True)


def _check(model: PreTrainedModel, wanted: Compression) -> None:
    """Raise UnsupportedModelError and OptionError for what would fail after long work."""
    import torch

    kind = model.config.model_type
    if kind not in SUPPORTED:
        raise UnsupportedModelError(
            f"a model of the family {kind!r} cannot be exported to OpenVINO: not yet, because its computation is not "
            f"checked here. Families that are: {', '.join(SUPPORTED)}."
        )
    refuse_format(kind, "openvino")
    whole: Any = model  # transformers' own methods have no types
    output = whole.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            wanted.check_columns("output" if module is output else "layers", module.in_features, name)
        elif isinstance(module, torch.nn.Embedding):
            wanted.check_columns("embedding", module.embedding_dim, name)


def _trace(model: PreTrainedModel, path: Path) -> None:
    """Write the model as a stateful IR in f32."""
    try:
        with without_telemetry():
            from optimum.exporters.openvino import model_configs  # noqa: F401  # tells the tasks manager what there is
            from optimum.exporters.openvino.convert import export_pytorch
            from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise EngineMissingError(f"exporting to OpenVINO needs the package {error.name}. {EXPORT_EXTRA}") from error
    make = TasksManager.get_exporter_config_constructor(
        exporter="openvino", model=model, task=_TASK, library_name="transformers"
    )
    config = make(model.config, use_past=True, use_past_in_inputs=True)
    with _prepared(model), _quiet():
        export_pytorch(model, config, path, stateful=True, library_name="transformers")


@contextlib.contextmanager
def _prepared(model: PreTrainedModel) -> Iterator[None]:
    """With the attention that optimum-intel expects; everything it changes in the configuration is put back."""
    before = model.config._attn_implementation
    values = {name: vars(model.config)[name] for name in _CHANGED if name in vars(model.config)}
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        for name in _CHANGED:
            vars(model.config).pop(name, None)
        vars(model.config).update(values)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's warnings about every branch on a shape, and transformers' about what optimum-intel does."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Nothing asks the network for anything."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def recipe_of(wanted: Compression, counts: dict[str, int], builder: str) -> dict[str, str]:
    """What a manifest says of compressed weights. builder: what traced the model."""
    form = wanted.form
    recipe = {
        "builder": f"{builder}, nncf {metadata.version('nncf')}",
        "weights": form.layers,
        "embedding": form.embedding_form,
        "output": form.output_form,
        "matrices": ", ".join(f"{n} {what}" for what, n in counts.items()),
    }
    if counts.get(ON_OWN_GRID) == sum(n for what, n in counts.items() if what.endswith("int4")):
        recipe["own_grid"] = "all"  # in four bits as they came: nothing was rounded
    if {"int4", "int8"} & set(wanted.forms.values()):
        recipe["block"] = str(form.block)
        recipe["zero_points"] = "none" if form.symmetric else "integer"
    if wanted.methods:
        recipe["data_aware"] = ", ".join(sorted(wanted.methods))
        recipe["calibration_tokens"] = str(sum(len(sample) for sample in wanted.samples))
    if wanted.ratio != 1.0:
        recipe["ratio"] = str(wanted.ratio)
    return recipe
