"""Where several texts may be given, one alone is one: its letters are not meant."""

from __future__ import annotations

from pathlib import Path

import pytest

import pilotfish
from pilotfish.exporting import export as exporting
from pilotfish.exporting.job import Job
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.several import several

BUNDLE = Path(pilotfish.__file__).parent / "apps" / "demos" / "correct"


def test_one_is_one_and_several_are_several() -> None:
    assert several("END") == ("END",) and several(7) == (7,) and several(("a", "b")) == ("a", "b")
    assert several(None) == () and several([None]) == (None,)
    assert several(one for one in ["a", 7]) == ("a", 7) and several([]) == ()


def test_a_format_alone_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Job] = []

    class Done:
        folder = tmp_path

    monkeypatch.setattr(exporting, "run", lambda job, progress: asked.append(job) or Done())
    pilotfish.export("model.gguf", tmp_path, to="openvino", data_aware="gptq")
    pilotfish.export("model.gguf", tmp_path, to=["onnx", "gguf"])
    assert [(job.to, job.data_aware) for job in asked] == [(("openvino",), ("gptq",)), (("onnx", "gguf"), ())]


def test_a_format_alone_is_verified() -> None:
    with pytest.raises(OptionError, match="holds no gguf"):
        pilotfish.verify(BUNDLE, formats="gguf")
