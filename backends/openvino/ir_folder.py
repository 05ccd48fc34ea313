"""Folders with an IR made elsewhere: opened as a bundle's IR is, and asked as they are for a known answer."""

from __future__ import annotations

import numpy as np

from ...runtime.errors import EngineError
from ...runtime.files.ir_folder import IrFolder
from ...runtime.interfaces import Floats, Tokens
from ...runtime.leaving import in_engine
from ...runtime.profiling.canary import TEXT, Canary, canary_at_once
from .graph import read_ir, read_stateful_ir, reason
from .loaded_model import Facts, OvModel, compiled, engine_settings
from .options import OpenVinoOptions

_AGAIN = "Fetch or copy the folder again."


def open_ir_folder(
    folder: IrFolder, options: OpenVinoOptions, cache: tuple[str, str], threads: int, version: str
) -> OvModel:
    """The decoder, its attention over blocks. Raises ModelFileError and UnsupportedModelError."""
    facts = Facts(
        name=str(folder),
        architecture=folder.architecture,
        context_length=folder.context_length,
        digest=folder.digest,
        window=folder.window,
    )
    model = OvModel(lambda: read_ir(folder.graph, _AGAIN), facts, options, cache, threads, version)
    info = model.info
    try:
        folder.require_sizes(
            {"num_hidden_layers": info.n_layers, "hidden_size": info.hidden_size, "vocab_size": info.vocab_size}
        )
    except BaseException:
        model.close()
        raise
    return model


def own_answer(folder: IrFolder) -> Canary | None:
    """What the graph answers with its past as state, nothing changed in it and nothing rounded on the way.

    None where it wants more than a decoder of texts.
    """
    folder.weight_files  # noqa: B018  # which looks at them
    graph = read_stateful_ir(folder.graph, _AGAIN)
    settings = engine_settings("f32", 0, 0) | {"KV_CACHE_PRECISION": "f32"}
    request = compiled(graph, str(folder), settings).create_infer_request()
    wanted = {name for port in graph.inputs for name in port.names}

    def run(tokens: Tokens) -> Floats:
        row = np.arange(len(tokens))[None]
        inputs = {
            "input_ids": tokens[None],
            "attention_mask": np.ones_like(row),
            "position_ids": row,
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        try:
            with in_engine:
                found: Floats = request.infer({name: inputs[name] for name in wanted})["logits"][0].copy()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {reason(error)}.") from error
        return found

    if wanted - {"input_ids", "attention_mask", "position_ids", "beam_idx"}:
        return None
    return canary_at_once(folder.tokenizer.encode(TEXT), run)
