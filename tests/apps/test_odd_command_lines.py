"""Command lines that nobody should type, and somebody will: refused in one line that says what to do, and at once."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pilotfish import load
from pilotfish.apps import cli
from pilotfish.apps.room import require_room
from pilotfish.loading.choosing import Wish, refuse_impossible
from pilotfish.runtime.errors import ContextFullError, EngineMissingError, OptionError, PilotfishError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.testing.tiny_models import tiny_gguf

pytest.importorskip("onnxruntime")
LONG = "a" * 5000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, module_cache: None) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


Said = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Said:
    """Runs a command line that must end in one line and exit code 2, and returns the line."""
    monkeypatch.chdir(tmp_path)

    def run(*line: object) -> str:
        monkeypatch.setattr(sys, "argv", ["pilotfish", *map(str, line)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n"), "utf-8"))
        with pytest.raises(SystemExit) as end:
            cli.main()
        found = capfdbinary.readouterr()
        said = [text for text in found.err.decode().splitlines() if text.strip()]
        assert end.value.code == 2 and len(said) == 1 and said[0].startswith("pilotfish: ") and not found.out, found
        return said[0]

    return run


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are opened, and no answer is looked up."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was opened before all options were checked")

    for name in (
        "loading.choosing.open_weights",
        "loading.trials.known_answer",
        "loading.load.choose",
        "apps.bench.curve.open_weights",
    ):
        monkeypatch.setattr(f"pilotfish.{name}", fail)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stop", ""], "stop string is empty"),
        (["--kv-dtype", "f7"], "not in 'f7'"),
        (["--kv-dtype", ""], "--kv-dtype is empty; give a value, or leave it out."),
        (["--engine", ""], "--engine is empty"),
        (["--device", ""], "--device is empty"),
        (["--document", ""], "--document is empty"),
        (["--device", "toaster"], "no device 'toaster'"),
        (["--engine", "toaster"], "no engine 'toaster'"),
        (["--draft-engine", "toaster"], "no engine 'toaster'"),
        (["--draft", "nowhere.gguf"], "no file or folder nowhere.gguf"),
        (["--draft", ""], "--draft is empty"),
        (["--draft-cache", "attic"], "no cache policy 'attic'"),
        (["--cache", "sinks:budget=-5"], "budget is -5"),
        (["--cache", "sinks:budget=8,budget=9"], "gives a setting twice"),
        (["--cache", "sinks:colour=red"], "no setting of sinks"),
        (["--cache", ""], "--cache is empty"),
        (["--quality", "0.98"], "there is no smaller one"),
        (["--quality", "2", "--cache", "sinks"], "quality is 2.0"),
        (["--quality", "0.9", "--cache", "select"], "keeps the whole cache"),
        (["--option", "colour=red"], "no options of its own, but colour"),
        (["--option", "a=1", "--option", "a=2"], "--option a is given twice"),
        (["--seed", "-1", "-t", "1"], "seed is -1"),
        (["--threads", "100000"], f"from 1 to {os.cpu_count()}"),
        (["--max-context", "100000"], "from 2 to 2048"),
        (["--document", "nowhere.txt"], "nowhere.txt is not there"),
        (["--document", "."], ". is no file"),
        (["--document", LONG], "File name too long"),
        (["--plain", "--draft", "x"], "contradict each other"),
        (["-n", "1", "-n", "x"], "not a valid integer"),
        (["-n", str(10**20)], "max_new_tokens is 100000000000000000000, but this session holds 2048 tokens"),
        (["-n", str(10**20), "--max-context", "64"], "but this session holds 64 tokens"),
        (["-n", "100", "--max-context", "64", "--beams", "2"], "but this session holds 64 tokens"),
        (["--document", "bytes.txt"], "cannot be read as UTF-8 text"),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else None,
)
def test_options_are_checked_before_a_model_is_opened(
    tiny: Path, refused: Said, unopened: None, options: list[str], words: str
) -> None:
    Path("bytes.txt").write_bytes(b"\xff\xfe")
    assert words in refused("run", tiny, "hello", *options)


def test_a_prompt_that_cannot_fit_is_refused_first(tiny: Path, refused: Said, unopened: None) -> None:
    for prompt, options, words in (
        ("the cat " * 3000, (), "shorten the prompt"),
        ("the cat " * 100, ("--max-context", 64), "(--max-context 7"),
        ("the cat " * 100, ("--max-context", 64, "--system", "be brief", "-n", 20), "and max_new_tokens is 20"),
        ("the cat " * 100, ("--max-context", 64, "--raw"), "but this session holds 64"),
    ):
        assert words in refused("run", tiny, prompt, *options), options


def test_what_almost_fits_is_left_to_the_session(tiny: Path) -> None:
    n = len(open_model(tiny).tokenizer.encode("the cat " * 20))
    ask = partial(require_room, str(tiny), "the cat " * 20, None, raw=True)
    ask(500 - n, 500)
    ask(None, n)
    require_room("smollm2-135m", "hello", None, 10**9, None)  # it would have to be fetched
    with pytest.raises(ContextFullError, match=f"the prompt has {n} tokens and max_new_tokens is {502 - n}"):
        ask(502 - n, 500)
    with pytest.raises(ContextFullError, match=f"the prompt has {n} tokens, but this session holds {n - 1}"):
        ask(None, n - 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write into")
def test_a_place_that_cannot_be_written_is_found_out_first(tiny: Path, refused: Said, unopened: None) -> None:
    for line in (
        ("bench", "run", tiny, "--out", "/proc/pilotfish/out"),
        ("bench", "curve", tiny, "--out", "/proc/pilotfish"),
        ("bench", "peers", tiny, "--out", "/proc/pilotfish"),
        ("bench", "cache", tiny, "--out", "/proc/pilotfish"),
        ("bench", "long", tiny, "--out", "/proc/pilotfish"),
        ("chat", tiny, "--resume", "/proc/pilotfish.chat"),
        ("draft", "make", tiny, "-o", "/proc/pilotfish"),
        ("draft", "make", tiny, "-o", "/proc/pilotfish", "--weights", "Q4_0"),
        ("export", "some/model", "-o", "/proc/pilotfish"),
    ):
        assert "cannot be written" in refused(*line), line


def test_the_correction_demo_refuses_what_it_would_garble(refused: Said, unopened: None) -> None:
    said = refused("run", "--demo", "correct", "teh na\u00efve caf\u00e9")
    assert "would garble '\u00ef' (character 7 of the prompt)" in said


def test_chat_and_benchmarks_check_before_a_model_is_opened(tiny: Path, refused: Said, unopened: None) -> None:
    Path("bad.chat").write_bytes(b"\xff no conversation")
    for line, words in (
        (("chat", tiny, "-t", "nan"), "temperature is nan"),
        (("chat", tiny, "--resume", "."), ". is no file"),
        (("chat", tiny, "--resume", LONG), "File name too long"),
        (("chat", tiny, "--reread"), "--reread is about"),
        (("chat", tiny, "--resume", "bad.chat"), "bad.chat is no saved conversation"),
        (("chat", tiny, "-n", 10**20), "but this session holds 2048 tokens"),
        (("bench", "run", tiny, "--document", 10**6), "--document is 1000000"),
        (("bench", "cache", tiny, "--text", "bad.chat"), "cannot be read as UTF-8 text"),
        (("bench", "long", tiny, "--text", "bad.chat"), "cannot be read as UTF-8 text"),
        (("bench", "run", tiny, "--tokens", 10**6), "--tokens is 1000000"),
        (("bench", "curve", tiny, "--context", 10**6), "--context 1000000 is too long"),
        (("bench", "curve", tiny, "--engines", "onnx,toaster"), "no engine 'toaster'"),
        (("bench", "engines", tiny, "--engines", "onnx,toaster"), "no engine 'toaster'"),
        (("bench", "engines", tiny, "--tokens", 10**6), "--tokens is 1000000"),
        (("bench", "cache", tiny, "--kv-dtype", "f7"), "not in 'f7'"),
        (("bench", "cache", tiny, "--share", "2"), "must be a part of the text"),
        (("bench", "long", tiny, "--policy", "attic"), "no cache policy 'attic'"),
        (("draft", "check", tiny, "nowhere"), "no file or folder nowhere"),
        (("draft", "check", tiny, ""), "DRAFT is empty; give a value."),
        (("draft", "make", tiny, "-o", ""), "-o is empty"),
        (("verify", ""), "FOLDER is empty"),
        (("export", tiny, "-o", ""), "is empty; give a value."),
        (("chat", tiny, "--resume", ""), "--resume is empty"),
        (("bench", "run", tiny, "--out", ""), "--out is empty"),
        (("bench", "run", tiny, "--draft", ""), "--draft is empty"),
        (("bench", "cache", tiny, "--policy", "sinks", "--policy", ""), "--policy is empty"),
        (("demo", "--prompt", ""), "--prompt is empty"),
        (("draft", "make", tiny, "-o", tiny), "is a file"),
        (("draft", "make", tiny, "-o", "made", "--weights", "Q99"), "no kind 'Q99'"),
    ):
        assert words in refused(*line), line
    assert not Path("made").exists()


def test_a_model_that_is_no_name_and_no_path(refused: Said, tmp_path: Path) -> None:
    for command in (
        ("run",),
        ("chat",),
        ("inspect",),
        ("doctor",),
        ("bench", "run"),
        ("bench", "peers"),
        ("draft", "check", ""),
    ):
        assert "is empty" in refused(*command, "", *(["hi"] if command == ("run",) else [])), command
    assert "name is empty" in refused("run", "  ", "hi")
    assert "File name too long" in refused("run", LONG, "hi")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        assert "neither a file nor a folder" in refused("run", "fifo", "hi")
        assert "neither a file nor a folder" in refused("export", "fifo", "-o", "out")
    assert "neither a file nor a folder" in refused("inspect", os.devnull)
    for name in ("", " ", "a\0b", "~nobody-at-all/x"):
        with pytest.raises(PilotfishError):
            load(name)


def test_a_job_of_nothing_is_refused(tiny: Path, refused: Said) -> None:
    for job in ("0x0", "10x0", "0x10", "10", "x", "10x", "-1x5", "1x2x3", "9" * 5000 + "x1", "nanx1", ""):
        assert "must be two numbers of tokens from 1 on" in refused("doctor", tiny, "--job", job)


def test_an_export_looks_for_its_source_before_packages(
    refused: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("pilotfish.exporting.prepare.importlib.util.find_spec", lambda name: None)
    (tmp_path / "empty").mkdir()
    assert "there is no folder and no file 'nosuch'" in refused("export", "nosuch", "-o", "out")
    assert "empty holds no model to export" in refused("export", "empty", "-o", "out")
    assert "name is empty" in refused("export", "", "-o", "out")
    assert "no file 'nodraft'" in refused("export", "some/hub-name", "-o", "out", "--draft", "nodraft")
    assert "has no name of its own" in refused("export", "some/hub-name", "-o", "/")
    assert "torch" in refused("export", "some/hub-name", "-o", "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused("export", "broken", "-o", "out")
    (broken / "config.json").write_text('{"model_type": "mystery"}')
    assert "of the family 'mystery': not yet" in refused("export", "broken", "-o", "out")
    (broken / "config.json").write_text('{"model_type": "llama"}')
    assert "broken holds no weights" in refused("export", "broken", "-o", "out")
    (broken / "model.safetensors").write_bytes((100).to_bytes(8, "little") + b"{}")
    assert "truncated or damaged" in refused("export", "broken", "-o", "out")
    (broken / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert "has no tokenizer.json" in refused("export", "broken", "-o", "out")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    assert "broken.gguf is truncated" in refused("export", "broken.gguf", "-o", "out")
    assert "ratio is nan" in refused("export", "nosuch", "-o", "out", "--to", "openvino", "--ratio", "nan")


def test_a_name_of_the_catalogue_is_no_bundle(refused: Said, tiny: Path) -> None:
    said = refused("verify", "smollm2-135m")
    assert "is a model of the catalogue" in said and "pilotfish export smollm2-135m -o" in said
    assert "nowhere is not there" in refused("verify", "nowhere")
    assert "is a file, and a bundle is a folder" in refused("verify", tiny)


def test_a_device_that_needs_another_package_names_it_with_and_without_an_engine(
    tiny: Path, refused: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PILOTFISH_ENGINE", raising=False)
    for engine in ([], ["--engine", "onnx"]):
        assert "needs the package onnxruntime-gpu" in refused("run", tiny, "hi", "--device", "cuda", *engine)
    refuse_impossible(Wish())
    refuse_impossible(Wish(kv_dtype="int8"))
    with pytest.raises(OptionError, match=r"no installed engine has a device 'toaster'\. Devices here: onnx: cpu"):
        refuse_impossible(Wish(device="toaster"))
    with pytest.raises(OptionError, match="not in 'f7'"):
        refuse_impossible(Wish(kv_dtype="f7"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineMissingError, match="Add it with"):
        refuse_impossible(Wish(engine="onnx"))


def test_mistakes_of_spelling_are_one_line_too(refused: Said) -> None:
    assert "No such option '--temprature'" in refused("run", "x", "--temprature", 1)
    assert "No such command 'rum'" in refused("rum")
    assert "`pilotfish export --help`" in refused("export", "x")
    assert "unexpected extra argument" in refused("run", "x", "y", "z")
