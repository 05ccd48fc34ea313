"""Cache settings that cannot be had: refused in Python and on the command line, each with the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pilotfish
from pilotfish.apps import cli
from pilotfish.backends import get
from pilotfish.runtime.errors import AbilityError, OptionError, PilotfishError
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

USUAL = "budget=64,every=32"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    sizes = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, context=512)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", quant="Q8_0", sizes=sizes, seed=10)


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says on standard error, in one line, when it refuses."""
    monkeypatch.setattr("sys.argv", ["pilotfish", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    said = capsys.readouterr()
    assert done.value.code not in (None, 0) and not said.out and "Traceback" not in said.err
    return " ".join(said.err.split())


FLASH_OFF = {"flash_attention": "off"}
CASES: dict[str, tuple[str, dict[str, Any], type[PilotfishError], str]] = {
    "smaller than sinks and window": (
        "reference",
        {"cache": "snapkv:budget=30"},
        OptionError,
        r"budget of 30 entries cannot hold 4 sinks and a window of 32.*give a budget of 36 or more",
    ),
    "the same before a wrapper": ("reference", {"cache": "chunk-keydiff:budget=30"}, OptionError, "a budget of 36"),
    "the same for drafts": ("reference", {"draft": "self:sinks:budget=30"}, OptionError, "a budget of 36"),
    "more rows than entries between": (
        "reference",
        {"cache": "snapkv:budget=64,every=16,observed=32"},
        OptionError,
        "give every=32 or more, or a smaller window",
    ),
    "no room for it": (
        "reference",
        {"cache": f"sinks:{USUAL}", "max_context": 90},
        OptionError,
        r"max_context is 90.*Give max_context=\d+ or more, or a smaller budget",
    ),
    "heads of their own on openvino": (
        "openvino",
        {"cache": f"keydiff:{USUAL}"},
        AbilityError,
        r"keydiff cache policy needs evict_heads, .*openvino.*per_head=False.*onnx engine and the reference engine can",
    ),
    "keys on llama.cpp": (
        "llamacpp",
        {"cache": f"keydiff:per_head=false,{USUAL}"},
        AbilityError,
        r"needs keys, which the llamacpp engine.*sinks and sirllm run.*onnx engine, .*and the reference engine can",
    ),
    "attention on llama.cpp with flash attention": (
        "llamacpp",
        {"cache": f"snapkv:per_head=false,{USUAL}"},
        AbilityError,
        r"needs attention, which the llamacpp engine.*flash_attention=off",
    ),
    "quantized values without flash attention": (
        "llamacpp",
        {"kv_dtype": "q8_0", "options": FLASH_OFF},
        OptionError,
        r"values stored as q8_0 need flash attention.*Use kv_dtype='q8_0/f16', or flash_attention='on'",
    ),
    "attention of quantized values": (
        "llamacpp",
        {"kv_dtype": "q8_0", "options": FLASH_OFF, "cache": f"snapkv:per_head=false,{USUAL}"},
        OptionError,
        r"Use kv_dtype='q8_0/f16'",
    ),
    "int4 on onnx": ("onnx", {"kv_dtype": "int4"}, OptionError, r"f32, or in int8.*not in 'int4'.*perplexity"),
    "int8 on openvino": ("openvino", {"kv_dtype": "int8"}, OptionError, "u8"),
    "no such policy": ("reference", {"cache": "nonsense"}, OptionError, "there are sinks, sirllm, knorm"),
    "unequal heads": ("reference", {"cache": "ada-snapkv"}, OptionError, "one rectangle"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_with_the_way_out(
    case: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, given, error, words = CASES[case]
    if get(engine).version() is None:
        pytest.skip(f"{engine} is not installed")
    with pytest.raises(error, match=words):
        pilotfish.load(path, engine, threads=1, **given)
    arguments = ["run", str(path), "the cat", "--engine", engine, "--threads", "1"]
    for name, value in given.items():
        pairs = [f"{k}={v}" for k, v in value.items()] if name == "options" else [str(value)]
        option = "--option" if name == "options" else f"--{name.replace('_', '-')}"
        arguments += [word for pair in pairs for word in (option, pair)]
    said = refused(arguments, monkeypatch, capsys)
    assert re.search(words, said), said


def test_a_conversation_of_another_model_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "talk.pilotfish", tiny_gguf(tmp_path / "other.gguf", seed=11)
    with pilotfish.load(path, "reference", threads=1) as model:
        chat = model.chat()
        chat.send("the cat", max_new_tokens=4)
        chat.save(file)
    kept = file.read_bytes()
    for model_path, more, words in (
        (other, [], r"model '.*', here '.*"),
        (path, ["--cache", f"sinks:{USUAL}"], r"cache policy 'None', here "),
    ):
        arguments = ["chat", str(model_path), "--engine", "reference", "--resume", str(file), *more]
        said = refused(arguments, monkeypatch, capsys)
        assert "was saved with something else" in said and "--reread" in said
        assert re.search(words, said), said
        assert file.read_bytes() == kept, "what was there before is gone"
