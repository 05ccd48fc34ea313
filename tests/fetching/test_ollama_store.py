"""Models that Ollama has fetched, read where they lie: made here as Ollama lays them out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import pilotfish
from pilotfish.fetching.ollama_store import ollama_model
from pilotfish.loading.opening import resolve
from pilotfish.runtime.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from pilotfish.testing.tiny_models import tiny_gguf

KIND = "application/vnd.ollama.image."


def add(store: Path, name: str, **layers: bytes) -> dict[str, Path]:
    """A model in the store, by HOST/NAMESPACE/MODEL/TAG; its blobs by kind."""
    blobs, listed = {}, []
    for kind, content in layers.items():
        digest = hashlib.sha256(content).hexdigest()
        blobs[kind] = store / "blobs" / f"sha256-{digest}"
        blobs[kind].parent.mkdir(parents=True, exist_ok=True)
        blobs[kind].write_bytes(content)
        listed.append({"mediaType": KIND + kind, "digest": f"sha256:{digest}", "size": len(content)})
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": listed}))
    return blobs


@pytest.fixture
def gguf(tmp_path: Path) -> bytes:
    return tiny_gguf(tmp_path / "tiny.gguf", seed=10).read_bytes()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf: bytes) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    add(tmp_path / "store", "host/library/tiny/latest", model=gguf, license=b"free", template=b"{{ .Prompt }}")
    return tmp_path / "store"


def test_a_blob_answers(store: Path) -> None:
    with pilotfish.load("ollama:tiny", "reference", threads=1, max_context=128) as model:
        assert len(model.generate("hello", max_new_tokens=4).token_ids) == 4


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "library/tiny", "library/tiny:latest", "host/library/tiny"])
def test_every_name_that_ollama_knows_it_by(store: Path, name: str, gguf: bytes) -> None:
    assert resolve(f"ollama:{name}").path.read_bytes() == gguf


def test_tags_and_namespaces_are_apart(store: Path, gguf: bytes) -> None:
    one = add(store, "host/library/tiny/1b", model=gguf + b"1")["model"]
    other = add(store, "other/me/tiny/latest", model=gguf + b"2")["model"]
    assert ollama_model("tiny:1b") == one
    assert ollama_model("me/tiny") == ollama_model("other/me/tiny:latest") == other


def test_what_is_not_there_is_told_with_what_is(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model 'tinny'. Did you mean ollama:tiny\? It has tiny\."):
        ollama_model("tinny")
    for odd in ("", ":", "tiny:", "../tiny", "/tiny", "tiny:../x"):
        with pytest.raises(ModelNotFoundError, match="has no model"):
            ollama_model(odd)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "nowhere"))
    with pytest.raises(ModelNotFoundError, match="nowhere; set OLLAMA_MODELS"):
        ollama_model("tiny")


def test_a_store_that_is_not_whole(store: Path, gguf: bytes) -> None:
    blob = add(store, "host/library/half/latest", model=gguf + b"3")["model"]
    blob.write_bytes(gguf[:1000])  # still downloading
    with pytest.raises(ModelFileError, match=r"not whole\. Run: ollama pull half"):
        ollama_model("half")
    for damaged in ("", "[]", "{}", '{"layers": [{"digest": 3}]}'):
        (store / "manifests" / "host/library/half/latest").write_text(damaged)
        with pytest.raises(ModelFileError, match="no manifest of Ollama"):
            ollama_model("half")


def test_what_would_answer_otherwise_is_refused(store: Path, gguf: bytes) -> None:
    add(store, "host/library/tuned/latest", model=gguf, adapter=b"GGUF")
    with pytest.raises(UnsupportedModelError, match="adapter"):
        ollama_model("tuned")
    add(store, "host/library/empty/latest", license=b"free")
    with pytest.raises(UnsupportedModelError, match="0 model files"):
        ollama_model("empty")
