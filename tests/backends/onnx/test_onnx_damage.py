"""Damaged ONNX bundles: one clear error in this process, whatever the bytes; never a crash of ONNX Runtime's.

A worker process opens and runs the mutants, so that a crash would be seen as one. Manifests are written anew for
each, so that digests match and ONNX Runtime sees the damage.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from model_files import imported

from pilotfish import load
from pilotfish.backends import get
from pilotfish.runtime.errors import ModelFileError, PilotfishError
from pilotfish.runtime.files.bundle import describe_files, open_bundle, write_manifest
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

MODEL, DATA, TOKENIZER = "model.onnx", "model.onnx.data", "tokenizer.json"
N_MUTANTS = 150  # of each kind
NUMBERS = (-1, 0, 1, 2, 3, 7, 4096, 2**20, 2**31, 2**40, 2**62)
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

pytestmark = pytest.mark.usefixtures("module_cache")


def opened(folder: Path) -> Weights:
    return get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)


def sign(folder: Path) -> None:
    """Make the manifest say that the files are as they are."""
    path = folder / "pilotfish.json"
    value = json.loads(path.read_text("utf-8"))
    value["files"] = {name: fact.model_dump() for name, fact in describe_files(folder).items()}
    path.write_text(json.dumps(value), "utf-8")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return imported(tiny_gguf(folder / "tiny.gguf", sizes=Sizes(layers=1)))


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "bundle"))


def cut(path: Path, n: int) -> None:
    path.write_bytes(path.read_bytes()[:n])


@pytest.mark.parametrize("name", [MODEL, DATA, "observing.onnx", TOKENIZER])
def test_damage_after_the_digest_was_remembered_is_named(bundle: Path, name: str) -> None:
    opened(bundle).close()  # every digest is known now
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(ModelFileError, match=name):
        opened(bundle)
    cut(bundle / name, len(data) // 2)
    with pytest.raises(ModelFileError, match=f"{name} has {len(data) // 2} bytes instead of {len(data)}"):
        opened(bundle)
    (bundle / name).unlink()
    with pytest.raises(ModelFileError, match=f"{name} is missing"):
        opened(bundle)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", [MODEL, DATA])
def test_truncated_behind_a_manifest_that_agrees(
    bundle: Path, name: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    size = (bundle / name).stat().st_size
    cut(bundle / name, int(size * share))
    sign(bundle)
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        opened(bundle)
    assert capfd.readouterr() == ("", "")  # the error says it, and nothing else does


def test_missing_behind_a_manifest_that_agrees(bundle: Path) -> None:
    (bundle / DATA).unlink()
    sign(bundle)
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        opened(bundle)


@pytest.mark.parametrize("content", [b"", b"{}", b"nonsense", b'{"model": {"type": "BPE"}}', b"\xff\xfe\x00"])
def test_a_damaged_tokenizer_behind_a_manifest_that_agrees(bundle: Path, content: bytes) -> None:
    (bundle / TOKENIZER).write_bytes(content)
    sign(bundle)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load(bundle, engine="onnx")


@pytest.mark.parametrize("place", ["outside", "absolute", "beyond", "huge", "negative", "another file"])
def test_weights_that_lie_elsewhere_are_refused(bundle: Path, tmp_path: Path, place: str) -> None:
    """A graph names the file its weights lie in: a foreign one must not read what is outside of its bundle."""
    import onnx

    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(1 << 20))
    graph = onnx.load(str(bundle / MODEL), load_external_data=False)
    tensor = next(t for t in graph.graph.initializer if t.external_data)
    facts = {entry.key: entry for entry in tensor.external_data}
    match place:
        case "outside":
            facts["location"].value = "../secret.bin"
        case "absolute":
            facts["location"].value = str(secret)
        case "another file":
            facts["location"].value = TOKENIZER
            facts["offset"].value = "1000000000"
        case "beyond":
            facts["offset"].value = str((bundle / DATA).stat().st_size)
        case "huge":
            facts["offset"].value = str(2**62)
        case _:
            facts["offset"].value = "-4096"
    (bundle / MODEL).write_bytes(graph.SerializeToString())
    sign(bundle)
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        opened(bundle)


def mutants(original: bytes, seed: int, n: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for i in range(n):
        data, at = bytearray(original), int(rng.integers(0, len(original) - 60))
        match i % 5:
            case 0:
                data[at] = int(rng.integers(0, 256))
            case 1:
                del data[at : at + int(rng.integers(1, 20))]
            case 2:
                data[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
            case 3:
                start = int(rng.integers(0, len(data) - 60))
                data[at : at + 30] = data[start : start + 30]
            case _:  # lengths and numbers are varints, of up to ten such bytes
                data[at : at + 3] = b"\xff\xff\x7f"
        yield bytes(data)


def graphs(original: bytes, seed: int, n: int) -> Iterator[bytes]:
    """Sound protobuf, wrong graphs: shapes, types, attributes, inputs of nodes and places of weights."""
    import onnx

    rng = np.random.default_rng(seed)
    for i in range(n):
        model = onnx.load_model_from_string(original)
        graph, number = model.graph, int(NUMBERS[rng.integers(len(NUMBERS))])
        value = [*graph.input, *graph.output][rng.integers(len(graph.input) + len(graph.output))].type.tensor_type
        weight = graph.initializer[int(rng.integers(len(graph.initializer)))]
        node = graph.node[int(rng.integers(len(graph.node)))]
        match i % 7:
            case 0:
                value.elem_type = int(rng.integers(1, 17))
            case 1:
                del value.shape.dim[:1]
            case 2:
                for dim in value.shape.dim[-1:]:
                    dim.dim_value = number
            case 3:
                weight.dims[:] = [*weight.dims[:-1], number]
            case 4:
                weight.data_type = int(rng.integers(1, 24))
            case 5:
                for attribute in node.attribute[:1]:
                    attribute.i = number
            case _:
                node.input[int(rng.integers(len(node.input)))] = weight.name
        for place in weight.external_data if i % 4 == 3 else ():
            place.value = place.value if place.key == "location" else str(number)
        yield model.SerializeToString()


def run_mutants(folder: Path, n: int) -> Counter[str]:
    """How n mutants of each kind fared, by the class of their error; another class than ours ends it."""
    found: Counter[str] = Counter()
    original, manifest = (folder / MODEL).read_bytes(), open_bundle(folder).manifest
    for data in itertools.chain(mutants(original, 0, n), graphs(original, 0, n)):
        (folder / MODEL).write_bytes(data)
        write_manifest(folder, manifest.model_copy(update={"files": describe_files(folder)}))
        try:
            weights = opened(folder)
            session = weights.session(64)
            session.forward(np.arange(5), n_logits=2)
            session.forward(np.arange(1), n_logits=1)
            weights.close()
        except PilotfishError as error:
            found[type(error).__name__] += 1
        else:
            found["sound"] += 1
    return found


def test_mutated_graphs_end_in_an_error_of_ours(bundle: Path) -> None:
    command = [sys.executable, __file__, str(bundle), str(N_MUTANTS)]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2] / "helpers"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2400, env=environment)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    found = json.loads(done.stdout)
    assert sum(found.values()) == 2 * N_MUTANTS and found["ModelFileError"] > N_MUTANTS // 2, found


if __name__ == "__main__":
    print(json.dumps(run_mutants(Path(sys.argv[1]), int(sys.argv[2]))))
