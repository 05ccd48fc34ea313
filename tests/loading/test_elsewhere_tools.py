"""Folders as the tools themselves write them: every family against transformers in f32, and the engine contract."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny_families import save_tiny_model, tiny
from torch_answers import logits_in_torch, text

from pilotfish import load
from pilotfish.backends import get
from pilotfish.runtime.errors import UnsupportedModelError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.testing import CHECKS, Subject

torch = pytest.importorskip("torch", reason="the tools trace models in torch")
pytest.importorskip("transformers")

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("module_cache")]
EXACT: dict[str, object] = {"dynamic_quantization": 0}
FROM_SOURCE = {"fp32": 1e-4, "int8": 0.1, "int4": 0.7}  # root mean square, of the logits'; random models forgive little
CAPS_LEFT_OUT = 0.03  # optimum traces attention that leaves Gemma 2's cap of scores out
MORE: dict[str, dict[str, Any]] = {  # families that are not exported by ourselves
    "gemma": {"head_dim": 32},
    "phi3": {"original_max_position_embeddings": 256},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 300},
}
PROMPT = "The pilot fish swims ahead of the shark, and"
FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "mistral")


class Tool:
    """A tool's command line. needs: what has to be there; engine: which runs what it writes; module: what is run."""

    def __init__(self, needs: str, engine: str, module: str, *command: str, **weights: tuple[str, ...]) -> None:
        self.needs, self.engine, self.module, self.command, self.weights = needs, engine, module, command, weights
        self.own_process = needs == "onnxruntime_genai"  # it has a module with the name of one of ours

    def export(self, source: Path, out: Path, weights: str) -> Path:
        """Skips where the tool is not there, or refuses the family beside this transformers."""
        if importlib.util.find_spec(self.needs.split(".")[0]) is None or importlib.util.find_spec(self.needs) is None:
            pytest.skip(f"{self.needs} is not installed")
        command = [part.format(source=source, out=out) for part in (*self.command, *self.weights[weights])]
        with pytest.MonkeyPatch.context() as patch:
            for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
                patch.setenv(name, "1")
            if self.own_process:
                run = subprocess.run([sys.executable, "-m", self.module, *command], capture_output=True, text=True)
                if "KeyError: 'rope_type'" in run.stderr:  # as this transformers writes it
                    pytest.skip(f"{self.needs} does not read the family's configuration: {run.stderr[-200:]}")
                assert run.returncode == 0, run.stderr[-3000:]
                return out
            patch.setattr(sys, "argv", [self.module, *command])  # torch is imported here, which takes longest
            try:
                runpy.run_module(self.module, run_name="__main__", alter_sys=True)
            except ValueError as error:
                if "does not allow for the export" in str(error):
                    pytest.skip(str(error))
                raise
        return out


_OPTIMUM = ("optimum.commands.optimum_cli", "export")
_TASK = ("--task", "text-generation-with-past", "-m", "{source}", "{out}")
TOOLS = {
    "optimum-intel": Tool(
        "optimum.intel",
        "openvino",
        *(*_OPTIMUM, "openvino", *_TASK),
        fp32=("--weight-format", "fp32"),
        int8=("--weight-format", "int8"),
        int4=("--weight-format", "int4", "--group-size", "32", "--ratio", "1.0"),
    ),
    "genai": Tool(
        "onnxruntime_genai",
        "onnx",
        *("onnxruntime_genai.models.builder", "-i", "{source}", "-o", "{out}", "-e", "cpu", "-c", "{out}-cache"),
        fp32=("-p", "fp32"),
        int4=("-p", "int4", "--extra_options", "int4_block_size=32", "int4_accuracy_level=4"),
    ),
    "optimum": Tool("optimum.exporters.onnx", "onnx", *(*_OPTIMUM, "onnx", *_TASK), fp32=()),
}
_MADE = [(tool, family) for tool in TOOLS for family in FAMILIES if (tool, family) != ("optimum-intel", "gemma2")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], tuple[Path, PreTrainedModel]]:
    """A folder by tool, family and weights, made once; and the model that it was made of."""
    made: dict[tuple[str, ...], Path] = {}

    def folder(tool: str, family: str, weights: str) -> tuple[Path, PreTrainedModel]:
        model = tiny(family, **MORE.get(family, {}))
        if (tool, family, weights) not in made:
            source = save_tiny_model(model, tmp_path_factory.mktemp(f"{family}-source"))
            said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
            (source / "tokenizer_config.json").write_text(json.dumps(said))
            out = tmp_path_factory.mktemp("out") / f"{tool}-{family}-{weights}"
            made[tool, family, weights] = TOOLS[tool].export(source, out, weights)
        return made[tool, family, weights], model

    return folder


def opened(tool: str, folder: Path, **more: Any) -> Weights:
    engine = TOOLS[tool].engine
    exact = {"kv_dtype": "f32", "options": EXACT} if engine == "openvino" else {"kv_dtype": None, "options": {}}
    return get(engine).open(open_model(folder), device=None, threads=2, **{**exact, **more})


CASES = [(tool, family, weights) for tool, family in _MADE for weights in TOOLS[tool].weights]


@pytest.mark.parametrize(("tool", "family", "weights"), CASES)
def test_logits_are_those_of_the_source(
    tool: str, family: str, weights: str, exported: Callable[[str, str, str], tuple[Path, PreTrainedModel]]
) -> None:
    folder, model = exported(tool, family, weights)
    held = opened(tool, folder)
    session, tokens = held.session(), text(min(90, held.info.context_length))
    rows = []
    for part in np.split(tokens, [1, 31, 38, 40]):
        rows.append(session.forward(part, n_logits=len(part)).logits.copy())
    ours, theirs = np.concatenate(rows), logits_in_torch(model, tokens)
    apart = float(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)))
    print(tool, family, weights, "distance", apart)
    assert apart < (CAPS_LEFT_OUT if (tool, family) == ("optimum", "gemma2") else FROM_SOURCE[weights])
    held.close()


@pytest.mark.parametrize(("tool", "family"), _MADE)
def test_greedy_text_is_that_of_the_source_with_drafts_and_without(
    tool: str, family: str, exported: Callable[[str, str, str], tuple[Path, PreTrainedModel]]
) -> None:
    folder, model = exported(tool, family, "fp32")
    more: dict[str, Any] = {"kv_dtype": "f32", "options": EXACT} if tool == "optimum-intel" else {}
    with load(folder, TOOLS[tool].engine, threads=2, **more) as loaded:
        prompt = loaded.encode(PROMPT, raw=True)
        asked, n = torch.from_numpy(prompt)[None], min(40, loaded.max_context - len(prompt))
        with torch.no_grad():
            whole: Any = model
            said = whole.generate(asked, max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0)
        expected = said[0, len(prompt) :].tolist()
        ends = [i for i, token in enumerate(expected) if token in loaded.ends]
        expected = expected[: ends[0] + 1] if ends else expected
        for model_or_plain in (loaded, loaded.sibling(policy=None)):
            result = model_or_plain.generate("The pilot fish swims ahead of the shark, and", raw=True, max_new_tokens=n)
            assert list(result.token_ids) == expected or list(result.token_ids) == expected[:-1]


CONTRACTS = [("optimum-intel", "llama", "int4"), ("optimum-intel", "gemma3_text", "fp32"), ("genai", "llama", "fp32")]
CONTRACTS += [("genai", "qwen3", "int4"), ("optimum", "qwen2", "fp32"), ("optimum", "gemma3_text", "fp32")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("tool", "family", "weights"), CONTRACTS)
def test_contract(
    tool: str,
    family: str,
    weights: str,
    check: Callable[[Subject], None],
    exported: Callable[[str, str, str], tuple[Path, PreTrainedModel]],
) -> None:
    folder, _ = exported(tool, family, weights)
    held = opened(tool, folder)
    classes = calibrate(held.session()).rows.classes
    held.close()
    roomy = tuple((*range(min(c), 18), 32, 33) if len(c) > 1 else c for c in classes)
    noise = 2e-5 if weights == "fp32" else 0.1
    check(Subject(lambda: opened(tool, folder), noise, roomy, pasts=(0, 8, 64, 200)))


def test_a_folder_without_settings_of_a_past_says_how_to_export_one(tmp_path: Path) -> None:
    source = save_tiny_model(tiny("llama"), tmp_path / "source")
    tool = Tool("optimum.intel", "openvino", *_OPTIMUM, "openvino", *_TASK, no_state=("--disable-stateful",))
    folder = tool.export(source, tmp_path / "out", "no_state")
    with pytest.raises(UnsupportedModelError, match=r"keeps no past as state.*text-generation-with-past"):
        opened("optimum-intel", folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
