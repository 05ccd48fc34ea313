"""Encoder-decoder bundles on OpenVINO: every family and form against torch, the engine contract, the whole product."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiers import quick
from tiny_encoder_decoders import ENCODER_DECODERS, VOCAB_SIZE, save_encoder_decoder, tiny_encoder_decoder

from pilotfish import Beams, load
from pilotfish.backends import get
from pilotfish.exporters.quantize.weight_form import WeightForm
from pilotfish.exporting.export import export
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.beam_search import beam_search
from pilotfish.runtime.errors import AbilityError, ModelFileError, OptionError, UnsupportedModelError
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.runtime.files.manifest import MANIFEST_NAME
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats, Tokens, Weights, as_tokens
from pilotfish.runtime.profiling.row_classes import RowRule
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import SourceCopy, Suffix
from pilotfish.runtime.storage import cache_dir
from pilotfish.testing import CHECKS, Subject
from pilotfish.testing.source_contract import a_source
from pilotfish.testing.toy_model import N_TOKENS, byte_tokenizer
from pilotfish.verifying.verify import verify

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("nncf", reason="exporting to OpenVINO needs nncf")

pytestmark = pytest.mark.usefixtures("module_cache")

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLASSES = ((1,), (*range(2, 18), 32, 33))
NOISE = {"fp32": 2e-5, "int8": 0.05, "int4": 0.05}  # between widths, as of decoders: tests/contracts/test_ov.py
CLOSE = 1e-5  # of the largest logit
BLOCK = 16  # divides the columns of all tiny models
LONG = {"max_position_embeddings": 512}
OF_BART = ("bart", "mbart", "m2m100", "plbart", "blenderbot", "blenderbot_small", "pegasus", "marian")
LIMITS = dict.fromkeys(OF_BART, LONG) | {"whisper": {"max_target_positions": 512}}
STARTS = (0, 1, 2, 10, 18, 19, 50, 60)  # steps of one token, of eight, and of others
CELLS = [f"{name} {form}" for name in ENCODER_DECODERS for form in ("fp32", "int8")] + ["flan int4", "bart int4"]
Bundles = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Bundles by model and form, each made once."""
    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder

    made: dict[tuple[str, str], Path] = {}

    def bundle(name: str, form: str) -> Path:
        if (name, form) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{form}") / "bundle"
            weights: Any = form
            export_encoder_decoder(
                pair(name), folder, WeightForm(weights, block=BLOCK), model_id=name, to=("openvino",), activations="f32"
            )
            made[name, form] = folder
        return made[name, form]

    return bundle


def pair(name: str) -> PreTrainedModel:
    return tiny_encoder_decoder(name, **LIMITS.get(name, {}))


def opened(path: Path, **options: object) -> Weights:
    return get("openvino").open(open_model(path), device=None, threads=2, kv_dtype=None, options=options)


def text(n: int, seed: int = 1) -> Tokens:
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, n)


def in_torch(model: PreTrainedModel, source: Tokens | Floats, tokens: Tokens) -> Floats:
    """Logits after every token."""
    name = "input_features" if source.ndim == 2 else "input_ids"
    with torch.no_grad():
        found = model(**{name: torch.from_numpy(source)[None]}, decoder_input_ids=torch.from_numpy(tokens)[None])
    return found.logits[0].numpy()  # type: ignore[no-any-return]


def distance(ours: Floats, theirs: Floats) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("cell", quick(CELLS, "t5 fp32", "bart int8", "whisper fp32"))
def test_a_family_is_computed_as_transformers_does(bundles: Bundles, cell: str) -> None:
    name, form = cell.split()
    model, tokens, weights = pair(name), text(60), opened(bundles(name, form))
    session = weights.session()
    source = a_source(weights.info, 7)
    if name == "m2m100":
        source = np.where(source == 0, 3, source)  # transformers gives its padding no position, and masks none here
    session.encode(source)
    theirs = in_torch(model, source, tokens)
    ours = [session.forward(tokens[a:b], n_logits=b - a).logits.copy() for a, b in itertools.pairwise(STARTS)]
    assert np.ptp(theirs, axis=0).max() > 0.05 * np.abs(theirs).max()  # a model that answers one thing proves little
    limit = {"fp32": CLOSE, "int8": 0.05, "int4": 0.6}[form]
    assert distance(np.concatenate(ours), theirs) < limit
    weights.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("cell", quick(CELLS, "t5 fp32"))
def test_contract(cell: str, check: Callable[[Subject], None], bundles: Bundles) -> None:
    name, form = cell.split()
    check(Subject(partial(opened, bundles(name, form)), NOISE[form], CLASSES))


@pytest.mark.parametrize("name", quick([n for n in ENCODER_DECODERS if n != "whisper"], "t5"))
def test_greedy_and_beams_are_those_of_transformers(bundles: Bundles, name: str) -> None:
    model, weights = pair(name), opened(bundles(name, "fp32"))
    sequence = CachedSequence(weights.session(), RowRule((2, 3, 4)))
    source = text(12, seed=4)
    asked = {"inputs": torch.from_numpy(source)[None], "do_sample": False, "use_cache": False}
    with torch.no_grad():
        greedy = model.generate(**asked, max_new_tokens=20, eos_token_id=None)[0].tolist()[1:]  # type: ignore[operator]
        stops = sorted({greedy[4], greedy[-1]})
        found = model.generate(**asked, eos_token_id=stops, num_beams=4, max_new_tokens=11)  # type: ignore[operator]
    best = found[0].tolist()[1:]
    while len(best) > 1 and best[-1] == 0 and 0 not in stops:
        best.pop()  # padding
    start = as_tokens(weights.info.encoder.decoder_start if weights.info.encoder else ())
    for beams, n, ends, expected in ((Beams(1), 20, (), greedy), (Beams(4), 11, stops, best)):
        sequence.encode(source)
        sequence.cover(start[:-1])
        answers, _ = beam_search(sequence, start, beams, n, frozenset(ends))
        assert list(answers[0].tokens) == expected
    weights.close()


def fused(compiled: Any) -> int:
    """How many operators are fused ones, whose cache two threads of a first step look up at once: docs/openvino.md."""
    return sum(node.get_rt_info()["layerType"].value == "Subgraph" for node in compiled.get_runtime_model().get_ops())


@pytest.mark.parametrize("name", quick(ENCODER_DECODERS, "t5"))
def test_no_graph_has_fused_attention(bundles: Bundles, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from openvino import Core

    made: list[int] = []
    compile_model = Core.compile_model

    def counting(self: Any, model: Any, device: str, settings: dict[str, object]) -> Any:
        would = {name: value for name, value in settings.items() if name != "SNIPPETS_MODE"}
        assert fused(compile_model(self, model, device, would)) > 0  # else there is nothing to avoid any more
        compiled = compile_model(self, model, device, settings)
        made.append(fused(compiled))
        return compiled

    monkeypatch.setattr(Core, "compile_model", counting)
    weights = opened(bundles(name, "fp32"))
    session = weights.session()
    session.encode(a_source(weights.info, 7))
    session.forward(text(3), n_logits=1, observe=frozenset({"queries"}))  # compiles a third graph
    assert made == [0, 0, 0]
    weights.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_sessions_and_weights_close_in_any_order(bundles: Bundles, name: str) -> None:
    expected = None
    for order in range(12):
        weights = opened(bundles(name, "fp32"))
        session = weights.session()
        session.encode(a_source(weights.info, 7))
        session.forward(text(40), n_logits=0)
        fork = session.fork()
        found = session.forward(text(30), n_logits=2).logits.copy()  # in a cache that grew
        fork.forward(text(3), n_logits=1, observe=frozenset({"queries"}))
        assert expected is None or np.array_equal(found, expected)
        expected = found
        closing = [(session, weights, fork), (weights, session, fork), (fork, session, weights)][order % 3]
        for one in closing[: 1 + order % 4]:  # the others are merely forgotten
            one.close()
        del session, fork, weights, closing, one
        gc.collect()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated T5 over bytes for both engines, with a tokenizer; random, but it talks."""
    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder

    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    folder = tmp_path_factory.mktemp("bytes")
    byte_tokenizer().save(folder / "tokenizer.json")
    model = tiny_encoder_decoder("flan", vocab_size=N_TOKENS, eos_token_id=257, decoder_start_token_id=256)
    form = WeightForm("int8", block=BLOCK)
    tokenizer = folder / "tokenizer.json"
    export_encoder_decoder(model, folder / "b", form, model_id="tiny", tokenizer=tokenizer, to=("onnx", "openvino"))
    return folder / "b"


TEXTS = ("teh quikc brwon fox", "x", "a longer text, " * 9)


def test_drafts_change_nothing(both: Path) -> None:
    asks: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 2.0, "seed": 4}]
    settings: dict[str, Any] = {"engine": "openvino", "threads": 2}
    with load(both, **settings, speculate=False) as plain:
        assert plain.info.engine == "openvino" and plain.info.encoder is not None
        expected = [plain.generate(t, max_new_tokens=48, **a).token_ids for t in TEXTS for a in asks]
        assert plain.generate(TEXTS[0], max_new_tokens=8).stats.n_reused == 0
        assert plain.generate(TEXTS[0], max_new_tokens=8).stats.n_reused == len(TEXTS[0]) + 1
    assert len(set(expected)) >= 5
    with load(both, **settings, speculate=Fixed(4), proposers=(SourceCopy(), Suffix())) as drafting:
        found = [drafting.generate(t, max_new_tokens=48, **a) for t in TEXTS for a in asks]
    assert [r.token_ids for r in found] == expected
    assert sum(r.stats.drafted for r in found) > 50


def test_the_faster_engine_answers(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOTFISH_ENGINE", raising=False)
    with load(both, threads=2) as model:
        engine = model.info.engine
    (kept,) = (cache_dir() / "trials").glob("*.json")
    trials = json.loads(kept.read_text())
    assert {trial["engine"] for trial in trials.values()} == {"onnx", "openvino"}
    problems = [trial["problem"] for trial in trials.values() if trial["problem"]]
    assert engine in ("onnx", "openvino") and all(p.startswith("a step takes") for p in problems), problems


@pytest.mark.parametrize("name", quick(("marian", "whisper"), "marian"))
def test_an_export_is_compared_with_its_source(tmp_path: Path, name: str) -> None:
    source, out = save_encoder_decoder(name, tmp_path / "source"), tmp_path / "out"
    export(source, out, to=("openvino",), weights="int8", block=BLOCK, activations="f32")
    manifest = open_bundle(out).manifest
    assert manifest.formats == {"openvino": "openvino/decoder.xml"}
    assert manifest.encoders == {"openvino": "openvino/encoder.xml"}
    facts = manifest.reports["openvino"]
    assert facts["n_tokens"] > 100 and facts["canary_error"] < 0.1 and facts["greedy_prompts"] == 8
    assert manifest.recipe_of("openvino")["weights"] == "int8" and not manifest.kv_hints
    assert verify(out).ok


def test_what_cannot_be_had_is_refused(bundles: Bundles, tmp_path: Path) -> None:
    path = bundles("t5", "fp32")
    with pytest.raises(OptionError, match="f32 only, not in 'u8'"):
        get("openvino").open(open_model(path), device=None, threads=2, kv_dtype="u8")
    with pytest.raises(OptionError, match="f32 only, not in bf16"):
        opened(path, precision="bf16")
    session = opened(path).session()
    session.encode(text(5))
    with pytest.raises(AbilityError, match="attention"):
        session.forward(text(3), n_logits=1, observe=frozenset({"attention"}))
    with pytest.raises(OptionError, match="blocks of 32 do not divide the 48 columns"):
        export(save_encoder_decoder("t5", tmp_path / "source"), tmp_path / "out", to=("openvino",), weights="int8")
    assert not (tmp_path / "out").exists()


def test_damaged_halves_are_refused(bundles: Bundles, tmp_path: Path) -> None:
    whole = bundles("t5", "fp32")
    manifest = json.loads((whole / MANIFEST_NAME).read_text())
    other = tmp_path / "other"
    other.mkdir()
    for name in manifest["files"]:
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_bytes((whole / name).read_bytes())
    for change, error, says in (
        ({"decoder_start": []}, ModelFileError, "decoder_start"),
        ({"encoders": {"openvino": "openvino/decoder.xml"}}, ModelFileError, "does not go with the decoder"),
        ({"formats": {"openvino": "openvino/encoder.xml"}}, UnsupportedModelError, "is no decoder"),
    ):
        (other / MANIFEST_NAME).write_text(json.dumps({**manifest, **change}))
        with pytest.raises(error, match=says):
            opened(other)
