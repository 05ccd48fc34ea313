"""transformers models as OpenVINO bundles: every family and form, against the same model in torch."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiers import quick
from tiny_families import VOCAB_SIZE, families_of, tiny
from torch_answers import WINDOWS, MadeOnce, check_chunks_and_rollback, distance, logits_in_torch, seal, text

from pilotfish.backends import get
from pilotfish.exporters.openvino.compress import Compression
from pilotfish.exporters.openvino.decoder import compress_openvino, trace_openvino
from pilotfish.exporters.openvino.matrices import Matrix, matrices, own_grid, quantize_rows
from pilotfish.exporters.parity.evaluation import TEXTS
from pilotfish.exporters.quantize.weight_form import WeightForm
from pilotfish.runtime.errors import AbilityError, EngineError, OptionError, UnsupportedModelError
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.runtime.files.gguf_file import read_gguf
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats, Tokens, Weights
from pilotfish.runtime.text.calibration_text import TEXT, calibration_samples
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf
from pilotfish.testing import CHECKS, Subject
from pilotfish.testing.tiny_models import tiny_gguf
from pilotfish.verifying.cache_types import CacheLoss, cache_hint, measure_cache_types

torch = pytest.importorskip("torch", reason="exporting needs torch")
openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("nncf", reason="exporting to OpenVINO needs nncf")
pytest.importorskip("optimum.intel", reason="exporting to OpenVINO needs optimum-intel")

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.usefixtures("module_cache")
Exported = Callable[..., Path]
EXACT = {"dynamic_quantization": 0}
FORMS = {"fp32": WeightForm("fp32"), "int8": WeightForm("int8"), "int4": WeightForm("int4")}
FROM_SOURCE = {"fp32": 1e-5, "int8": 0.1, "int4": 0.7}  # root mean square, of the logits'; random models forgive little
SAMPLES = [np.random.default_rng(seed).integers(3, VOCAB_SIZE, 64) for seed in range(6)]
FORMATS = {"openvino": "openvino_model.xml"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Bundles by family and form, each made once."""
    return MadeOnce(
        tmp_path_factory.mktemp, FORMATS, lambda model, folder, form: export_openvino(model, folder, FORMS[form])
    )


def export_openvino(
    model: PreTrainedModel,
    folder: Path,
    form: WeightForm,
    *,
    data_aware: Collection[Any] = (),
    samples: Sequence[Tokens] = (),
    ratio: float = 1.0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, str]:
    wanted = Compression(form, frozenset(data_aware), tuple(samples), ratio)
    return trace_openvino(model, folder, wanted) | compress_openvino(folder, wanted, progress)


def opened(folder: Path, kv_dtype: str | None = "f32", options: dict[str, object] = EXACT) -> Weights:
    return get("openvino").open(open_model(folder), device=None, threads=2, kv_dtype=kv_dtype, options=options)


def spread(ours: Floats, theirs: Floats) -> float:
    return float(np.sqrt(np.square(ours - theirs).mean() / np.square(theirs).mean()))


def graph_of(folder: Path) -> Any:
    return openvino.Core().read_model(folder / "openvino_model.xml")


def as_stored(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The torch model with the weights that the IR holds."""
    modules = dict(model.named_modules())
    found = matrices(graph_of(folder))
    for matrix in (*found.layers, found.embedding, found.output):
        module = modules[matrix.name.split("/")[0].removeprefix("__module.")]
        module.weight.data = torch.from_numpy(decompressed(matrix))  # type: ignore[assignment]
    return model


def decompressed(matrix: Matrix) -> Floats:
    from openvino import opset13 as op

    made = openvino.Model([op.result(matrix.node.input_value(matrix.port))], [], "weights")
    found: Floats = openvino.Core().compile_model(made, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})[0].copy()
    return found


FAMILIES = families_of("openvino")
CELLS = [(family, form) for family in FAMILIES for form in FORMS]
BY_DEFAULT = [
    ("gemma3_text", "fp32"),
    ("gemma3_text", "int4"),
    ("llama", "int4"),
    ("phi3", "int8"),
    ("mistral", "fp32"),
    ("qwen2", "int8"),
    ("qwen3", "int4"),
    ("smollm3", "fp32"),
]


@pytest.mark.parametrize(
    ("family", "form"), [pytest.param(*c, marks=() if c in BY_DEFAULT else pytest.mark.slow) for c in CELLS]
)
def test_a_family_is_computed_as_transformers_does(exported: Exported, family: str, form: str) -> None:
    folder, tokens = exported(family, form), text()
    weights = opened(folder)
    session = weights.session()
    ours = session.forward(tokens, n_logits=len(tokens)).logits.copy()
    assert distance(ours, logits_in_torch(as_stored(folder, tiny(family)), tokens)) < 1e-4
    assert spread(ours, logits_in_torch(tiny(family), tokens)) < FROM_SOURCE[form]
    stored = {matrix.stored for matrix in matrices(graph_of(folder)).layers}
    assert stored == {form}
    weights.close()


@pytest.mark.parametrize("family", quick(FAMILIES, "gemma3_text", "mistral"))
def test_chunks_and_rollback(exported: Exported, family: str) -> None:
    weights = opened(exported(family, "fp32"))
    check_chunks_and_rollback(weights, tiny(family), 1e-4)
    weights.close()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family in WINDOWS])
def test_what_a_sliding_window_rules_out(exported: Exported, family: str) -> None:
    weights, window, tree = opened(exported(family, "fp32")), WINDOWS[family], np.array([0, 0, 0, 1])
    session = weights.session()
    session.forward(text(window - 2), n_logits=0)
    assert not {"tree", "evict_tokens"} & session.abilities
    with pytest.raises(AbilityError, match=rf"sliding window of {window}.*onnx engine.*max_context={window}"):
        session.forward(text(4), n_logits=4, parents=tree)
    with pytest.raises(AbilityError, match=r"eviction.*onnx engine"):
        session.keep(np.arange(2))
    assert len(session.positions) == window - 2
    small = weights.session(window)
    assert "tree" in small.abilities and "evict_tokens" not in small.abilities
    before = text(window - 4)
    small.forward(before, n_logits=0)
    ours = small.forward(text(4, seed=3), n_logits=4, parents=tree).logits
    for path in ([0, 1, 3], [0, 2]):
        theirs = logits_in_torch(tiny(family), np.concatenate([before, text(4, seed=3)[path]]))
        assert distance(ours[path], theirs[len(before) :]) < 1e-4
    weights.close()


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    model = tiny("mistral", sliding_window=256)
    seal(tmp_path, model, FORMATS, export_openvino(model, tmp_path, FORMS["fp32"]))
    weights = opened(tmp_path)
    assert {"tree", "evict_tokens"} <= weights.session().abilities
    weights.close()


def test_attention_is_observed_within_the_window(exported: Exported) -> None:
    weights, tokens = opened(exported("gemma3_text", "fp32")), text(20)
    session = weights.session()
    session.forward(tokens[:12], n_logits=0)
    found = session.forward(tokens[12:], n_logits=0, observe=frozenset({"attention"})).attention
    with torch.no_grad():
        theirs = tiny("gemma3_text")(torch.from_numpy(tokens)[None], output_attentions=True).attentions
    assert found is not None
    for ours, layer in zip(found, theirs, strict=True):
        assert np.abs(ours - layer[0, :, 12:].numpy()).max() < 1e-5
    weights.close()


def test_a_state_with_gaps_is_refused(exported: Exported) -> None:
    """No session over such a model makes one: it comes from elsewhere."""
    from pilotfish.backends.common.saved_cache import pack

    weights = opened(exported("gemma3_text", "fp32"))
    session, other = weights.session(), weights.session()
    session.forward(text(5), n_logits=0)
    pool = weights.model.pool  # type: ignore[attr-defined]
    entries = [np.zeros((2, x.shape[1], x.shape[3]), x.dtype) for x in pool.arrays]
    with pytest.raises(OptionError, match="gaps"):
        other.restore(pack(weights.info, np.array([0, 7]), entries))
    with pytest.raises(OptionError, match="damaged"):
        other.restore(pack(weights.info, np.arange(2), [x[:, :, :-1] for x in entries]))
    other.restore(session.save())
    assert len(other.positions) == 5
    weights.close()


CASES = {
    "llama fp32": ("f32", EXACT, 2e-5),
    "gemma3_text fp32": ("f32", EXACT, 2e-5),
    "llama int4": (None, {}, 0.05),
    "gemma3_text int4": (None, {}, 0.05),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", quick(CASES, "llama int4", "gemma3_text fp32"))
def test_contract(exported: Exported, case: str, check: Callable[[Subject], None]) -> None:
    kv_dtype, options, noise = CASES[case]
    folder = exported(*case.split())
    check(Subject(partial(opened, folder, kv_dtype, options), noise, ((1,), (*range(2, 18), 32, 33))))


def test_each_part_is_stored_as_asked(tmp_path: Path) -> None:
    def parts(name: str, family: str, form: WeightForm) -> tuple[str, str, str, bool]:
        (tmp_path / name).mkdir()
        recipe = export_openvino(tiny(family), tmp_path / name, form)
        found = matrices(graph_of(tmp_path / name))
        assert {m.stored for m in found.layers} == {form.layers} == {recipe["weights"]}
        return found.layers[0].stored, found.embedding.stored, found.output.stored, found.tied

    assert parts("tied", "qwen2", WeightForm("int4")) == ("int4", "int8", "int8", True)
    assert parts("apart", "qwen2", WeightForm("int4", embedding="fp16", output="int4")) == (
        "int4",
        "fp16",
        "int4",
        False,
    )
    assert parts("half", "qwen2", WeightForm("fp16")) == ("fp16", "fp16", "fp16", True)
    assert parts("mixed", "llama", WeightForm("fp32", output="int8", symmetric=True)) == ("fp32", "fp32", "int8", False)
    sizes = {path.name: (path / "openvino_model.bin").stat().st_size for path in tmp_path.iterdir()}
    assert sizes["tied"] < sizes["apart"] < sizes["half"]


def test_a_share_of_the_layers_as_int8(tmp_path: Path) -> None:
    recipe = export_openvino(tiny("llama"), tmp_path, WeightForm("int4", symmetric=True), ratio=0.6)
    stored = [matrix.stored for matrix in matrices(graph_of(tmp_path)).layers]
    assert {"int4", "int8"} == set(stored)
    assert f"{stored.count('int4')} layers int4, {stored.count('int8')} layers int8" in recipe["matrices"]
    assert (recipe["ratio"], recipe["zero_points"]) == ("0.6", "none")


@pytest.mark.parametrize(
    "methods",
    quick([("awq",), ("scale",), ("gptq",), ("awq", "scale"), ("awq", "scale", "gptq")], ("awq", "scale", "gptq")),
    ids=str,
)
def test_data_aware_methods_change_the_weights(exported: Exported, tmp_path: Path, methods: Any) -> None:
    heard: list[float] = []
    recipe = export_openvino(
        tiny("qwen3"),
        tmp_path,
        FORMS["int4"],
        data_aware=methods,
        samples=SAMPLES,
        progress=heard.append,
    )
    assert recipe["data_aware"] == ", ".join(sorted(methods)) and recipe["calibration_tokens"] == "384"
    assert heard[0] == 0.0 and heard[-1] == 1.0 and len(heard) > len(SAMPLES)
    seal(tmp_path, tiny("qwen3"), FORMATS, recipe)
    plain, fitted = (
        opened(folder).session().forward(text(), n_logits=70).logits.copy()
        for folder in (exported("qwen3", "int4"), tmp_path)
    )
    assert distance(plain, fitted) > 1e-3  # something was done
    assert spread(fitted, logits_in_torch(tiny("qwen3"), text())) < FROM_SOURCE["int4"]


@pytest.mark.parametrize(
    ("form", "more", "message"),
    [
        (WeightForm("int8"), {"data_aware": ["awq"], "samples": SAMPLES}, "awq is for int4 layers only, not for int8"),
        (WeightForm("fp32"), {"ratio": 0.5}, "ratio=0.5 is for int4 layers only"),
        (WeightForm("int4"), {"ratio": 1.5}, "0 to 1"),
        (WeightForm("int4"), {"data_aware": ["awq"]}, "needs text to look at"),
        (WeightForm("int4"), {"data_aware": ["magic"], "samples": SAMPLES}, "'magic' is no data-aware method"),
        (WeightForm("int4", block=128), {}, "blocks of 128 do not divide the 64 columns of .*choose block=64"),
        (WeightForm("fp16", output="int8", block=128), {}, "64 columns of lm_head"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_begun(
    tmp_path: Path, form: WeightForm, more: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfish.exporters.openvino.decoder._trace", None)
    with pytest.raises(OptionError, match=message):
        export_openvino(tiny("llama"), tmp_path, form, **more)
    assert not list(tmp_path.iterdir())


def test_a_family_that_is_not_known_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=32, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(UnsupportedModelError, match="'gpt2' cannot be exported to OpenVINO: not yet"):
        export_openvino(model, tmp_path, FORMS["fp32"])


def test_weights_left_as_they_were_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nncf

    monkeypatch.setattr(nncf, "compress_weights", lambda model, **settings: model)
    with pytest.raises(EngineError, match="left 21 of the matrices of layers as fp32 where int4 was asked"):
        export_openvino(tiny("llama"), tmp_path, FORMS["int4"])
    assert not list(tmp_path.iterdir())


def test_an_error_of_nncf_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nncf

    def fail(model: Any, **settings: Any) -> Any:
        raise nncf.ValidationError("no such thing")

    monkeypatch.setattr(nncf, "compress_weights", fail)
    with pytest.raises(EngineError, match="could not compress the layers: no such thing"):
        export_openvino(tiny("llama"), tmp_path, FORMS["int4"])
    assert not list(tmp_path.iterdir())


def test_an_export_leaves_everything_else_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    model = tiny("gemma3_text")
    before, settings = logits_in_torch(model, text()), model.config.to_dict()
    export_openvino(model, tmp_path, FORMS["int4"])
    assert np.array_equal(logits_in_torch(model, text()), before)
    assert model.config.to_dict() == settings and model.config._attn_implementation == "eager"
    assert "HF_HUB_OFFLINE" not in os.environ and os.environ["TRANSFORMERS_OFFLINE"] == "0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["openvino_model.bin", "openvino_model.xml"]
    assert capfd.readouterr() == ("", "")


def test_compressing_needs_the_model_no_more(tmp_path: Path) -> None:
    wanted, model = Compression(FORMS["int8"]), tiny("llama")
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    trace_openvino(model, tmp_path, wanted)
    del model
    gc.collect()
    assert not any(weight() is not None for weight in weights)
    compress_openvino(tmp_path, wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["openvino_model.bin", "openvino_model.xml"]


def test_nothing_that_counts_its_users_is_loaded() -> None:
    code = (
        "import sys\n"
        "from pilotfish.exporters.openvino import decoder as hf_openvino\n"
        "from pilotfish.exporters.openvino import compress as openvino_compress\n"
        "from pilotfish.backends import get\n"
        "get('openvino').version()\n"
        "openvino_compress._nncf()\n"
        "print('openvino_telemetry' in sys.modules, 'openvino' in sys.modules, 'nncf' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True", "True"]


@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_in_blocks(symmetric: bool) -> None:
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    x[1] = 0.0
    x[2] = np.abs(x[2]) + 3.0  # no zero among them
    x[3] *= 1e-7
    values, scales, zeros = quantize_rows(x, 32, symmetric)
    assert values.shape == (5, 2, 32) and scales.shape == zeros.shape == (5, 2, 1)
    back = ((values.astype(np.float32) - zeros) * scales.astype(np.float32)).reshape(x.shape)
    steps = np.repeat(scales.astype(np.float32), 32).reshape(x.shape)
    assert (np.abs(back - x) <= 0.65 * steps).all()  # a half, and what an f16 scale leaves out at the ends
    assert (back[1] == 0.0).all()
    grid = np.round(np.random.default_rng(1).uniform(-8, 7, (3, 32))).astype(np.float32)
    grid[:, 0], grid[:, 1] = -8, 7
    if not symmetric:  # what had four bits keeps them
        values, scales, zeros = quantize_rows(grid, 32, symmetric)
        assert (
            np.abs((values.astype(np.float32) - zeros) * scales.astype(np.float32) - grid.reshape(3, 1, 32)).max()
            < 0.01
        )


def test_weights_of_four_bits_keep_them(tmp_path: Path) -> None:
    """As they come out of a GGUF file: a scale and a minimum for every 32 of a row."""
    model, rng = tiny("qwen2"), np.random.default_rng(0)
    gates = [layer.mlp.gate_proj for layer in model.model.layers]  # type: ignore[union-attr]
    for module in gates[:2]:
        q = rng.integers(0, 16, (128, 2, 32))
        q[..., 0], q[..., 1] = 1, 14  # not every block uses its grid to the ends
        scale, low = rng.uniform(0.01, 0.03, (128, 2, 1)), rng.uniform(-0.3, -0.1, (128, 2, 1))
        module.weight.data = torch.from_numpy(
            (q * scale.astype(np.float16) + low.astype(np.float16)).reshape(128, 64)
        ).float()
    source = {m: g.weight.numpy().copy() for m, g in enumerate(gates)}
    recipe = export_openvino(model, tmp_path, FORMS["int4"])
    assert recipe["matrices"].endswith("21 layers int4, 1 output int8, 2 of them on a grid of their own")
    found = {m.name.split(".")[3]: m for m in matrices(graph_of(tmp_path)).layers if "gate_proj" in m.name}
    errors = [np.abs(decompressed(found[str(i)]) - source[i]).max() for i in range(3)]
    assert max(errors[:2]) < 5e-4 and errors[2] > 5e-3
    seal(tmp_path, model, FORMATS, recipe)
    weights = opened(tmp_path)
    ours = weights.session().forward(text(), n_logits=70).logits
    assert distance(ours, logits_in_torch(as_stored(tmp_path, model), text())) < 1e-4
    weights.close()
    assert own_grid(rng.standard_normal((4, 32)).astype(np.float32), 32) is None
    assert own_grid(np.zeros((4, 32), dtype=np.float32), 32) is not None


@pytest.mark.parametrize("value", [0.37, -0.37, 6e-5, 3e4])
def test_a_block_of_one_value_is_on_a_grid(value: float) -> None:
    """K-quants have such blocks: a scale of zero and a minimum."""
    matrix = np.random.default_rng(0).integers(0, 16, (4, 64)).astype(np.float32)
    matrix[1, 32:] = value
    found = own_grid(matrix, 32)
    assert found is not None
    values, scales, zeros = (part.astype(np.float32) for part in found)
    assert np.isfinite(scales).all() and np.isfinite(zeros).all()
    assert np.abs((values - zeros) * scales - matrix.reshape(4, 2, 32)).max() <= 1e-3 * abs(value) + 1e-3


def test_a_zero_point_that_f16_has_no_digits_for_is_no_grid() -> None:
    block = 100.0 + 1e-3 * np.arange(32, dtype=np.float32) % 0.016
    assert own_grid(block[None], 32) is None


def test_a_calibration_text(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_gguf(read_gguf(tiny_gguf(tmp_path / "tiny.gguf")).metadata)
    own = calibration_samples(tokenizer, length=100)
    assert sum(map(len, own)) > 1000 and max(map(len, own)) == 100 and min(map(len, own)) >= 16
    assert not any(line in TEXT for part in TEXTS.values() for line in part.splitlines() if len(line) > 30)
    (tmp_path / "text.txt").write_text("The pilot fish swims ahead of the shark. " * 20, "utf-8")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff" * 50)
    theirs = calibration_samples(tokenizer, tmp_path / "text.txt")
    assert np.array_equal(
        np.concatenate(theirs)[:50], tokenizer.encode((tmp_path / "text.txt").read_text("utf-8"))[:50]
    )
    for wrong in (tmp_path / "bytes.txt", tmp_path / "missing.txt", "short"):
        with pytest.raises(OptionError, match="calibration text"):
            calibration_samples(tokenizer, wrong)


def test_what_a_smaller_cache_costs(exported: Exported) -> None:
    losses = measure_cache_types(open_bundle(exported("llama", "fp32")), [text(60), text(40, seed=2)], threads=2)
    assert [loss.kv_dtype for loss in losses] == ["u8", "u8/u4", "u4"]
    assert 0.0 < losses[0].kl < losses[1].kl < losses[2].kl
    assert losses[0].bytes_per_token > losses[1].bytes_per_token > losses[2].bytes_per_token
    assert cache_hint(losses, limit=1e9) == "u4" and cache_hint(losses, limit=0.0) is None
    assert cache_hint([CacheLoss("u8", 0.001, 1.0, 60.0), CacheLoss("u4", 0.5, 0.8, 30.0)]) == "u8"


def test_activations_are_as_the_recipe_says(tmp_path: Path) -> None:
    model = tiny("llama")
    recipe = export_openvino(model, tmp_path, FORMS["int8"])
    seal(tmp_path, model, FORMATS, recipe | {"activations": "f32"})
    assert "-dq0" in opened(tmp_path, None, {}).info.settings
    assert "-dq16" in opened(tmp_path, None, {"dynamic_quantization": 16}).info.settings
    seal(tmp_path, model, FORMATS, recipe | {"activations": "int8"})
    assert "-dq32" in opened(tmp_path, None, {}).info.settings
