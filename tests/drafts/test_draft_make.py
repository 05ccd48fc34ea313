"""Drafts made of a target itself, what they are expected to bring, and a bundle that names its draft."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from busy_machine import other_programs
from model_files import imported
from typer.testing import CliRunner

import pilotfish
from pilotfish.apps.cli import app
from pilotfish.drafts.check import check_draft
from pilotfish.drafts.forecast import Costs, best_length, expected_speed_up, rounds_of
from pilotfish.drafts.make import drop_layers
from pilotfish.exporters.onnx.decoder import Layer, Linear
from pilotfish.exporters.onnx.dropped_bundle import write_dropped
from pilotfish.exporters.onnx.layer_drop import gated, n_weight_bytes, sub_layers, without
from pilotfish.exporters.onnx.layer_search import Scorer, _Runner, search
from pilotfish.exporters.onnx.stored_decoder import StoredDecoder
from pilotfish.loading.draft import remember_verdict
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.errors import ModelNotFoundError, OptionError, UnsupportedModelError
from pilotfish.runtime.files.bundle import DraftEntry, describe_files, open_bundle, write_manifest
from pilotfish.runtime.files.manifest import Manifest
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.profiling.cost_curve import CostCurve
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH, RowRule
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import DraftModel
from pilotfish.testing.tiny_models import Sizes, tiny_gguf
from pilotfish.testing.toy import ToyWeights

LAYERS = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafts")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(cache / "cache"))


@pytest.fixture(scope="module")
def tiny(cache: Path) -> Path:
    return tiny_gguf(cache / "tiny.gguf", sizes=Sizes(layers=LAYERS), seed=3)


@pytest.fixture
def bundle(tiny: Path) -> Path:
    """The tiny model as a graph with f32 activations, so that differences are those of the surgery."""
    return imported(tiny, activations="f32")


def load_graph(folder: Path, name: str = "model.onnx") -> onnx.ModelProto:
    return onnx.load(folder / name, load_external_data=False)


def logits(model: onnx.ModelProto, folder: Path, gates: list[float] | None = None, n: int = 12) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {
        "input_ids": (np.arange(n, dtype=np.int64) * 7 % 250)[None],
        "position_ids": np.arange(n, dtype=np.int64)[None],
        "logit_rows": np.arange(n, dtype=np.int64),
        "bias": np.zeros((1, 1, n, n), np.float32),
    }
    for value in session.get_inputs():
        if value.name.startswith("past_"):
            given[value.name] = np.zeros((1, value.shape[1], n, value.shape[3]), np.float32)
    if gates is not None:
        given["gates"] = np.array(gates, np.float32)
    return session.run(["logits"], given)[0]


# -- surgery ---------------------------------------------------------------------------------------------------------


def test_a_decoder_is_attention_and_mlp_in_turn(bundle: Path) -> None:
    model = load_graph(bundle)
    blocks = sub_layers(model)
    assert [str(b) for b in blocks] == [f"{kind} {i}" for i in range(LAYERS) for kind in ("attention", "mlp")]
    assert all(b.n_bytes > 0 for b in blocks)
    assert sum(b.n_bytes for b in blocks) < n_weight_bytes(model)


def test_without_nothing_is_the_same_model_bit_for_bit(bundle: Path) -> None:
    model = load_graph(bundle)
    assert np.array_equal(logits(without(model, ()), bundle), logits(model, bundle))


@pytest.mark.parametrize(
    "skipped", [(0,), (1,), (2, 3), (3, 4), (2, 5, 6), (7,), (0, 1, 6, 7), (2, 4, 6), (1, 3, 5, 7)]
)
def test_without_blocks_is_the_whole_graph_with_nothing_added_by_them(bundle: Path, skipped: tuple[int, ...]) -> None:
    model = load_graph(bundle)
    gates = [0.0 if i in skipped else 1.0 for i in range(2 * LAYERS)]
    made = without(model, skipped)
    whole, less = logits(gated(model), bundle, gates), logits(made, bundle)
    assert np.abs(whole - less).max() < 1e-4
    assert np.abs(whole - logits(model, bundle)).max() > 0.1


def test_layers_that_keep_an_attention_are_numbered_anew_and_unused_weights_left_out(bundle: Path) -> None:
    model = load_graph(bundle, "observing.onnx")
    made = without(model, (2, 5))  # attention 1, mlp 2
    caches = [i.name for i in made.graph.input if i.name.startswith("past_")]
    assert caches == [f"past_{kind}_{i}" for i in range(LAYERS - 1) for kind in ("key", "value")]
    assert {o.name for o in made.graph.output} >= {f"query_{i}" for i in range(LAYERS - 1)}
    assert f"query_{LAYERS - 1}" not in {o.name for o in made.graph.output}
    names = {t.name for t in made.graph.initializer}
    assert "l1.qkv.codes" not in names and "l2.down.codes" not in names and "l1.down.codes" in names


def test_a_graph_of_another_build_is_refused(bundle: Path) -> None:
    model = load_graph(bundle)
    for node in model.graph.node:
        if node.op_type == "SkipSimplifiedLayerNormalization":
            node.op_type = "SomethingElse"
    with pytest.raises(UnsupportedModelError, match="4 layers, but 0 blocks"):
        sub_layers(model)


def test_a_dropped_bundle_shares_its_weights_and_opens(bundle: Path, tmp_path: Path) -> None:
    out = write_dropped(open_bundle(bundle), tmp_path / "draft", (2, 3, 4))
    manifest = open_bundle(out).manifest
    assert manifest.recipe["dropped"] == "attention 1, mlp 1, attention 2"
    assert manifest.canary is None and manifest.report == {}
    assert (out / "model.onnx.data").stat().st_ino == (bundle / "model.onnx.data").stat().st_ino
    with pilotfish.load(out, "onnx", threads=1) as model:
        assert model.info.n_layers == LAYERS - 2
        assert len(model.generate("hello", max_new_tokens=5).token_ids) == 5
        observed = model.target.session(16).forward(np.arange(4), n_logits=1, observe=frozenset(("queries",)))
        assert observed.queries is not None and len(observed.queries) == LAYERS - 2


def test_where_there_are_no_hard_links_the_weights_are_copied(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr("os.link", no_links)
    out = write_dropped(open_bundle(bundle), tmp_path / "draft", (2,))
    assert (out / "model.onnx.data").stat().st_ino != (bundle / "model.onnx.data").stat().st_ino
    assert open_bundle(out).manifest.formats == {"onnx": "model.onnx"}


# -- search ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def idle_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in which attention 1 and mlp 2 add nothing."""
    path = tiny_gguf(tmp_path / "idle.gguf", sizes=Sizes(layers=LAYERS), seed=4)
    made: Callable[[StoredDecoder, int], Layer] = StoredDecoder._layer

    def layer(self: StoredDecoder, i: int) -> Layer:
        whole = made(self, i)
        assert whole.mlp is not None
        output, down = (Linear(np.zeros(x.weight.shape, np.float32)) for x in (whole.output, whole.mlp.down))
        if i == 1:
            return replace(whole, output=output)
        return replace(whole, mlp=replace(whole.mlp, down=down)) if i == 2 else whole

    monkeypatch.setattr(StoredDecoder, "_layer", layer)
    return imported(path, activations="f32")


def answers_of(folder: Path, n: int = 40) -> list[tuple[np.ndarray, int]]:
    with pilotfish.load(folder, "onnx", threads=1, speculate=False) as model:
        texts = []
        for prompt in ("hello", "the inn and the hello"):
            asked = model.encode(prompt)
            said = model.generate(prompt, max_new_tokens=n).token_ids
            texts.append((np.concatenate([asked, said]), len(asked)))
        return texts


def test_the_search_finds_the_blocks_that_do_nothing(idle_blocks: Path) -> None:
    scorer = Scorer(idle_blocks / "model.onnx", answers_of(idle_blocks), 1)
    assert scorer.agreement(frozenset()) == 1.0
    path = search(scorer, lambda agreement, skipped: agreement, 3)
    assert [len(c.skipped) for c in path] == [0, 1, 2, 3]
    assert path[2].skipped == {2, 5} and path[2].agreement == 1.0  # attention 1, mlp 2
    assert path[3].agreement < 1.0
    assert all(a.skipped < b.skipped for a, b in itertools.pairwise(path))
    assert not {0, 1, 2 * LAYERS - 2, 2 * LAYERS - 1} & path[3].skipped


@pytest.fixture
def timed_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every node of a graph whose parts are timed takes a second."""
    ticks, made, run = time.perf_counter, _Runner.__init__, _Runner.logits
    n_nodes: dict[_Runner, int] = {}
    spent = [0.0]

    def make(self: _Runner, model: onnx.ModelProto, *others: object) -> None:
        made(self, model, *others)  # type: ignore[arg-type]
        n_nodes[self] = len(model.graph.node)

    def timed(self: _Runner, *arguments: object, **options: object) -> object:
        spent[0] += n_nodes[self]
        return run(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_Runner, "__init__", make)
    monkeypatch.setattr(_Runner, "logits", timed)
    monkeypatch.setattr(time, "perf_counter", lambda: ticks() + spent[0])


@pytest.mark.usefixtures("timed_nodes")
def test_a_made_draft_changes_no_token_and_is_what_the_search_said(idle_blocks: Path, tmp_path: Path) -> None:
    made = drop_layers(idle_blocks, tmp_path / "draft", n_dropped=2, threads=1)
    assert made.what == "without attention 1, mlp 2"
    assert [option.n_dropped for option in made.options] == [1, 2]
    assert made.options[1].cost < made.options[0].cost < 1.0
    assert all(s.agreement == 1.0 for s in made.check.sets.values())
    with pilotfish.load(idle_blocks, "onnx", threads=1, speculate=False) as model:
        plain = model.generate("hello", max_new_tokens=40).token_ids
    drafted = {"draft": tmp_path / "draft", "speculate": Fixed(3), "proposers": ()}
    with pilotfish.load(idle_blocks, "onnx", threads=1, **drafted) as model:
        result = model.generate("hello", max_new_tokens=40)
    assert result.token_ids == plain
    assert result.stats.accepted >= result.stats.drafted - 1  # the last round may be cut


def test_an_impossible_number_of_blocks_is_refused_before_anything_is_written(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="of 8, 1 to 4 can"):
        drop_layers(bundle, tmp_path / "draft", n_dropped=5, threads=1)
    assert not (tmp_path / "draft").exists()


# -- what is expected ------------------------------------------------------------------------------------------------


def flat(target: float, per_row: float, draft: float, rows: RowRule = ANY_WIDTH) -> Costs:
    widths = np.arange(1, 34)
    return Costs(CostCurve(widths, target + per_row * widths), CostCurve(widths, np.full(33, draft)), rows)


def test_rounds_are_those_of_a_real_generation() -> None:
    from pilotfish.runtime.decoding.loop import Limits, generate
    from pilotfish.runtime.sampling.sampling import Sampling
    from pilotfish.runtime.speculation.controller import Drafting

    target, draft, prompt = ToyWeights(3, seed=0), ToyWeights(3, seed=1), np.array([0, 1, 2])

    def run(k: int, n: int = 30) -> list[tuple[int, int]]:
        drafter = DraftModel(CachedSequence(draft.session()), Sampling(), 3, np.random.default_rng(0), 3)
        rounds = generate(
            CachedSequence(target.session()),
            prompt,
            sampling=Sampling(),
            drafting=Drafting(Fixed(k), CostCurve(np.arange(1, 34), np.ones(33)), ANY_WIDTH),
            proposers=(drafter,),
            limits=Limits(max_new_tokens=n),
            rng=np.random.default_rng(0),
        )
        return [(r.accepted, len(r.tokens)) for r in rounds]

    said = list(prompt)
    agree = []
    for _ in range(30):
        p, q = (w.session().forward(np.array(said), n_logits=1).logits[0] for w in (target, draft))
        agree.append(int(p.argmax()) == int(q.argmax()))
        said.append(int(p.argmax()))
    assert 0.1 < np.mean(agree) < 0.9
    for k in (1, 2, 4):
        found, real = rounds_of(np.array(agree), k), run(k)
        assert [taken for taken, _ in found[:-1]] == [accepted for accepted, _ in real[:-1]]
        assert len(found) == len(real)


def test_a_perfect_free_draft_is_worth_its_length_and_a_useless_one_its_cost() -> None:
    always, never = [np.ones(160, dtype=bool)], [np.zeros(160, dtype=bool)]
    best = best_length(always, flat(1.0, 0.0, 1e-9))
    assert best.k == 15 and best.speed_up == pytest.approx(16.0) and best.tokens_per_round == 16.0
    worst = best_length(never, flat(1.0, 0.0, 0.25))
    assert worst.k == 1 and worst.speed_up == pytest.approx(1 / 1.25) and worst.acceptance == 0.0


def test_expected_speed_up_is_the_closed_form() -> None:
    # alpha 0.8, c 0.1, flat verification: max over k of (1 - a^(k+1)) / ((1 - a) (k c + 1)), Leviathan et al. 2023
    known = max((1 - 0.8 ** (k + 1)) / (0.2 * (0.1 * k + 1)) for k in range(1, 16))
    assert expected_speed_up(0.8, 0.5, flat(1.0, 0.0, 0.2)) == pytest.approx(known)


def test_costs_follow_the_row_class() -> None:
    rows = RowRule((2, 4, 8))
    costs = flat(1.0, 0.1, 0.0, rows)
    assert costs.plain_s() == pytest.approx(1.2)
    assert costs.round_s(2) == pytest.approx(1.4)  # three rows are run as four


# -- check, and load(draft="auto") -----------------------------------------------------------------------------------


def test_a_target_that_drafts_for_itself_agrees_with_itself(tiny: Path) -> None:
    result = check_draft(tiny, tiny, engine="onnx", threads=1, n_tokens=12, per_set=1, measure=True, repeats=1)
    assert result.pairing == "identical" and set(result.sets) == {"chat", "code", "copy"}
    for found in result.sets.values():
        assert found.agreement == 1.0 and found.overlap > 0.99
        assert found.measured is not None and set(found.measured) == {"lookup", "draft", "both"}
    assert json.loads(json.dumps(result.as_dict()))["pays"] is result.pays


@other_programs
def test_a_check_on_a_busy_machine_is_not_remembered(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))
    for share, doubt, kept in ((0.9, "other programs used 90% of the processor meanwhile", 0), (0.1, "", 1)):
        monkeypatch.setattr(seen, lambda *_, share=share: share)
        result = check_draft(tiny, tiny, engine="onnx", threads=1, n_tokens=4, per_set=1)
        assert result.doubt == result.as_dict()["doubt"] == doubt
        assert len(list((tmp_path / "drafts").glob("*.json"))) == kept


def test_a_check_with_times_that_no_kernel_has_is_not_remembered(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))
    curve = CostCurve(np.array([1, 2, 33]), np.array([90e-3, 55e-3, 60e-3]))
    monkeypatch.setattr("pilotfish.drafts.check.costs_of", lambda model: Costs(curve, curve, ANY_WIDTH))
    result = check_draft(tiny, tiny, engine="onnx", threads=1, n_tokens=4, per_set=1)
    assert result.doubt.startswith("a step of 1 rows took clearly longer")
    assert not list((tmp_path / "drafts").glob("*.json"))


def test_a_draft_that_knows_nothing_does_not_pay_and_the_verdict_says_so(tiny: Path, tmp_path: Path) -> None:
    other = tiny_gguf(tmp_path / "other.gguf", sizes=Sizes(layers=LAYERS), seed=77)
    result = check_draft(tiny, other, engine="onnx", threads=1, n_tokens=12, per_set=1)
    assert not result.pays and result.verdict.startswith("This draft does not pay here")


def test_a_model_with_a_short_context_is_checked_in_it(tmp_path: Path) -> None:
    short = tiny_gguf(tmp_path / "short.gguf", sizes=Sizes(layers=1, context=1000), seed=6)
    result = check_draft(short, short, engine="onnx", threads=1, n_tokens=6, per_set=1)
    assert all(s.tokens > 0 for s in result.sets.values())


def test_numbers_that_make_no_sense_are_refused(tiny: Path) -> None:
    with pytest.raises(OptionError, match="n_tokens is 0"):
        check_draft(tiny, tiny, n_tokens=0)


@pytest.fixture
def paired(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that names a draft inside it."""
    folder = tmp_path / "paired"
    shutil.copytree(bundle, folder)
    write_dropped(open_bundle(bundle), folder / "draft", (2, 5))
    return name_draft(folder, pairing="identical")


def name_draft(folder: Path, **facts: object) -> Path:
    manifest = open_manifest(folder)
    entry = DraftEntry(**{"path": "draft", "model_id": "d", "n_shared": 272, **facts})  # type: ignore[arg-type]
    files = describe_files(folder)
    write_manifest(folder, manifest.model_copy(update={"draft": entry, "files": files}))
    return folder


def test_the_draft_that_a_bundle_names_is_used(paired: Path) -> None:
    with pilotfish.load(paired, "onnx", threads=1) as model:
        assert model.draft is not None and model.draft.weights.info.n_layers == LAYERS - 1
        with_draft = model.generate("hello", max_new_tokens=24).token_ids
    with pilotfish.load(paired, "onnx", threads=1, draft=None) as model:
        assert model.draft is None
        assert model.generate("hello", max_new_tokens=24).token_ids == with_draft


def test_a_draft_that_was_found_not_to_pay_is_left_out(paired: Path) -> None:
    with pilotfish.load(paired, "onnx", threads=1, draft=None) as model:
        info = model.info
    for pays in (False, True):
        remember_verdict(open_model(paired), open_model(paired / "draft"), info, {"pays": pays})
        with pilotfish.load(paired, "onnx", threads=1) as model:
            assert (model.draft is not None) is pays
    name_draft(paired, pairing="identical", pays=False)  # by its maker; no verdict of this machine on the new manifest
    with pilotfish.load(paired, "onnx", threads=1) as model:
        assert model.draft is None


def test_a_missing_draft_is_an_error_before_anything_is_loaded(paired: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_draft(paired, path="elsewhere", pairing="identical")

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("something was opened")

    monkeypatch.setattr("pilotfish.loading.choosing.open_weights", loaded)
    with pytest.raises(ModelNotFoundError, match="names the draft elsewhere"):
        pilotfish.load(paired, "onnx", threads=1)


def test_a_draft_with_other_tokens_than_the_bundle_says_is_refused(paired: Path) -> None:
    tokenizer = paired / "draft" / "tokenizer.json"
    text = tokenizer.read_text("utf-8").replace("<|endoftext|>", "<|endofword|>")
    tokenizer.unlink()  # it may be a hard link
    tokenizer.write_text(text, "utf-8")
    inner = open_manifest(paired / "draft")
    write_manifest(paired / "draft", inner.model_copy(update={"files": describe_files(paired / "draft")}))
    name_draft(paired, pairing="identical")
    with pytest.raises(OptionError, match=r"padded, not identical: token 269 is '<\|endoftext\|>' in the target"):
        pilotfish.load(paired, "onnx", threads=1)
    name_draft(paired, pairing="padded")
    with pilotfish.load(paired, "onnx", threads=1) as model:
        assert model.draft is not None and model.draft.pairing is not None
        assert model.draft.pairing.kind == "padded"


def open_manifest(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "pilotfish.json").read_bytes())


def test_a_draft_may_lie_beside_its_bundle(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "target"
    shutil.copytree(bundle, folder)
    write_dropped(open_bundle(bundle), tmp_path / "draft", (2,))
    name_draft(folder, path="../draft", pairing="identical")
    with pilotfish.load(folder, "onnx", threads=1) as model:
        assert model.draft is not None


def test_the_command_line_makes_and_checks(tiny: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    made = run(app, ["draft", "make", str(tiny), "-o", str(tmp_path / "d"), "--drop", "1", "--threads", "1", "--json"])
    assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    assert facts["what"].startswith("without ") and len(facts["options"]) == 1
    options = ["--engine", "onnx", "--threads", "1", "--tokens", "8", "--per-set", "1"]
    found = run(app, ["draft", "check", str(tiny), str(tmp_path / "d"), *options])
    assert found.exit_code == 0 and "This draft" in found.stdout


def test_lower_bits_are_a_draft_of_the_same_layers(tiny: Path, tmp_path: Path) -> None:
    from pilotfish.drafts.make import lower_bits

    made = lower_bits(tiny, tmp_path / "d", "Q8_0", threads=1)
    assert made.check.pairing == "identical" and made.what.startswith("weights as Q8_0: 8.5 bits")
    assert min(s.overlap for s in made.check.sets.values()) > 0.8  # 8 bits of 4-bit weights lose little
    with pilotfish.load(made.folder, "onnx", threads=1) as model:
        assert model.info.n_layers == LAYERS
    with pytest.raises(OptionError, match="not an empty folder"):
        lower_bits(tiny, tmp_path / "d", "Q8_0", threads=1)


def test_fewer_bits_by_number_say_what_they_became(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from pilotfish.drafts.make import lower_bits

    made = lower_bits(tiny, tmp_path / "two", bits=2, threads=1)  # rows of the tiny model are no multiple of 256
    assert made.what.startswith("weights as Q2_K: ") and "not 2, because rows of it" in made.what
    assert made.check.engine == "llamacpp" and made.check.verdict in json.dumps(made.as_dict())
    for options in ({}, {"kind": "Q4_0", "bits": 4}):
        with pytest.raises(OptionError, match="a kind of GGUF file or a number of bits"):
            lower_bits(tiny, tmp_path / "other", **options)
    with pytest.raises(OptionError, match="bits a weight is 5, but must be from 2 to 4"):
        lower_bits(tiny, tmp_path / "other", bits=5)
    assert not (tmp_path / "other").exists()


def test_a_draft_that_is_there_is_stored_anew(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    smaller = tiny_gguf(tmp_path / "smaller.gguf", sizes=Sizes(layers=1), seed=3)
    options = ["--draft", str(smaller), "--bits", "4", "--threads", "1", "--json"]
    made = CliRunner().invoke(app, ["draft", "make", str(tiny), "-o", str(tmp_path / "d"), *options])
    assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    assert facts["folder"].endswith("smaller-Q4_0.gguf") and facts["check"]["target"] == tiny.name
    with pilotfish.load(facts["folder"], "llamacpp", threads=1) as model:
        assert model.info.n_layers == 1
    refused = CliRunner().invoke(app, ["draft", "make", str(tiny), "-o", str(tmp_path / "e"), "--draft", str(smaller)])
    assert refused.exit_code != 0 and not (tmp_path / "e").exists()
