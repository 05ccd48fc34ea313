"""Folders made elsewhere, loaded as users load them: the right text, drafts that change nothing or are refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, own_cache, pilotfish, refused  # noqa: F401
from foreign_folders import genai_folder, ir_folder, optimum_folder

from pilotfish import Model, load
from pilotfish.backends import get
from pilotfish.loading.measuring import known_answer
from pilotfish.runtime.errors import AbilityError, ModelFileError, OptionError, PilotfishWarning, UnsupportedModelError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.profiling.canary import canary_error
from pilotfish.testing.tiny_models import tiny_gguf

onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

PROMPT = "hello the sea and hello the sea and hello"
KINDS: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "optimum-intel": ("openvino", ir_folder),
    "optimum": ("onnx", optimum_folder),
    "genai": ("onnx", genai_folder),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("source") / "tiny.gguf", quant="F32", seed=10)


@pytest.fixture(scope="module")
def folders(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("folders")
    return {name: make(source, made / name) for name, (_, make) in KINDS.items()}


def answer(model: Model, n: int = 24) -> tuple[int, ...]:
    return tuple(model.generate(PROMPT, raw=True, max_new_tokens=n, stop=None).token_ids)


@pytest.mark.parametrize("name", KINDS)
def test_it_says_what_the_reference_engine_says_with_drafts_and_without(
    name: str, folders: dict[str, Path], source: Path
) -> None:
    engine = KINDS[name][0]
    exact = {"options": {"dynamic_quantization": 0}, "kv_dtype": "f32"} if engine == "openvino" else {}
    with load(source, "reference", threads=1) as judge, load(folders[name], engine, threads=2, **exact) as model:
        expected = answer(judge)
        result = model.generate(PROMPT, raw=True, max_new_tokens=24)
        assert tuple(result.token_ids) == expected and result.stats.drafted > 0
        with model.sibling(policy=None) as plain:
            assert answer(plain) == expected
        assert model.chat().send("hello", max_new_tokens=4).token_ids


@pytest.mark.parametrize("name", KINDS)
def test_the_engine_need_not_be_named(name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOTFISH_ENGINE")
    with load(folders[name], threads=2) as model:
        assert model.info.engine == KINDS[name][0]


def test_a_folder_answers_for_itself_and_a_wrong_answer_is_found(
    folders: dict[str, Path], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = known_answer(open_model(source), lambda what, share: None)
    assert judge is not None
    for name, (engine, _) in KINDS.items():
        model = open_model(folders[name])
        canary = known_answer(model, lambda what, share: None)
        assert canary is not None and canary.best == judge.best
        weights = get(engine).open(model, device=None, threads=1, kv_dtype=None)
        assert canary_error(weights.session(64), canary) < 0.1
        weights.close()
    monkeypatch.setattr(get("onnx"), "known_answer", lambda model: pytest.fail("remembered"))
    assert known_answer(open_model(folders["genai"]), lambda what, share: None) is not None


def test_drafts_are_refused_where_rows_of_a_step_change_each_other(source: Path, tmp_path: Path) -> None:
    folder = optimum_folder(source, tmp_path / "folder", one_scale=True)
    with pytest.warns(PilotfishWarning, match=r"is decoded without drafts.*other bits beside other rows.*--no-exact"):
        model = load(folder, "onnx", threads=2)
    with model, warnings.catch_warnings():
        warnings.simplefilter("error")
        result = model.generate(PROMPT, raw=True, max_new_tokens=24)
        assert result.stats.drafted == 0 and model.calibration.rows.rule().widths == (1,)
        with load(folder, "onnx", threads=2, speculate=False) as plain:  # nothing to be told
            assert answer(plain) == tuple(result.token_ids)
        with load(folder, "onnx", threads=2, exact=False) as fast:
            assert fast.generate(PROMPT, raw=True, max_new_tokens=24).stats.drafted > 0


def test_what_a_graph_cannot_give_up_is_not_offered(folders: dict[str, Path], source: Path, tmp_path: Path) -> None:
    with load(folders["optimum"], "onnx", threads=2, cache="sinks:budget=40,every=8") as model:
        assert len(answer(model, 60)) == 60
    with pytest.raises(AbilityError) as told:
        load(folders["genai"], "onnx", threads=2, cache="sinks:budget=40,every=8")
    assert "evict_tokens" in told.value.missing and "openvino" not in str(told.value)
    free = genai_folder(source, tmp_path / "free", positions=True)
    with load(free, "onnx", threads=2, cache="sinks:budget=40,every=8") as model:
        assert len(answer(model, 60)) == 60
    with pytest.raises(OptionError, match="stores keys and values in f32, not in 'int8'; leave kv_dtype out"):
        load(folders["genai"], "onnx", threads=2, kv_dtype="int8")


def changed(folder: Path, **values: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize("name", ["optimum-intel", "optimum"])
def test_a_graph_of_another_model_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    engine, make = KINDS[name]
    folder = changed(make(source, tmp_path / "folder"), num_hidden_layers=24)
    with pytest.raises(
        ModelFileError, match=r"of different models: the one has num_hidden_layers 2, the other says 24"
    ):
        load(folder, engine, threads=2)


def without(graph: object, name: str) -> None:
    """Take an input or an output out of an ONNX graph that does not need it."""
    for ports in (graph.input, graph.output):  # type: ignore[attr-defined]
        for port in [port for port in ports if port.name == name]:
            ports.remove(port)


def fixed_length(model: object) -> None:
    for port in model.graph.input:  # type: ignore[attr-defined]
        if port.name.startswith("past"):
            port.type.tensor_type.shape.dim[2].dim_value = 64


def one_more_input(model: object) -> None:
    vector = onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, [1, 3])
    model.graph.input.append(vector)  # type: ignore[attr-defined]


def last_row_alone(model: object) -> None:
    graph = model.graph  # type: ignore[attr-defined]
    old = next(port for port in graph.output if port.name == "logits")
    graph.node.append(onnx.helper.make_node("Gather", ["logits", "last"], ["pruned"], axis=1))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    old.name = "pruned"
    old.type.tensor_type.shape.dim[1].dim_value = 1
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name in ("logits", "pruned"):
                    names[i] = {"logits": "all_logits", "pruned": "logits"}[name]
    old.name = "logits"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (fixed_length, r"keeps its past in the shape \['batch_size', 2, 64, 16\], which cannot grow"),
        (one_more_input, "wants pixel_values, too"),
        (last_row_alone, "gives logits of the last token alone"),
        (lambda model: without(model.graph, "present.1.key"), r"has no present\.1\.key"),
    ],
)
def test_a_graph_that_is_no_decoder_of_texts_is_refused(
    spoil: Callable[[object], None], words: str, source: Path, tmp_path: Path
) -> None:
    folder = optimum_folder(source, tmp_path / "folder")
    model = onnx.load(folder / "model.onnx")
    spoil(model)
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(UnsupportedModelError, match=words) as told:
        get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)
    assert "\n" not in str(told.value)


def test_a_graph_without_a_past_says_how_to_export_one(source: Path, tmp_path: Path) -> None:
    folder = optimum_folder(source, tmp_path / "folder")
    settings = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.FLOAT, [1, 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["input_ids"], ["logits"])], "no", [settings], [])
    graph.output.append(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 2]))
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)]),
              folder / "model.onnx")  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"takes no past.*text-generation-with-past"):
        get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)
    (folder / "model.onnx").write_bytes(b"no graph at all")
    with pytest.raises(ModelFileError, match="cannot open"):
        get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)


def test_attention_that_blocks_cannot_replace_is_refused(source: Path, tmp_path: Path) -> None:
    """As of models that cap their scores: such an IR computes attention in plain operators."""
    from openvino import opset13 as op

    folder = ir_folder(source, tmp_path / "folder")
    graph = openvino.Core().read_model(folder / "openvino_model.xml")
    for node in [node for node in graph.get_ops() if node.get_type_name() == "ScaledDotProductAttention"]:
        query, key, value, mask, scale = (node.input_value(i) for i in range(5))
        scores = op.tanh(op.add(op.multiply(op.matmul(query, key, False, True), scale), mask))
        mixed = op.matmul(op.softmax(scores, -1), value, False, False)
        for port in node.output(0).get_target_inputs():
            port.replace_source_output(mixed.output(0))
    openvino.save_model(graph, tmp_path / "plain.xml", compress_to_fp16=False)
    del graph
    for suffix in (".xml", ".bin"):
        (tmp_path / f"plain{suffix}").replace(folder / f"openvino_model{suffix}")
    with pytest.raises(UnsupportedModelError, match=r"no decoder that runs with PagedAttention.*a \.gguf file") as told:
        get("openvino").open(open_model(folder), device=None, threads=1, kv_dtype=None)
    assert "\n" not in str(told.value)


def test_a_window_that_attention_was_not_told_of_ends_the_context(source: Path, tmp_path: Path) -> None:
    folder = changed(ir_folder(source, tmp_path / "folder"), sliding_window=100)
    weights = get("openvino").open(open_model(folder), device=None, threads=1, kv_dtype=None)
    assert weights.info.context_length == 100
    weights.close()
    plain = changed(optimum_folder(source, tmp_path / "optimum"), sliding_window=100)
    weights = get("onnx").open(open_model(plain), device=None, threads=1, kv_dtype=None)
    assert weights.info.context_length == 2048 and "evict_tokens" not in weights.session(64).abilities
    weights.close()
    for told, length in ((-1, 100), (100, 2048)):
        window = {"window_size": 100, "slide_key_value_cache": False}
        folder = genai_folder(source, tmp_path / f"genai{told}", sliding_window=window)
        model = onnx.load(folder / "model.onnx")
        for node in model.graph.node:
            if node.op_type == "GroupQueryAttention":
                node.attribute.append(onnx.helper.make_attribute("local_window_size", told))
        onnx.save(model, folder / "model.onnx")
        weights = get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)
        assert weights.info.context_length == length and "evict_tokens" not in weights.session(64).abilities
        assert weights.session(64).nbytes >= (100 if told > 0 else 1) * 2 * 2 * 2 * 16 * 4
        weights.close()


def test_an_ir_in_halves_is_opened(source: Path, tmp_path: Path) -> None:
    """All its constants are widened by operators: the scale of scores is one of them."""
    folder, tokens = ir_folder(source, tmp_path / "folder", half=True), np.arange(40)
    weights = get("openvino").open(open_model(folder), device=None, threads=1, kv_dtype="f32")
    judge = get("reference").open(open_model(source), device=None, threads=1, kv_dtype=None)
    ours, theirs = (w.session(64).forward(tokens, n_logits=40).logits for w in (weights, judge))
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
    assert known_answer(open_model(folder), lambda what, share: None) is not None
    weights.close()
    judge.close()


def test_halves_are_stored_as_the_graph_says(source: Path, tmp_path: Path) -> None:
    folder = optimum_folder(source, tmp_path / "folder", half=True)
    weights = get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=None)
    session = weights.session(64)
    logits = session.forward(np.arange(5), n_logits=2).logits
    assert logits.dtype == np.float32 and logits.shape == (2, 272)
    keys, _ = session.keys_values(0)
    assert keys.dtype == np.float32 and (keys == keys.astype(np.float16)).all()
    assert weights.info.settings.endswith("f16")
    weights.close()


@pytest.mark.parametrize("name", KINDS)
def test_inspect_says_what_a_folder_is_and_what_engines_do_with_it(
    name: str, folders: dict[str, Path], pilotfish: Run
) -> None:
    engine = KINDS[name][0]
    found = json.loads(pilotfish("inspect", folders[name], "--json").out)
    assert "made elsewhere" in found["kind"] or "onnxruntime-genai" in found["kind"]
    assert found["context"] == 2048 and found["architecture"] == "llama"
    assert found[engine].startswith("opens it (2 layers, 272 tokens") and "abilities:" in found[engine]
    assert ("evict_tokens" in found[engine]) == (name != "genai")
    assert found["reference"] == "does not open it"
    assert "tokenizer.json, 272 tokens" in pilotfish("inspect", folders[name]).out


def test_a_folder_that_is_not_whole_ends_a_command_with_one_line(source: Path, tmp_path: Path, pilotfish: Run) -> None:
    folder = ir_folder(source, tmp_path / "folder")
    (folder / "openvino_model.bin").unlink()
    for command in (("run", folder, "hello", "--engine", "openvino"), ("inspect", folder), ("doctor", folder)):
        refused(pilotfish(*command), "openvino_model.bin is missing")
    folder = genai_folder(source, tmp_path / "genai", session_options={"provider_options": [{"dml": {}}]})
    refused(pilotfish("run", folder, "hello"), "is made for dml", "-e cpu")


def test_run_answers_from_a_folder(folders: dict[str, Path], pilotfish: Run) -> None:
    for name, (engine, _) in KINDS.items():
        outcome = pilotfish("run", folders[name], "hello", "--engine", engine, "-n", 8)
        assert outcome.code == 0, outcome.err
