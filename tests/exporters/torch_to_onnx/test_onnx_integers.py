"""Activations on scales fitted to a text: what the graph computes, that it cannot overflow, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiers import quick
from tiny_encoder_decoders import VOCAB_SIZE, save_encoder_decoder, tiny_encoder_decoder
from tiny_families import save_tiny, tiny

from pilotfish.exporters.quantize.weight_form import WeightForm, check_activations
from pilotfish.exporting.export import Job, export
from pilotfish.exporting.options import only_for
from pilotfish.runtime.errors import OptionError, UnsupportedModelError
from pilotfish.runtime.files.bundle import Manifest, open_bundle
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats
from pilotfish.runtime.profiling.calibrate import calibrate

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from pilotfish.backends import get  # noqa: E402
from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder  # noqa: E402
from pilotfish.exporters.torch_to_onnx.static_activations import INPUT_LEVELS, WEIGHT_LEVELS, InputGrid, fit_inputs  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INT8 = WeightForm("int8")
SAMPLES = [np.random.default_rng(seed).integers(3, VOCAB_SIZE, 48) for seed in range(8)]
TEXT = np.random.default_rng(99).integers(3, VOCAB_SIZE, 40)


def test_a_grid_holds_zero_and_cuts_off_what_is_rare() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for seen in (x, x.abs() + 5, -x.abs()):
        grid = InputGrid.fitted(seen)
        assert 0 <= grid.zero_point <= INPUT_LEVELS and float(grid.rounded(torch.zeros(1))) == 0.0
        assert float((grid.rounded(seen) - seen).abs().mean()) < 0.5 * grid.scale
    x[7] = 12.0  # one in 200,000: worth less than finer steps for all the others
    assert float(InputGrid.fitted(x).rounded(x[7:8], INPUT_LEVELS)) < 11.0
    x[::100] = 12.0
    assert float(InputGrid.fitted(x).rounded(x[7:8])) > 11.0
    assert InputGrid.fitted(torch.zeros(5)) == InputGrid(1.0, 0)


def logits_of(model: PreTrainedModel) -> Floats:
    """After the start token and each of the text's, about the text."""
    with torch.no_grad():
        answer = torch.from_numpy(np.r_[model.config.decoder_start_token_id, TEXT])[None]
        found: Floats = model(input_ids=torch.from_numpy(TEXT)[None], decoder_input_ids=answer).logits[0].numpy()
    return found


@contextlib.contextmanager
def rounded(model: PreTrainedModel, grids: Any) -> Iterator[None]:
    """The model with linear layers as the graph is to have them."""
    with contextlib.ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                weight, grid = module.weight, grids[module.weight.data_ptr()]
                scale = weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-20) / WEIGHT_LEVELS
                undo.callback(setattr, module, "weight", weight)
                module.weight = torch.nn.Parameter((weight.detach() / scale).round() * scale)
                hook = module.register_forward_pre_hook(lambda _, inputs, grid=grid: (grid.rounded(inputs[0]),))
                undo.callback(hook.remove)
        yield


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedModel, Manifest, Path]]:
    """By family: a model, and its bundle with everything but the token table in whole numbers; each made once."""
    form, made = replace(INT8, embedding="fp32"), {}

    def of(name: str) -> tuple[PreTrainedModel, Manifest, Path]:
        if name not in made:
            model, folder = tiny_encoder_decoder(name), tmp_path_factory.mktemp(name) / "b"
            found = export_encoder_decoder(model, folder, form, model_id=name, activations="static", samples=SAMPLES)
            made[name] = model, found, folder
        return made[name]

    return of


@pytest.mark.parametrize("name", quick(("t5", "flan", "umt5", "bart", "mbart", "m2m100", "pegasus", "marian"), "flan"))
def test_the_graph_computes_what_was_rounded(static: Any, name: str) -> None:
    model, made, folder = static(name)
    start = torch.tensor([[model.config.decoder_start_token_id]])
    exact = logits_of(model)
    assert made.recipe["activations"] == "static" and made.recipe["calibration_tokens"] == "384"
    assert np.array_equal(exact, logits_of(tiny_encoder_decoder(name)))  # the model is the same afterwards
    rows = torch.from_numpy(np.stack(SAMPLES))
    answers = torch.cat([start.expand(len(rows), 1), rows], dim=1)
    with rounded(model, fit_inputs(model, lambda: model(input_ids=rows, decoder_input_ids=answers))):
        expected = logits_of(model)
    weights = get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)
    session = weights.session()
    session.encode(TEXT)
    ours = session.forward(np.r_[int(start), TEXT], n_logits=len(TEXT) + 1).logits.copy()
    weights.close()
    lost = np.abs(expected - exact).max()  # what rounding changes
    assert lost > 0
    assert np.median(np.abs(ours - expected)) < 1e-3 * lost  # a value between two codes may fall to either


def test_rows_do_not_see_how_many_they_are_and_sums_fit(static: Any) -> None:
    folder = static("flan")[2]
    graph = onnx.load(folder / "onnx" / "decoder.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulIntegerToFloat") >= 7 and "MatMulNBits" not in kinds
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    codes = [held[node.input[1]] for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert all(2 * INPUT_LEVELS * int(np.abs(one.astype(int)).max()) < 1 << 15 for one in codes)
    weights = get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)
    by_width: dict[int, Floats] = {}
    for width in (2, 3, 8, 17, 33):
        session = weights.session()
        session.encode(TEXT)
        session.forward(np.array([0, 5, 6]), n_logits=1)
        by_width[width] = session.forward(np.resize(TEXT, width), n_logits=width).logits.copy()
        session.close()
    weights.close()
    assert all(np.array_equal(rows, by_width[33][:width]) for width, rows in by_width.items())


def test_one_row_is_apart_even_where_it_looks_alike(static: Any) -> None:
    weights = get("onnx").open(open_model(static("flan")[2]), device=None, threads=1, kv_dtype=None)
    measured = calibrate(weights.session(256))
    weights.close()
    assert weights.info.alike_from == 2 and measured.rows.classes[0] == (1,) and measured.rows.rule().minimum == 2


@pytest.mark.slow
def test_an_export_says_so_and_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "own.txt"
    text.write_text("the pilot fish follows the shark, and the shark follows nobody. " * 60)
    source = save_encoder_decoder("flan", tmp_path / "source")
    options: dict[str, Any] = {"weights": "int8", "activations": "static", "min_agreement": 0.0}
    scales = []
    for name, own in (("a", None), ("b", text)):
        export(source, tmp_path / name, calibration=own, **options)
        manifest = open_bundle(tmp_path / name).manifest
        assert manifest.recipe["activations"] == "static"
        assert manifest.reports["onnx"]["agreement"] > 0.8
        scales.append((tmp_path / name / "onnx" / "decoder.onnx").read_bytes())
    assert scales[0] != scales[1]  # another text, other scales


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "int4"}, "static activations are multiplied with int8 weights, and these are int4"),
        ({"block": 64}, "static activations go with weights of one scale a row"),
        ({"symmetric": True}, "leave --block and --symmetric out"),
        ({"to": ("openvino",)}, "--activations static is of the format onnx"),
        ({"to": ("gguf",)}, "--activations is for the formats onnx"),
        ({"activations": "int8", "calibration": "x.txt"}, "--calibration is a text for --data-aware methods and"),
        ({"calibration": "missing.txt"}, "the calibration text .*missing.txt cannot be read"),
    ],
)
def test_what_has_no_sense_is_refused_before(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = {"to": ("onnx",), "weights": "int8", "activations": "static", **changes}
    with pytest.raises(OptionError, match=said):
        export(save_encoder_decoder("flan", tmp_path / "source"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_is_beside_it_is_rounded_as_it_comes() -> None:
    job = Job("x", Path("out"), ("onnx", "openvino"), INT8, activations="static", calibration=Path("own.txt"))
    assert only_for(job, ("openvino",)).activations == "int8" and only_for(job, ("openvino",)).calibration is None
    assert only_for(job, ("onnx",)) == replace(job, to=("onnx",))


def test_an_int4_output_stays_one(tmp_path: Path) -> None:
    form = WeightForm("int8", output="int4")
    export_encoder_decoder(
        tiny_encoder_decoder("flan"), tmp_path / "b", form, model_id="x", activations="static", samples=SAMPLES
    )
    graph = onnx.load(tmp_path / "b" / "onnx" / "decoder.onnx", load_external_data=False).graph
    left = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert [node.output[0] for node in left] == ["logits"]
    assert next(one.i for one in left[0].attribute if one.name == "bits") == 4


def test_text_and_a_model_that_reads_are_needed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="need text to be fitted to"):
        export_encoder_decoder(tiny_encoder_decoder("t5"), tmp_path / "b", INT8, model_id="x", activations="static")
    with pytest.raises(UnsupportedModelError, match="this model hears"):
        export_encoder_decoder(
            tiny_encoder_decoder("whisper"), tmp_path / "b", INT8, model_id="x", activations="static", samples=SAMPLES
        )
    with pytest.raises(OptionError, match="activations cannot be 'f16'"):
        check_activations("f16", INT8, ())  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_decoders_have_them_too(tmp_path: Path) -> None:
    from pilotfish.exporters.torch_to_onnx.decoder import export_onnx

    model = tiny("llama")
    recipe = export_onnx(model, tmp_path, INT8, activations="static", samples=SAMPLES)
    assert recipe["activations"] == "static" and "data_aware" not in recipe
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.node]
    assert "MatMulIntegerToFloat" in kinds and "MatMulNBits" not in kinds
    folder = save_tiny("llama", tmp_path / "source")
    export(folder, tmp_path / "out", weights="int8", activations="static", min_agreement=0.0)
