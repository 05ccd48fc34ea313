"""Models by their name on the hub, from a server here that answers as the hub does; the library asks it for real."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from family_files import random_family
from folders import folder_of as save_folder
from foreign_folders import optimum_folder

import pilotfish
from pilotfish.fetching.catalogue import ON_HUB
from pilotfish.fetching.hub import chosen_files, folder_files, runnable_folders, weights_and_settings
from pilotfish.fetching.reach import seconds_to_fetch
from pilotfish.runtime.errors import ModelNotFoundError, OptionError
from pilotfish.testing.tiny_models import tiny_gguf

pytest.importorskip("huggingface_hub")
pytest.importorskip("onnxruntime")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUANTS = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-f16.gguf", "README.md"]
SPLIT = ["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"]
RESOLVE = """
import sys
from pilotfish.loading.opening import resolve, source_folder
from pilotfish.runtime.errors import PilotfishError

seen = []
try:
    if sys.argv[2:] == ["source"]:
        print(source_folder(sys.argv[1]))
        sys.exit()
    print(resolve(sys.argv[1], lambda what, share: seen.append((what, share))).path)
    if len(sys.argv) > 2:
        assert [what for what, share in seen if share == 1.0] and "fetching" in seen[-1][0], seen
except PilotfishError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("held", "wanted", "chosen"),
    [
        (QUANTS, "", ["m-Q4_K_M.gguf"]),
        (QUANTS, "q8_0", ["m-Q8_0.gguf"]),
        (QUANTS, "m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        (["only.gguf", "config.json"], "", ["only.gguf"]),
        (["config.json", "model.safetensors"], "", []),
        (SPLIT, "", SPLIT),
        (["a-Q8_0.gguf", "b-Q8_0.gguf", "c-Q4_0.gguf"], "Q4_0", ["c-Q4_0.gguf"]),
    ],
)  # fmt: skip
def test_one_model_is_chosen(held: list[str], wanted: str, chosen: list[str]) -> None:
    assert chosen_files(held, wanted, "org/name") == chosen


def test_several_and_none_are_told() -> None:
    with pytest.raises(OptionError, match=r"has 2 files that fit; name one, hf:org/name:FILE, of a-Q8_0\.gguf, b-Q8_0"):
        chosen_files(["a-Q8_0.gguf", "b-Q8_0.gguf"], "", "org/name")
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file 'Q2_K'; it has m-Q4_K_M\.gguf, m-Q8_0\.gguf"):
        chosen_files(QUANTS, "Q2_K", "org/name")
    with pytest.raises(ModelNotFoundError, match="it has none"):
        chosen_files(["model.safetensors"], "Q4_0", "org/name")


def optimum_repository(place: Path) -> dict[str, bytes]:
    """What the hub's ONNX repositories hold: settings, and a folder of graphs, the weights of one of them beside it."""
    import onnx

    folder = optimum_folder(tiny_gguf(place / "m.gguf", quant="F32", seed=10), place / "f")
    (folder / "onnx").mkdir()
    graph = onnx.load(folder / "model.onnx")
    onnx.save(graph, folder / "onnx" / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    (folder / "model.onnx").rename(folder / "onnx" / "model_q4.onnx")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a hub: a GGUF file beside its README, a folder of safetensors that says nothing, one that can be
    opened, and one of an IR."""
    made = tmp_path_factory.mktemp("whole")
    whole = save_folder("qwen3", random_family("qwen3", made / "m.gguf"), made / "f")
    content = tiny_gguf(tmp_path_factory.mktemp("made") / "m.gguf", seed=10).read_bytes()
    held = {
        "org/tiny": {"m-Q4_0.gguf": content, "README.md": b"# Tiny"},
        "org/folder": {
            "config.json": b'{"model_type": "t5", "is_encoder_decoder": true}',
            "model.safetensors": bytes(16),
        },
        "org/whole": {file.name: file.read_bytes() for file in whole.iterdir()} | {"consolidated.safetensors": b"x"},
        "org/optimum": optimum_repository(tmp_path_factory.mktemp("optimum")),
        "Qwen/Qwen3-0.6B-GGUF": {"Qwen3-0.6B-Q8_0.gguf": content, "README.md": b"# Qwen3"},
        "google/flan-t5-small": {"config.json": b"{}", "model.safetensors": bytes(16), "pytorch_model.bin": b"x"},
        "org/ir": {
            "config.json": b"{}",
            "openvino_model.xml": b'<net version="11"/>',
            "openvino_model.bin": b"",
            "openvino_detokenizer.bin": b"",
            "model.safetensors": bytes(16),
        },
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"] and (name := "/".join(parts[2:4])) in held:
                files = [{"rfilename": file} for file in held[name]]
                body = json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode()
                headers = {"Content-Type": "application/json"}
            elif parts[2:3] == ["resolve"] and (file := "/".join(parts[4:])) in held.get("/".join(parts[:2]), {}):
                body = held["/".join(parts[:2])][file]
                headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def resolved(name: str, cache: Path, endpoint: str, *more: str, **environment: str) -> str:
    """What a process of its own says: the library reads its settings once, when it is imported."""
    own = {
        "HF_HOME": str(cache / "hf"),
        "HF_ENDPOINT": endpoint,
        "PILOTFISH_CACHE": str(cache / "own"),
        "NO_PROXY": "*",
    }
    for name_of_cache in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"):
        environment.setdefault(name_of_cache, "")
    environment = {key: value for key, value in environment.items() if value}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    run = subprocess.run(
        [sys.executable, "-c", RESOLVE, name, *more],
        env={**kept, **own, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_file_is_fetched_once_and_found_without_a_network(hub: str, tmp_path: Path) -> None:
    first = resolved("hf:org/tiny", tmp_path, hub, "progress")
    assert first.endswith(f"/snapshots/{COMMIT}/m-Q4_0.gguf") and Path(first).read_bytes()[:4] == b"GGUF"
    nowhere = "http://127.0.0.1:9"
    assert resolved("hf:org/tiny", tmp_path, nowhere) == first
    assert resolved("hf:org/tiny:Q4_0", tmp_path, hub, HF_HUB_OFFLINE="1") == first
    assert resolved("hf:org/tiny:Q8_0", tmp_path, nowhere).startswith("DownloadError hf:org/tiny:Q8_0 cannot be")
    assert resolved("hf:org/other", tmp_path, nowhere).startswith("DownloadError hf:org/other cannot be fetched")


def test_an_export_is_made_of_the_folder_of_a_repository(hub: str, tmp_path: Path) -> None:
    for name in ("hf:org/folder", "org/folder"):
        found = Path(resolved(name, tmp_path, hub, "source"))
        assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
    assert Path(resolved("org/folder", tmp_path, "http://127.0.0.1:9", "source")) == found
    assert resolved("org/none", tmp_path, hub, "source").startswith("DownloadError hf:org/none cannot be fetched")
    for odd in ("nowhere", "no/such/folder", "org/model.gguf"):
        assert "no folder and no file" in resolved(odd, tmp_path, hub, "source")


GENAI = ["cpu/int4/genai_config.json", "cpu/int4/model.onnx", "cuda/genai_config.json", "README.md"]


def test_folders_that_engines_run_are_found() -> None:
    assert not runnable_folders(QUANTS)
    assert set(runnable_folders(["openvino_model.xml", "openvino_model.bin"])) == {""}
    assert set(runnable_folders(GENAI)) == {"cpu/int4", "cuda"}
    assert set(folder_files(GENAI, "cpu/int4")) == {"cpu/int4/genai_config.json", "cpu/int4/model.onnx"}
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file 'gpu'.*Folders that run: cpu/int4, cuda\."):
        chosen_files(GENAI, "gpu", "org/name")


def test_an_ir_is_fetched_with_its_weights_and_nothing_else_that_is_large(hub: str, tmp_path: Path) -> None:
    place = Path(resolved("hf:org/ir", tmp_path, hub))
    assert {path.name for path in place.iterdir()} == {"config.json", "openvino_model.xml", "openvino_model.bin"}
    assert resolved("hf:org/ir", tmp_path, "http://127.0.0.1:9") == str(place)


def test_a_name_of_the_catalogue_is_fetched_once_and_found_without_a_network(hub: str, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    lacking = resolved("qwen3-0.6b", tmp_path, nowhere)
    assert lacking.startswith("DownloadError qwen3-0.6b: hf:Qwen/Qwen3-0.6B-GGUF cannot be fetched")
    assert lacking.endswith("What needs no hub is smollm2-135m, which comes from the package index.")
    first = resolved("qwen3-0.6b", tmp_path, hub, "progress")
    assert first.endswith(f"/snapshots/{COMMIT}/Qwen3-0.6B-Q8_0.gguf") and Path(first).read_bytes()[:4] == b"GGUF"
    assert resolved("qwen3-0.6b", tmp_path, nowhere) == first == resolved("hf:Qwen/Qwen3-0.6B-GGUF", tmp_path, hub)
    assert resolved("qwen3-0.6b", tmp_path, nowhere, "source") == first  # also what an export is made of


def test_an_encoder_decoder_of_the_catalogue_is_exported_first(hub: str, tmp_path: Path) -> None:
    said = resolved("flan-t5-small", tmp_path, hub)
    assert said.startswith("UnsupportedModelError") and "pilotfish export flan-t5-small -o flan-t5-small-bundle" in said
    found = Path(resolved("flan-t5-small", tmp_path, hub, "source"))
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
    assert resolved("whisper-tiny.en", tmp_path, hub, "source").startswith("DownloadError whisper-tiny.en: hf:openai/")


def test_how_long_a_file_would_take_is_known_in_a_moment(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    entry = ON_HUB["qwen3-0.6b"]
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    found = seconds_to_fetch(entry, patience_s=60.0)
    assert found is not None and found > 0
    assert seconds_to_fetch(replace(entry, megabytes=entry.megabytes * 10_000), patience_s=60.0) > found  # type: ignore[operator]
    assert seconds_to_fetch(ON_HUB["phi-4-mini"], patience_s=60.0) is None  # which this hub does not have
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert seconds_to_fetch(entry) is None


def test_what_cannot_be_had_is_one_line(hub: str, tmp_path: Path) -> None:
    assert resolved("hf:org/none", tmp_path, hub).startswith("DownloadError hf:org/none cannot be fetched")
    assert resolved("hf:org/tiny:Q8_0", tmp_path, hub).startswith(
        "ModelNotFoundError org/tiny has no .gguf file 'Q8_0'"
    )
    for odd in ("hf:", "hf:tiny", "hf:a/b/c", "hf:../x", "hf:org/:Q4"):
        assert "is no name on the hub" in resolved(odd, tmp_path, hub)


def test_a_decoder_that_optimum_exported_is_fetched_and_runs(hub: str, tmp_path: Path) -> None:
    said = resolved("hf:org/optimum", tmp_path, hub, "progress")
    place = Path(said)
    assert place.is_dir(), said
    held = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert {"config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data"} <= held
    assert "onnx/model_q4.onnx" not in held
    assert resolved("hf:org/optimum", tmp_path, "http://127.0.0.1:9") == str(place)
    with pilotfish.load(place, "onnx", threads=1) as model:
        assert model.generate("hello the sea", raw=True, max_new_tokens=4).token_ids


def test_a_graph_is_fetched_where_it_is_what_would_be_opened() -> None:
    graphs = ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.onnx_data_1", "onnx/model_q4.onnx"]
    told = ["config.json", "tokenizer.json"]
    assert set(folder_files([*told, *graphs], "")) == {*told, *graphs[:3]}
    assert set(folder_files([*told, "model.safetensors", *graphs], "")) == {*told, "model.safetensors"}
    assert set(folder_files([*told, "decoder_model_merged.onnx"], "")) == {*told, "decoder_model_merged.onnx"}
    of_two = [*told, "onnx/decoder_model_merged.onnx", "onnx/encoder_model.onnx"]
    assert set(folder_files(of_two, "")) == {*told}  # which is exported from its weights


def test_a_folder_of_weights_says_how_to_open_it(hub: str, tmp_path: Path) -> None:
    said = resolved("hf:org/folder", tmp_path, hub)
    assert said.startswith("UnsupportedModelError") and "pilotfish export" in said


def test_a_folder_of_weights_is_fetched_once_and_opened(hub: str, tmp_path: Path) -> None:
    first = resolved("hf:org/whole", tmp_path, hub, "progress")
    assert first.endswith(f"/snapshots/{COMMIT}")
    assert {file.name for file in Path(first).iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert resolved("hf:org/whole", tmp_path, "http://127.0.0.1:9") == first


def test_a_folder_is_fetched_without_second_copies() -> None:
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    more = ["consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx", "original/params.json"]
    assert set(folder_files([*parts, "config.json", *more], "")) == {*parts, "config.json"}
    own = {"gptq_model-4bit.safetensors", "config.json"}
    assert set(folder_files([*own], "")) == own


def test_an_export_takes_pickled_weights_where_there_are_no_others() -> None:
    names = {"config.json", "pytorch_model.bin", "source.spm", "vocab.json"}
    assert set(weights_and_settings([*names], "", pickled=True)) == names
    safe = [*names, "model.safetensors"]
    assert set(weights_and_settings(safe, "", pickled=True)) == {*safe} - {"pytorch_model.bin"}
    assert "pytorch_model.bin" not in weights_and_settings([*names], "")
