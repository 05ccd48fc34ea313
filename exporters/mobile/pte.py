"""The target "pte": an ExecuTorch program for XNNPACK with a cache of its own, several tokens at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import EngineError, UnsupportedModelError
from ...runtime.interfaces import Floats, Tokens
from ...runtime.progress import Share
from ..quantize.weight_form import WeightForm
from .pack import Pack, Written, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INSTALL = "pip install executorch==1.5.1 torch==2.13.0"
PACKAGES = {"executorch": _INSTALL, "torch": _INSTALL}
FILE = "model.pte"
LEAST, MOST = 2, 64  # tokens a step; one alone would be traced as a graph of its own
_SAMPLES = 2  # texts, of 256 tokens, that are read for the ranges of activations
LARGEST = (1 << 31) - (1 << 20)  # bytes of a flatbuffer


def refuse(pack: Pack) -> None:
    """Raise UnsupportedModelError where the program would be larger than its format can be."""
    n_weights = sum(int(np.prod(shape)) for shape in pack.source.weights.shapes().values())
    size = n_weights * (4 if _form(pack).layers in ("fp32", "fp16") else 1)
    if size > LARGEST:
        raise UnsupportedModelError(
            f"an ExecuTorch program of this model would have {size / 1e9:.1f} GB; at most {LARGEST / 1e9:.2f} GB are "
            "written yet. Choose int4 or int8 weights, or leave out the target pte."
        )
    if pack.context < 2 * MOST:
        raise UnsupportedModelError(f"a program takes {MOST} tokens at once; its cache must hold {2 * MOST} or more.")


def write(pack: Pack, folder: Path, progress: Share) -> Written:
    """model.pte, run once against the source: a long step, narrow ones, and one after taking tokens back."""
    form = _form(pack)
    tokens, _ = pack.probe()
    with quiet():
        program = _lowered(pack, form, progress)
        (folder / FILE).write_bytes(program)
        progress(0.95)
        report = pack.compare("pte", _run(folder / FILE, tokens), None if form.layers != "fp32" else 1e-3)
    recipe = {
        "weights": f"{form.layers}{', output int8, embedding fp32' if form.layers.startswith('int') else ''}",
        "context": str(pack.context),
        "least": str(LEAST),
        "most": str(MOST),
    }
    return Written(FILE, recipe, report)


def _form(pack: Pack) -> WeightForm:
    """A GGUF file's own blocks have no place here; 8 bits keep what they hold, and 4 on another grid would not."""
    return WeightForm("int8") if pack.form is None or pack.as_is else pack.form


def _samples(pack: Pack) -> list[Tokens]:
    """Text that ranges of activations are taken from."""
    from ...runtime.text.calibration_text import calibration_samples

    return [tokens[: pack.context] for tokens in calibration_samples(pack.source.tokenizer, None)[:_SAMPLES]]


def _lowered(pack: Pack, form: WeightForm, progress: Share) -> bytes:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from .torch_module import CachedDecoder, own_copy, smooth

    quantized = form.layers in ("int8", "int4")
    model: Any = own_copy(pack.torch_model()) if quantized else pack.torch_model()
    if form.layers == "int8":  # factors on columns would widen the blocks that int4 has
        smooth(model, _samples(pack))
    if quantized:
        _quantize(model, form)
    decoder = CachedDecoder(model, pack.context).eval()
    n = torch.export.Dim("n", min=LEAST, max=MOST)
    example = (torch.zeros(1, 4, dtype=torch.int64), torch.arange(4))
    try:
        with torch.no_grad(), _without_stack_traces():
            exported = torch.export.export(decoder, example, dynamic_shapes=({1: n}, {0: n}), strict=False)
            progress(0.1)
            edge: Any = to_edge_transform_and_lower(
                exported,
                partitioner=[XnnpackDynamicallyQuantizedPartitioner() if quantized else XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            )
            progress(0.7)
            if quantized:  # what is left of them; as a second partitioner above it would trace all three times more
                edge = edge.to_backend(XnnpackPartitioner())
        progress(0.9)
        program: bytes = edge.to_executorch().buffer
    except Exception as error:  # torch.export and ExecuTorch raise whatever the operator at hand calls for
        raise EngineError(f"ExecuTorch cannot take this {pack.source.architecture}: {error}") from error
    return program


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Where every node of a graph came from, which nobody reads here, takes a sixth of the time."""
    from torch.fx import config

    before = config.do_not_emit_stack_traces
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


def _quantize(model: PreTrainedModel, form: WeightForm) -> None:
    """Linear layers with activations rounded as they come, in place; the output in 8 bits a row. The embedding stays
    in floats: ExecuTorch has no kernel for torchao's way of widening its bytes."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    int4 = form.layers == "int4"
    layers = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=getattr(torch, form.layers),
        weight_granularity=PerGroup(form.block) if int4 else PerAxis(0),
    )
    output = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    quantize_(model.base_model, layers)
    quantize_(model, output, filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and "lm_head" in name)


def _run(path: Path, tokens: Tokens) -> Floats:
    """Logits after each token, (n, vocab_size), read in several steps of which one is taken back and read again."""
    import torch
    from executorch.runtime import Runtime

    method: Any = Runtime.get().load_program(path).load_method("forward")
    ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]

    def step(start: int, end: int) -> Floats:
        found = method.execute((ids[:, start:end].contiguous(), torch.arange(start, end)))[0]
        rows: Floats = found.float().numpy().copy()
        return rows

    n = len(tokens) // 2 * 2
    first = n - 6
    logits = [step(0, first), step(first, first + 4)]
    wrong = torch.flip(ids, (1,))
    method.execute((wrong[:, first + 2 : first + 6].contiguous(), torch.arange(first + 2, first + 6)))
    logits[1] = logits[1][:2]
    logits += [step(first + 2, first + 4), step(first + 4, n)]
    return np.concatenate(logits)
