"""Imports that meet each other, are killed, or find something foreign: a bundle is whole or not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from model_files import imported

from pilotfish.backends import get
from pilotfish.runtime.errors import ModelFileError
from pilotfish.runtime.files.bundle import describe_files, open_bundle
from pilotfish.runtime.files.open_model import open_model
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

pytest.importorskip("onnxruntime")

KILLED = """
import os, sys
from pathlib import Path
from pilotfish.exporters.onnx.import_model import import_model
from pilotfish.exporters.onnx.writer import OnnxWriter
from pilotfish.runtime.files.gguf_model import GgufModel

OnnxWriter.save = lambda *a, **k: os._exit(9)  # as kill -9 between weights and graph
import_model(GgufModel(Path(sys.argv[1])))
"""
IMPORT = """
import sys
from pathlib import Path
from pilotfish.exporters.onnx.import_model import import_model
from pilotfish.runtime.files.gguf_model import GgufModel

print(import_model(GgufModel(Path(sys.argv[1]))))
"""


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    return tiny_gguf(tmp_path / "m.gguf", sizes=Sizes(layers=1))


def answers(folder: Path) -> bool:
    weights = get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)
    logits = weights.session().forward(np.arange(4), n_logits=4).logits
    weights.close()
    return bool(np.isfinite(logits).all())


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def test_threads_import_at_once(gguf: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(imported(gguf))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert answers(found[0]) and leftovers(found[0]) == []


def test_processes_import_at_once(gguf: Path) -> None:
    command = [sys.executable, "-c", IMPORT, str(gguf)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=1200)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1]
    assert answers(Path(said[0])) and leftovers(Path(said[0])) == []


def test_a_killed_import_is_not_taken_for_a_bundle(gguf: Path, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(gguf)], timeout=1200)
    assert killed.returncode == 9
    assert not [path for path in (tmp_path / "cache" / "bundles").iterdir() if not path.name.startswith(".")]
    folder = imported(gguf)
    assert answers(folder)


def test_a_graph_of_another_kind_is_refused(gguf: Path) -> None:
    """Sound by its digests, and still not a decoder."""
    import onnx

    folder = imported(gguf)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("hidden", onnx.TensorProto.FLOAT, None))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "pilotfish.json").read_text())
    manifest["files"] = {name: fact.model_dump() for name, fact in describe_files(folder).items()}
    (folder / "pilotfish.json").write_text(json.dumps(manifest))
    assert open_bundle(folder)
    with pytest.raises(ModelFileError, match=r"has no .*logits"):
        get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)


def test_a_graph_that_is_none_is_refused(gguf: Path) -> None:
    folder = imported(gguf)
    (folder / "model.onnx").write_bytes(b"not a graph")
    manifest = json.loads((folder / "pilotfish.json").read_text())
    manifest["files"] = {name: fact.model_dump() for name, fact in describe_files(folder).items()}
    (folder / "pilotfish.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match=r"cannot open .*model\.onnx"):
        get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)


@pytest.mark.parametrize("left", ["no manifest", "a file"])
def test_what_is_no_bundle_in_the_cache_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    gguf = tiny_gguf(tmp_path / "m.gguf", sizes=Sizes(layers=1))
    folder = imported(gguf)
    if left == "a file":
        shutil.rmtree(folder)
        folder.write_bytes(b"")
    else:
        (folder / "pilotfish.json").unlink()
    assert imported(gguf) == folder and (folder / "pilotfish.json").is_file()
