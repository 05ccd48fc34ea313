"""The target "coreml": a Core ML package with its cache as state, written anywhere, run on macOS only.

Off macOS nothing is run, and the manifest says so.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import EngineError, EngineMissingError, UnsupportedModelError
from ...runtime.interfaces import Floats, Tokens
from ...runtime.progress import Share
from ..sources.families import window_of
from .pack import Pack, Written, quiet

_INSTALL = "pip install coremltools==9.0 torch==2.13.0 'numpy<2.4'"
PACKAGES = {"coremltools": _INSTALL, "torch": _INSTALL}
PACKAGE = "model.mlpackage"
FILE = f"{PACKAGE}/Manifest.json"
WIDTH = 4  # tokens a step: Core ML's neural engine compiles fixed shapes
_NUMPY = (2, 4)  # turns arrays of one number into scalars no more, which coremltools relies on
_LIMIT = 0.15  # of the relative difference, for weights of 16 bits computed in 16 bits


def refuse(pack: Pack) -> None:
    """Raise UnsupportedModelError where layers see windows, which were not tried, and EngineMissingError where numpy
    is too new for coremltools."""
    major, minor = (int(part) for part in np.__version__.split(".")[:2])
    if (major, minor) >= _NUMPY:
        raise EngineMissingError(
            f"coremltools 9.0 converts with numpy below {_NUMPY[0]}.{_NUMPY[1]}, and this is {np.__version__}. Add it "
            f"with: {_INSTALL}   in an environment of its own."
        )
    if window_of(pack.source.config()) is not None:
        raise UnsupportedModelError(
            f"this {pack.source.architecture} has layers that see windows; not yet, because that was not tried in a "
            "Core ML package. Leave out the target coreml."
        )


def write(pack: Pack, folder: Path, progress: Share) -> Written:
    """model.mlpackage; run once against the source on macOS."""
    package = _converted(pack)
    progress(0.9)
    package.save(str(folder / PACKAGE))
    tokens, _ = pack.probe()
    report = pack.compare("coreml", _run(package, tokens), _LIMIT) if sys.platform == "darwin" else {}
    recipe = {"weights": "fp16", "context": str(pack.context), "width": str(WIDTH), "package": PACKAGE}
    return Written(FILE, recipe, report)


def _converted(pack: Pack) -> Any:
    import coremltools as ct
    import torch

    from .torch_module import CachedDecoder

    decoder = CachedDecoder(pack.torch_model(), pack.context, by_product=True).eval()
    example = (torch.zeros(1, WIDTH, dtype=torch.int32), torch.arange(WIDTH, dtype=torch.int32))
    states = [
        ct.StateType(wrapped_type=ct.TensorType(shape=buffer.shape, dtype=np.float16), name=name)
        for name, buffer in decoder.named_buffers(recurse=False)
        if name.startswith(("key_", "value_"))
    ]
    try:
        with torch.no_grad(), quiet(), contextlib.redirect_stderr(io.StringIO()):  # which gets bars of its own
            traced = torch.jit.trace(decoder, example)
            return ct.convert(
                traced,
                inputs=[
                    ct.TensorType(name="input_ids", shape=example[0].shape, dtype=np.int32),
                    ct.TensorType(name="positions", shape=example[1].shape, dtype=np.int32),
                ],
                outputs=[ct.TensorType(name="logits", dtype=np.float16)],
                states=states,
                minimum_deployment_target=ct.target.iOS18,
                skip_model_load=sys.platform != "darwin",
            )
    except Exception as error:  # torch and coremltools raise whatever the operator at hand calls for
        raise EngineError(f"coremltools cannot take this {pack.source.architecture}: {error}") from error


def _run(package: Any, tokens: Tokens) -> Floats:
    """Logits after each token, (n, vocab_size)."""
    state, logits = package.make_state(), []
    for start in range(0, len(tokens) - WIDTH + 1, WIDTH):
        inputs = {
            "input_ids": np.asarray(tokens[start : start + WIDTH], np.int32)[None],
            "positions": np.arange(start, start + WIDTH, dtype=np.int32),
        }
        logits.append(np.asarray(package.predict(inputs, state)["logits"], np.float32))
    return np.concatenate(logits)
