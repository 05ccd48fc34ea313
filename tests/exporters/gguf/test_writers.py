"""When a GGUF file's own weights are taken over instead of rounded again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pilotfish.exporters.export_spec import ExportSpec
from pilotfish.exporters.gguf.format import GgufFormat
from pilotfish.exporters.gguf.stored_as import is_stored_so
from pilotfish.exporters.open_source import open_source
from pilotfish.exporters.quantize.weight_form import WeightForm
from pilotfish.exporters.torch_to_onnx.format import OnnxFormat
from pilotfish.testing.tiny_models import tiny_gguf


def like_smollm2(name: str) -> str:
    return "Q8_0" if name == "token_embd.weight" else "Q4_1"


@pytest.mark.parametrize(
    ("quant", "tied", "form", "stored"),
    [
        (like_smollm2, True, WeightForm(), True),
        (like_smollm2, True, WeightForm(symmetric=True), False),  # Q4_1 has minima
        (like_smollm2, True, WeightForm(block=64), False),
        (like_smollm2, True, WeightForm(embedding="int4"), False),
        (like_smollm2, True, WeightForm("int8"), False),
        ("Q4_1", True, WeightForm(), False),  # its embedding is not int8
        ("Q4_0", True, WeightForm(embedding="int4", output="int4", symmetric=True), True),
        ("Q8_0", False, WeightForm("int8"), True),
        ("F16", True, WeightForm("fp16"), True),
        ("F32", True, WeightForm("fp16"), False),
        ("Q5_0", True, WeightForm("int8"), False),
    ],
)
def test_a_file_is_stored_as_asked(
    tmp_path: Path, quant: str | Callable[[str], str], tied: bool, form: WeightForm, stored: bool
) -> None:
    source = open_source(tiny_gguf(tmp_path / "tiny.gguf", quant=quant, tied=tied))
    assert is_stored_so(source, form) is stored


def test_what_is_stored_so_is_taken_over_bit_for_bit(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf", quant=like_smollm2)
    source = open_source(file)
    model = source.torch_model()
    for name in ("onnx", "gguf"):
        (tmp_path / name).mkdir()
    GgufFormat().write(source, ExportSpec(), model, tmp_path / "gguf", lambda share: None)
    GgufFormat().finish(source, ExportSpec(), tmp_path / "gguf", lambda share: None)
    assert (tmp_path / "gguf" / "model.gguf").read_bytes() == file.read_bytes()
    pytest.importorskip("onnx")
    recipe = OnnxFormat().write(source, ExportSpec(), model, tmp_path / "onnx", lambda share: None)
    assert recipe["weights"] == "F32+Q4_1+Q8_0"
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {"model.onnx", "observing.onnx", "model.onnx.data"}


def test_a_kind_that_is_named_is_made(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    source = open_source(tiny_gguf(tmp_path / "tiny.gguf", quant=like_smollm2))
    spec = ExportSpec(gguf_kind="Q8_0")
    recipe = GgufFormat().write(source, spec, source.torch_model(), tmp_path, lambda share: None)
    assert recipe == {"kind": "Q8_0"}
