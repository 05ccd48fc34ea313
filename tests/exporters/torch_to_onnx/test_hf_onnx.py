"""transformers models as ONNX bundles: every family and form, against the same model in torch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiers import quick
from tiny_families import YARN, families_of, tiny
from torch_answers import BY_LAYER, WINDOWS, MadeOnce, check_chunks_and_rollback, distance, logits_in_torch, seal, text

from pilotfish.backends import get
from pilotfish.exporters.quantize.blocks import Blocks
from pilotfish.exporters.quantize.nearest import quantize
from pilotfish.exporters.quantize.weight_form import WeightForm
from pilotfish.exporters.torch_to_onnx.decoder import export_onnx
from pilotfish.runtime.errors import ModelFileError, UnsupportedModelError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.testing import CHECKS, Subject

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.usefixtures("module_cache")
Exported = Callable[..., Path]
FORMS = {name: WeightForm(name) for name in ("fp32", "fp16", "int8", "int4")}  # type: ignore[arg-type]
FORMATS = {"onnx": "model.onnx"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Bundles by family and form, with activations in f32, each made once."""
    return MadeOnce(
        tmp_path_factory.mktemp,
        FORMATS,
        lambda model, folder, form: export_onnx(model, folder, FORMS[form], activations="f32"),
    )


def opened(folder: Path) -> Weights:
    return get("onnx").open(open_model(folder), device=None, threads=2, kv_dtype=None, options={})


def as_stored(model: PreTrainedModel, form: WeightForm) -> PreTrainedModel:
    """The torch model with the weights that the graph holds."""
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2:
            continue
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        stored = form.embedding_form if "embed" in name else form.output_form if "lm_head" in name else form.layers
        assert not (tied and form.embedding_form != form.output_form)
        values = parameter.data.numpy()
        if stored == "fp16":
            values = values.astype(np.float16).astype(np.float32)
        elif stored != "fp32":
            bits = int(stored.removeprefix("int"))
            values = quantize(values, bits=bits, block=form.block, symmetric=form.symmetric).dequantized()
        parameter.data = torch.from_numpy(values)
    return model


FAMILIES = families_of("onnx")
CELLS = [(family, form) for family in FAMILIES for form in FORMS]
BY_DEFAULT = [(family, "int4") for family in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3")] + [
    ("gemma2", "fp32"),
    ("gemma3_text", "fp32"),
    ("llama", "int8"),
    ("qwen2", "fp16"),
]


@pytest.mark.parametrize(
    ("family", "form"), [pytest.param(*c, marks=() if c in BY_DEFAULT else pytest.mark.slow) for c in CELLS]
)
def test_a_family_is_computed_as_transformers_does(exported: Exported, family: str, form: str) -> None:
    weights, tokens = opened(exported(family, form)), text()
    session = weights.session()
    step = session.forward(tokens, n_logits=len(tokens), observe=frozenset({"hidden", "queries"}))
    stored = as_stored(tiny(family), FORMS[form])
    assert distance(step.logits, logits_in_torch(stored, tokens)) < 2e-5
    with torch.no_grad():
        hidden = stored.base_model(torch.from_numpy(tokens)[None]).last_hidden_state[0].numpy()
    assert step.hidden is not None and distance(step.hidden, hidden) < 2e-5
    n_layers = stored.config.num_hidden_layers
    assert step.queries is not None and step.queries.shape == (n_layers, 2, len(tokens), weights.info.head_dim)
    weights.close()


_ROPE = {"rope_theta": 10000.0}
VARIANTS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "heads apart from the width": ("llama", {"head_dim": 48}, None),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}, None),
    "stretched rotation": (
        "llama",
        {
            "rope_parameters": {
                **_ROPE,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        None,
    ),
    "half of a head turned": (
        "phi3",
        {"rope_parameters": {**_ROPE, "rope_type": "default", "partial_rotary_factor": 0.5}},
        None,
    ),
    "YaRN": ("llama", {"rope_parameters": YARN}, None),
    "YaRN with biases": ("qwen2", {"rope_parameters": YARN}, None),
    "YaRN with norms of heads": ("qwen3", {"rope_parameters": YARN}, None),
    "capped logits": ("gemma3_text", {"final_logit_softcapping": 3.0}, 8),
    "a window everywhere": ("phi3", {"sliding_window": 8}, 8),
    "a window from layer 1 on": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, 8),
    "no window": ("mistral", {"sliding_window": None}, None),
}


@pytest.mark.parametrize("variant", quick(VARIANTS, "half of a head turned"))
def test_configurations_of_a_family(tmp_path: Path, variant: str) -> None:
    family, changes, window = VARIANTS[variant]
    model, tokens = tiny(family, **changes), text()
    seal(tmp_path, model, FORMATS, export_onnx(model, tmp_path, FORMS["fp32"]))
    weights = opened(tmp_path)
    session = weights.session()
    ours = [session.forward(tokens[a:b], n_logits=b - a).logits.copy() for a, b in ((0, 41), (41, 42), (42, 70))]
    assert distance(np.concatenate(ours), logits_in_torch(model, tokens)) < 2e-5
    assert weights.model.window == window  # type: ignore[attr-defined]
    weights.close()


@pytest.mark.parametrize("family", quick(FAMILIES, "gemma3_text", "mistral"))
def test_chunks_and_rollback(exported: Exported, family: str) -> None:
    weights = opened(exported(family, "fp32"))
    check_chunks_and_rollback(weights, tiny(family), 2e-5)
    weights.close()


@pytest.mark.parametrize("family", quick(FAMILIES, "gemma3_text"))
def test_trees_equal_their_paths_apart(exported: Exported, family: str) -> None:
    weights, before, branch = opened(exported(family, "fp32")), text(60), text(5, seed=3)
    session = weights.session()
    session.forward(before, n_logits=0)
    ours = session.forward(branch, n_logits=5, parents=np.array([0, 0, 0, 1, 3])).logits.copy()
    for path in ([0, 1, 3, 4], [0, 2]):
        theirs = logits_in_torch(tiny(family), np.concatenate([before, branch[path]]))
        assert distance(ours[path], theirs[len(before) :]) < 2e-5
    session.accept(np.array([0, 1, 3]))
    after = session.forward(text(9, seed=4), n_logits=9).logits
    theirs = logits_in_torch(tiny(family), np.concatenate([before, branch[[0, 1, 3]], text(9, seed=4)]))
    assert distance(after, theirs[-9:]) < 2e-5
    weights.close()


@pytest.mark.parametrize("family", quick(FAMILIES, "llama", "gemma3_text", "mistral"))
def test_an_evicted_entry_is_one_that_is_masked(exported: Exported, family: str) -> None:
    """Also in layers with a window: positions decide what lies inside it, not places in the cache."""
    weights, tokens = opened(exported(family, "fp32")), text(80)
    session = weights.session()
    session.forward(tokens[:70], n_logits=0)
    gone = np.r_[2:9, 30:50, 66:68]
    session.keep(np.setdiff1d(np.arange(70), gone))
    ours = session.forward(tokens[70:], n_logits=10).logits
    seen = np.tril(np.ones((80, 80), dtype=bool))
    seen[70:, gone] = False
    near = np.subtract.outer(np.arange(80), np.arange(80)) < WINDOWS.get(family, 80)
    full, sliding = (
        torch.from_numpy(np.where(m, 0.0, -np.inf).astype(np.float32))[None, None] for m in (seen, seen & near)
    )
    mask = {"full_attention": full, "sliding_attention": sliding} if family in BY_LAYER else sliding
    assert distance(ours, logits_in_torch(tiny(family), tokens, mask)[70:]) < 2e-5
    weights.close()


CASES = {"llama int4": 2e-5, "gemma3_text fp32": 2e-5, "phi3 int8": 2e-5, "mistral fp32": 2e-5}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", quick(CASES, "llama int4", "gemma3_text fp32"))
def test_contract(exported: Exported, case: str, check: Callable[[Subject], None]) -> None:
    folder = exported(*case.split())
    check(Subject(partial(opened, folder), CASES[case], ((1,), (*range(2, 18), 32, 33))))


@pytest.mark.parametrize("family", quick(FAMILIES, "qwen2"))
def test_int8_activations_are_near(tmp_path: Path, family: str) -> None:
    recipe = export_onnx(tiny(family), tmp_path, FORMS["int8"])
    seal(tmp_path, tiny(family), FORMATS, recipe)
    weights, tokens = opened(tmp_path), text()
    ours = weights.session().forward(tokens, n_logits=len(tokens)).logits
    assert 0.0 < distance(ours, logits_in_torch(as_stored(tiny(family), FORMS["int8"]), tokens)) < 0.15
    assert recipe["activations"] == "int8" and weights.info.settings == "int8"
    weights.close()


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    def size(name: str, form: WeightForm, tied: bool) -> int:
        (tmp_path / name).mkdir()
        export_onnx(tiny("llama", tie_word_embeddings=tied), tmp_path / name, form)
        return (tmp_path / name / "model.onnx.data").stat().st_size

    for stored in ("fp32", "int4"):
        form = WeightForm(stored)  # type: ignore[arg-type]
        assert size(f"{stored} tied", form, True) < size(f"{stored} apart", form, False) - 15_000
    assert size("int4 and int8", WeightForm("int4", embedding="fp16"), True) > size("int4 again", WeightForm(), True)


def test_the_graph_is_small_and_says_nothing_of_this_machine(exported: Exported) -> None:
    folder = exported("llama", "int4")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulNBits") == 3 * 4 + 1  # query, key and value are one; gate and up are one
    assert kinds.count("SkipSimplifiedLayerNormalization") == 2 * 3
    assert "Transpose" not in kinds and "Sigmoid" not in kinds
    inputs = next(node.input for node in graph.node if node.op_type == "GroupQueryAttention")
    assert list(inputs[1:3]) == ["", ""]  # the product goes in as it is
    for name in ("model.onnx", "observing.onnx"):
        content = (folder / name).read_bytes()
        assert b"site-packages" not in content and str(Path.cwd()).encode() not in content
    offsets = [int(e.value) for t in graph.initializer for e in t.external_data if e.key == "offset"]
    assert offsets and all(offset % 4096 == 0 for offset in offsets)


def test_the_model_is_the_same_afterwards(tmp_path: Path) -> None:
    model = tiny("gemma3_text")
    before, kinds = logits_in_torch(model, text()), [type(m) for m in model.modules()]
    export_onnx(model, tmp_path, FORMS["int4"])
    assert (logits_in_torch(model, text()) == before).all()
    assert [type(m) for m in model.modules()] == kinds and model.config._attn_implementation == "eager"


def test_nothing_holds_the_model_afterwards(tmp_path: Path) -> None:
    model = tiny("llama")
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    export_onnx(model, tmp_path, WeightForm("int8"))
    del model
    gc.collect()
    assert not any(weight() is not None for weight in weights)


def test_a_norm_or_a_rotation_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    model = tiny("llama")
    real = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: real(k, q, cos, -sin))
    with pytest.raises(UnsupportedModelError, match="'llama' does not turn halves"):
        export_onnx(model, tmp_path, FORMS["fp32"])
    monkeypatch.undo()
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: self.weight * x)
    with pytest.raises(UnsupportedModelError, match=r"layernorm is a LlamaRMSNorm that is not x / rms"):
        export_onnx(model, tmp_path, FORMS["fp32"])
    assert not list(tmp_path.iterdir())
    assert type(model.model.norm).__name__ == "LlamaRMSNorm"


def test_the_recipe_names_the_blocks_that_were_taken(tmp_path: Path) -> None:
    model = tiny("llama", intermediate_size=160)
    recipe = export_onnx(model, tmp_path, WeightForm("int4", block=64))
    assert recipe["weights"] == "int4, embedding int8, output int8, block 64 and 32"
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    sizes = {
        a.i for node in graph.node if node.op_type == "MatMulNBits" for a in node.attribute if a.name == "block_size"
    }
    assert sizes == {64, 32}


def test_a_family_that_is_not_known_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=32, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(UnsupportedModelError, match="'gpt2' cannot be exported to ONNX yet"):
        export_onnx(model, tmp_path, FORMS["fp32"])


def test_a_manifest_that_hides_the_window_is_refused(tmp_path: Path) -> None:
    recipe = export_onnx(tiny("mistral"), tmp_path, FORMS["fp32"])
    assert recipe.pop("sliding_window") == "48"
    seal(tmp_path, tiny("mistral"), FORMATS, recipe)
    with pytest.raises(ModelFileError, match="window"):
        opened(tmp_path)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rounding_is_within_half_a_step_and_searched(bits: int, symmetric: bool) -> None:
    draw = np.random.default_rng(0)
    matrix = draw.normal(size=(48, 128)).astype(np.float32)
    matrix[3] = 0.0
    blocks = quantize(matrix, bits=bits, block=32, symmetric=symmetric)
    error = blocks.dequantized() - matrix
    assert blocks.loss == pytest.approx(np.linalg.norm(error) / np.linalg.norm(matrix), rel=1e-4)
    assert blocks.loss < (0.006 if bits == 8 else 0.1 if symmetric else 0.09)
    assert (blocks.dequantized()[3] == 0).all()
    again = quantize(blocks.dequantized(), bits=bits, block=32, symmetric=symmetric)
    assert isinstance(again, Blocks) and again.loss < 1e-3 + blocks.loss * (not symmetric)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "caps what others of its kind do not"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "looks ahead"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
    ],
)
def test_a_configuration_that_computes_otherwise_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        export_onnx(tiny(family, **changes), tmp_path, FORMS["fp32"])
    assert not list(tmp_path.iterdir())
