"""Layers fitted to a text: nearer to their source than rounded ones as far as that text goes, and always the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_families import VOCAB_SIZE, tiny

from pilotfish.exporters.quantize.weight_form import WeightForm
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats

torch = pytest.importorskip("torch", reason="exporting needs torch")

from pilotfish.exporters.quantize.blocks import Blocks  # noqa: E402
from pilotfish.exporters.quantize.nearest import quantize  # noqa: E402
from pilotfish.exporters.torch_to_onnx.gptq import curvature, fit, fit_layers  # noqa: E402
from pilotfish.exporters.torch_to_onnx.initializers import Matrix  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORM = WeightForm("int4")
SAMPLES = [np.random.default_rng(seed).integers(3, VOCAB_SIZE, 64) for seed in range(16)]


def inputs(n: int, m: int) -> torch.Tensor:
    """Rows whose columns go together and differ in size, as hidden states do; one is always zero."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, m // 4, generator=draw) @ torch.randn(m // 4, m, generator=draw)
    x = (x + 0.3 * torch.randn(n, m, generator=draw)) * torch.rand(m, generator=draw).mul(3).exp()
    x[:, 5] = 0.0
    return x


def off(x: torch.Tensor, weight: torch.Tensor, made: Blocks) -> float:
    error = x @ (weight - torch.from_numpy(made.dequantized())).T
    return float(error.norm() / (x @ weight.T).norm())


@pytest.mark.parametrize(("block", "symmetric", "m"), [(32, False, 192), (32, True, 192), (64, False, 320)])
def test_errors_make_each_other_good(block: int, symmetric: bool, m: int) -> None:
    x, weight = inputs(512, m), torch.randn(48, m, generator=torch.Generator().manual_seed(1)) * 0.05
    kept = weight.clone()
    made = fit(weight, *curvature(x), Matrix((weight,), "int4", block, symmetric))
    assert made.codes.shape == (48, m // block, block) and made.codes.max() <= 15
    assert torch.equal(weight, kept)
    plain = quantize(weight.numpy(), bits=4, block=block, symmetric=symmetric)
    assert off(x, weight, made) < 0.6 * off(x, weight, plain)
    assert made.loss > plain.loss  # what is asked for is not the nearest weight
    again = fit(weight, *curvature(x), Matrix((weight,), "int4", block, symmetric))
    assert np.array_equal(made.codes, again.codes) and np.array_equal(made.scale, again.scale)


def with_weights(model: PreTrainedModel, blocks: dict[str, Blocks]) -> PreTrainedModel:
    for name, made in blocks.items():
        model.get_submodule(name).weight.data = torch.from_numpy(made.dequantized())
    return model


def logits(model: PreTrainedModel) -> Floats:
    with torch.no_grad():
        found: Floats = model(torch.from_numpy(np.stack(SAMPLES))).logits.numpy()
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "phi3"])
def test_a_fitted_model_is_nearer_to_its_source(family: str) -> None:
    model, heard = tiny(family), list[float]()
    whole = logits(model)
    fitted = fit_layers(model, FORM, SAMPLES, heard.append)
    assert np.array_equal(logits(model), whole)  # nothing was changed
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    assert set(fitted) == linear and heard[-1] == 1.0 and len(heard) == len(linear)
    rounded = {
        n: quantize(model.get_submodule(n).weight.detach().numpy(), bits=4, block=32, symmetric=False) for n in linear
    }
    ours, plain = (np.square(logits(with_weights(tiny(family), b)) - whole).mean() for b in (fitted, rounded))
    assert ours < plain


def test_what_was_fitted_is_what_is_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    from pilotfish.backends import get
    from pilotfish.exporters.torch_to_onnx.decoder import export_onnx
    from pilotfish.runtime.files.bundle import Manifest, Source, describe_files, write_manifest

    form = WeightForm("int4", embedding="fp32", output="fp32")
    recipe = export_onnx(tiny("llama"), tmp_path, form, activations="f32", samples=SAMPLES)
    assert (recipe["data_aware"], recipe["calibration_tokens"]) == ("gptq", "1024")
    manifest = Manifest(
        model_id="tiny",
        architecture="llama",
        context_length=256,
        source=Source(name="tiny", sha256="0" * 64, format="huggingface"),
        files=describe_files(tmp_path),
        formats={"onnx": "model.onnx"},
        recipe=recipe,
    )
    write_manifest(tmp_path, manifest)
    weights = get("onnx").open(open_model(tmp_path), device=None, threads=2, kv_dtype=None)
    ours = weights.session(64).forward(SAMPLES[0], n_logits=64).logits.copy()
    weights.close()
    model = tiny("llama")
    expected = logits(with_weights(model, fit_layers(model, FORM, SAMPLES)))[0]
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
