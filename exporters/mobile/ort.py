"""The target "ort": the decoder graph in ONNX Runtime's own format, weights inside, for builds with few operators.

The graph is the one of docs/onnx-graph.md, optimized ahead of time up to what does not depend on the processor, and
beside it `required_operators.config`, the list a minimal build of ONNX Runtime is made from.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import EngineError, EngineMissingError, ParityError, UnsupportedModelError
from ...runtime.install import install_command
from ...runtime.interfaces import Floats, Tokens
from ...runtime.progress import Share
from ..sources.families import window_of
from .pack import Pack, Written, distance

PACKAGES = {"onnx": install_command("export"), "onnxruntime": install_command("onnx")}
FILE = "model.ort"
OPERATORS = "required_operators.config"
LARGEST = (1 << 31) - (1 << 20)  # bytes of a flatbuffer, which addresses its parts with 31 bits
_HIDDEN = -3e4  # added to a score: nothing is left of it
_TOLERANCE = 1e-4  # of the logits' spread: the same kernels, fused by the same rules


def refuse(pack: Pack) -> None:
    """Raise UnsupportedModelError where the file would be larger than its format can be."""
    size = _data_bytes(pack.onnx) if pack.onnx else _estimate(pack)
    if size > LARGEST:
        raise UnsupportedModelError(
            f"an .ort file holds at most {LARGEST / 1e9:.2f} GB, and this model's weights are {size / 1e9:.2f} GB. "
            "Choose int4 weights, or leave out the target ort and ship the ONNX model."
        )


def write(pack: Pack, folder: Path, progress: Share) -> Written:
    """model.ort and required_operators.config, run once against the ONNX model and the source."""
    with tempfile.TemporaryDirectory(prefix="onnx", dir=folder) as scratch:
        onnx = pack.onnx or _decoder_graph(pack, Path(scratch), lambda share: progress(0.6 * share))
        if _data_bytes(onnx) > LARGEST:
            refuse(Pack(pack.source, pack.form, onnx=onnx))
        convert(onnx, folder / FILE)
        progress(0.8)
        write_operators(folder / FILE, folder / OPERATORS)
        tokens = pack.probe()[0]
        window = window_of(pack.source.config())
        found = _logits(folder / FILE, tokens, window)
        against_onnx = distance(found, _logits(onnx, tokens, window))
    if not against_onnx["relative_difference"] <= _TOLERANCE:
        raise ParityError(
            f"{FILE} answers otherwise than the ONNX model it was made from: its logits differ by "
            f"{against_onnx['relative_difference']:.2g} of their spread. Report this with your onnxruntime version."
        )
    report = pack.compare("ort", found)
    progress(1.0)
    recipe = {
        "weights": pack.stored,
        "activations": pack.activations,
        "optimized": "extended, nothing that depends on the processor",
    }
    return Written(FILE, recipe, report | {"max_difference_to_onnx": against_onnx["max_difference"]})


def convert(onnx: Path, out: Path) -> None:
    """Write an ONNX model in ONNX Runtime's format. Raises EngineError.

    Optimization stops before layouts: what comes after is made for the processor it is made on.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 4  # what fails is raised, with its message
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "0")
    # Packed weights are laid out for this processor's registers.
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own that derive from nothing but Exception
        raise EngineError(f"ONNX Runtime cannot write {onnx} in its own format: {error}") from error


def write_operators(model: Path, out: Path) -> None:
    """Write the operators that an .ort model needs, as `build.py --include_ops_by_config` reads them."""
    try:
        from onnxruntime.tools.ort_format_model import create_config_from_models
    except ImportError as error:
        raise EngineMissingError(f"listing operators needs {error.name}. Add it with: pip install onnx") from error
    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        create_config_from_models([model], out, False)
    lines = [line for line in out.read_text("utf-8").splitlines() if not line.startswith("#")]  # paths of this machine
    out.write_text("\n".join([f"# {model.name}", *lines]) + "\n", "utf-8")


def _decoder_graph(pack: Pack, folder: Path, progress: Share) -> Path:
    if pack.form is None or pack.as_is:
        from ...runtime.files.gguf_model import GgufModel
        from ..onnx.import_model import import_model

        source = GgufModel(pack.source.path)
        bundle = import_model(source, activations=pack.activations, progress=lambda _, share: progress(share))
        return bundle.file(bundle.manifest.formats["onnx"])
    from ..torch_to_onnx.decoder import export_onnx

    export_onnx(
        pack.torch_model(),
        folder,
        pack.form,
        activations=pack.activations,
        progress=lambda _, share: progress(share),
    )
    return folder / "model.onnx"


def _logits(model: Path, tokens: Tokens, window: int | None) -> Floats:
    """Logits after each token, all but the last four read at once, these in a second step from the cache.

    window: entries that layers with a window see, their own included.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    shapes = {x.name: x.shape for x in session.get_inputs()}
    cache = {
        name: np.zeros((1, shape[1], len(tokens), shape[3]), dtype=np.float32)
        for name, shape in shapes.items()
        if name.startswith("past_")
    }
    names, logits = [x.name for x in session.get_outputs()], []
    first = max(len(tokens) - 4, 1)
    for start, end in ((0, first), (first, len(tokens))):
        if start == end:
            continue
        inputs: dict[str, Any] = {
            "input_ids": np.asarray(tokens[start:end], dtype=np.int64)[None],
            "position_ids": np.arange(start, end)[None],
            "logit_rows": np.arange(end - start),
            "bias": np.zeros((1, 1, end - start, end), dtype=np.float32),
        }
        if "sliding_bias" in shapes and window is not None:
            age = np.arange(start, end)[:, None] - np.arange(end)
            inputs["sliding_bias"] = np.where(age < window, 0, _HIDDEN).astype(np.float32)[None, None]
        outputs = dict(zip(names, session.run(names, inputs | cache), strict=True))
        cache = {name: outputs[name.replace("past", "present")] for name in cache}
        logits.append(outputs["logits"])
    return np.concatenate(logits)


def _data_bytes(onnx: Path) -> int:
    data = onnx.with_name(onnx.name + ".data")
    return onnx.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _estimate(pack: Pack) -> int:
    """Bytes of the weights, roughly, before they are written."""
    if pack.form is None:
        return int(1.1 * pack.source.path.stat().st_size)
    sizes = {"fp32": 4.0, "fp16": 2.0, "int8": 1.15, "int4": 0.6}
    total = 0.0
    for name, shape in pack.source.weights.shapes().items():
        at_end = pack.form.embedding_form if "embed" in name else pack.form.output_form
        total += float(np.prod(shape)) * sizes[at_end if "embed" in name or "lm_head" in name else pack.form.layers]
    return int(total)
