"""The target "onnx-static": the graph of fixed shapes (docs/npu.md) with its ladder, for neural processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...runtime.errors import EngineError
from ...runtime.install import install_command
from ...runtime.interfaces import Floats, Tokens
from ...runtime.progress import Share
from ..onnx.fixed_shape_steps import StaticSteps, Values
from .pack import Pack, Written

PACKAGES = {"onnx": install_command("export"), "onnxruntime": install_command("onnx")}
FILE = "model.onnx"
BUILDER = 2  # of onnx/fixed_shape_graph.py
WIDTHS, CHUNK, WINDOWS = (1, 4, 8, 16), 64, (256, 1024, 4096, 16384)  # the ladder that engines compile
_TRIED = 4  # the width of the step that is run once


def refuse(pack: Pack) -> None:
    """Raise UnsupportedModelError where the graph cannot express the family."""
    from .decoder_weights import refuse_family

    if not pack.as_is:
        refuse_family(pack.source)
    else:
        from ...runtime.files.decoder_shape import decoder_shape
        from ...runtime.files.gguf_file import read_gguf
        from ..onnx.fixed_shape_graph import refuse_beyond_llama

        refuse_beyond_llama(decoder_shape(read_gguf(pack.source.path)))


def write(pack: Pack, folder: Path, progress: Share) -> Written:
    """model.onnx and model.onnx.data, one step of the ladder run against the source."""
    from ..onnx.fixed_shape_graph import StaticGraph
    from ..onnx.writer import OnnxWriter

    decoder = pack.decoder()
    with (folder / "model.onnx.data").open("wb") as data:
        writer = OnnxWriter(data, "model.onnx.data")
        StaticGraph(writer, decoder).build(lambda share: progress(0.8 * share))
    writer.save(folder / FILE)
    tokens, _ = pack.probe()
    shape = decoder.shape
    del decoder, writer
    steps = StaticSteps(shape.n_layers, shape.kv_heads, shape.head_dim, width=_TRIED, window=64)
    session = open_fixed(folder / FILE, {"n": _TRIED, "m": _TRIED, "W": 64})
    report = pack.compare("onnx-static", read_all(steps, tokens, session))
    progress(1.0)
    recipe = {
        "weights": pack.stored,
        "builder": str(BUILDER),
        "n_heads": str(shape.n_heads),
        "widths": ",".join(map(str, WIDTHS)),
        "chunk": str(CHUNK),
        "windows": ",".join(map(str, WINDOWS)),
    }
    return Written(FILE, recipe, report)


def open_fixed(model: Path, sizes: dict[str, int], settings: dict[str, str] | None = None) -> Any:
    """An inference session on the CPU with the graph's symbols fixed. Raises EngineError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4  # what fails is raised, with its message
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")  # activations stay in f32
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    for symbol, size in sizes.items():
        options.add_free_dimension_override_by_name(symbol, size)
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own that derive from nothing but Exception
        raise EngineError(f"ONNX Runtime cannot open {model}: {error}") from error


def read_all(steps: StaticSteps, tokens: Tokens, session: Any) -> Floats:
    """Logits after each token, from a session over the static graph."""
    names = [x.name for x in session.get_outputs()]

    def run(inputs: Values) -> Values:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return steps.read(tokens, run)
