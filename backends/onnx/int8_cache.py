"""A KV cache in eight bits on ONNX Runtime: the scales of its channels, and a graph that reads and writes it."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import EngineMissingError, OptionError
from ...runtime.files.bundle import Bundle
from ...runtime.install import install_command
from ...runtime.interfaces import Floats, Session, Tokens
from ...runtime.storage import cache_dir, read_json, write_json_atomically
from ...runtime.text.calibration_text import TEXT

_ATTENTION = "GroupQueryAttention"
_N_INPUTS = 12  # of the operator before its scales
_CHUNK = 256  # rows of a step while the scales are measured
_UNORDERED = 512  # tokens drawn from the whole vocabulary
# Of keys and values over the largest seen. What is clipped costs far more than what is rounded: with 1.25 for values,
# too, the line breaks of tables, which are much attended to, doubled what a page of docs lost.
_MARGINS = (1.25, 2.0)
_LEVELS = 127


def check_kv_dtype(kv_dtype: str | None, device: str, encoder_decoder: bool) -> bool:
    """Whether the cache is stored in eight bits. Raises OptionError for what cannot be had."""
    if kv_dtype in (None, "f32"):
        return False
    if kv_dtype == "int8" and device == "cpu" and not encoder_decoder:
        return True
    where = " of decoders on the device cpu" if kv_dtype == "int8" else ""
    more = ""
    if kv_dtype == "int4":
        more = (
            " ONNX Runtime has int4, too, but with one scale a channel: SmolLM2's perplexity grows by 38 %, and by "
            "12 to 22 % where keys and values are rotated first. Use int8."
        )
    if kv_dtype in ("f16", "fp16"):
        more = " In f16 its attention is several times slower than in f32."
    raise OptionError(f"the onnx engine stores its cache in f32, or in int8{where}, not in {kv_dtype!r}.{more}")


def channel_scales(session: Session, bundle: Bundle) -> Floats:
    """The value of one step of the stored integers, (2 n_layers, kv_heads, head_dim), keys and values in turn.

    Measured once for every model, over prose, code and talk, and over tokens without order, which are of every
    language; they alone stay below what text brings in many channels, 2.9 times in the worst. A rotation moves a key
    inside its pair of channels, so both get the pair's largest length: what was measured at the first positions holds
    at all of them.
    session: empty, in f32, over the bundle's weights, and left empty. Raises ModelFileError for a bundle that has no
    tokenizer.
    """
    info = session.info
    made_by = hashlib.sha256(f"{info.digest} {_MARGINS} {TEXT}".encode()).hexdigest()
    path = cache_dir() / "kv-scales" / f"{made_by[:32]}.json"
    shape = (2 * info.n_layers, info.kv_heads, info.head_dim)
    known = read_json(path)
    if isinstance(known, dict) and known.get("shape") == list(shape):
        kept = np.array(known.get("scales"), dtype=np.float32)
        if kept.shape == (np.prod(shape),) and np.isfinite(kept).all() and (kept > 0).all():
            return kept.reshape(shape)
    text = bundle.tokenizer.encode(TEXT)
    unordered = np.random.default_rng(0).integers(0, info.vocab_size, _UNORDERED)
    largest = np.maximum(_largest(session, text), _largest(session, unordered))
    for i, margin in enumerate(_MARGINS):
        largest[i::2] *= np.float32(margin / _LEVELS)
    scales = _rounded_up(largest)
    write_json_atomically(path, {"shape": list(shape), "scales": [float(x) for x in scales.ravel()]})
    return scales


def stored_as(scales: Floats | None) -> str:
    """What entries are stored as, for the settings: integers mean something only with the scales they were made by."""
    return "" if scales is None else f"kv-int8-{zlib.crc32(scales.tobytes()):08x}"


def _largest(session: Session, tokens: Tokens) -> Floats:
    """Of every channel over these tokens, as far as they fit, as channel_scales() has them."""
    tokens = tokens[: session.max_context]
    for start in range(0, len(tokens), _CHUNK):
        session.forward(tokens[start : start + _CHUNK], n_logits=0)
    largest = []
    for layer in range(session.info.n_layers):
        keys, values = session.keys_values(layer)
        a, b = np.split(keys, 2, axis=-1)
        pairs = np.sqrt(a * a + b * b).max(axis=1)
        largest += [np.concatenate([pairs, pairs], axis=-1), np.abs(values).max(axis=1)]
    session.truncate(0)
    return np.stack(largest)


def _rounded_up(scales: Floats) -> Floats:
    """To eight significant bits, so that another number of threads does not give other scales; never zero."""
    mantissa, exponent = np.frexp(np.maximum(scales, np.float32(1e-9)))
    return np.ldexp(np.ceil(mantissa * 256.0) / 256.0, exponent).astype(np.float32)


def eight_bit_graph(model: Path, scales: Floats) -> bytes:
    """The graph of a decoder with its cache in int8; weights stay in the files that they are in."""
    try:
        import onnx
    except ImportError:
        raise EngineMissingError(
            f"kv_dtype='int8' needs the onnx package. Add it with: {install_command('onnx')}"
        ) from None
    graph = onnx.load(str(model), load_external_data=False)
    layers = [node for node in graph.graph.node if node.op_type == _ATTENTION]
    for i, node in enumerate(layers):
        node.input.extend([""] * (_N_INPUTS - len(node.input)))
        for kind, scale in (("key", scales[2 * i]), ("value", scales[2 * i + 1])):
            name = f"{kind}_scale_{i}"
            graph.graph.initializer.append(onnx.numpy_helper.from_array(scale.ravel(), name))
            node.input.append(name)
        made: list[Any] = [onnx.helper.make_attribute(f"{x}_quant_type", "PER_CHANNEL") for x in ("k", "v")]
        node.attribute.extend([*made, onnx.helper.make_attribute("kv_cache_bit_width", 8)])
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        if value.name.startswith(("past_", "present_")):
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return bytes(graph.SerializeToString())
