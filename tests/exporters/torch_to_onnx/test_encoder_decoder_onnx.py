"""transformers' encoder-decoders as ONNX graphs: every family and form, against the same model in torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiers import quick
from tiny_encoder_decoders import ENCODER_DECODERS, VOCAB_SIZE, tiny_encoder_decoder

from pilotfish.exporters.quantize.weight_form import WeightForm
from pilotfish.runtime.files.bundle import Manifest, open_bundle
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats, Indices, Tokens

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Exported = Callable[..., Path]
FORMS = {name: WeightForm(name) for name in ("fp32", "fp16", "int8", "int4")}  # type: ignore[arg-type]
CLOSE = 5e-6  # of the largest logit
_ROOM = 96


def text(n: int, seed: int = 1) -> Tokens:
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, n)


def source_of(model: PreTrainedModel, seed: int = 7) -> Any:
    """A source as the encoder takes it: ids, or features where the model hears."""
    if model.config.model_type != "whisper":
        return text(23, seed)[None]
    shape = 1, model.config.num_mel_bins, 2 * model.config.max_source_positions
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Pair:
    """Both graphs as the contract says that they are run: keys and values of the source once, one cache in place."""

    def __init__(self, folder: Path) -> None:
        self.encoder = onnxruntime.InferenceSession(folder / "encoder.onnx")
        self.decoder = onnxruntime.InferenceSession(folder / "decoder.onnx")
        self.inputs = {i.name: i.shape for i in self.decoder.get_inputs()}
        self.n_layers = sum(name.startswith("past_key_") for name in self.inputs)
        self.positions = np.zeros(0, dtype=np.int64)
        self.cache: dict[str, Floats] = {}
        self.cross: dict[str, Floats] = {}

    def encode(self, source: Any) -> Floats:
        names = [out.name for out in self.encoder.get_outputs()]
        found = dict(zip(names, self.encoder.run(None, {self.encoder.get_inputs()[0].name: source}), strict=True))
        hidden: Floats = found.pop("encoder_hidden")
        self.cross, self.positions = found, self.positions[:0]
        for name, shape in self.inputs.items():
            if name.startswith("past_"):
                _, heads, _, size = shape
                self.cache[name] = np.full((1, heads, _ROOM, size), np.nan, dtype=np.float32)
        return hidden

    def step(self, tokens: Tokens, positions: Indices | None = None, hidden: Any = None) -> dict[str, Floats]:
        """hidden: (n, n), which of the new rows each row must not see beside those that come after it."""
        n, held = len(tokens), len(self.positions)
        positions = np.arange(held, held + n) if positions is None else positions
        self.positions = np.concatenate([self.positions, positions])
        bias = np.zeros((1, 1, n, held + n), dtype=np.float32)
        if hidden is not None:
            bias[0, 0, :, held:][hidden] = -np.inf
        given = {
            "input_ids": np.asarray(tokens)[None],
            "position_ids": positions[None],
            "logit_rows": np.arange(n),
            "bias": bias,
            **self.cache,
            **self.cross,
        }
        if "entry_positions" in self.inputs:
            given["entry_positions"] = self.positions
        names = [out.name for out in self.decoder.get_outputs()]
        found = dict(zip(names, self.decoder.run(None, given), strict=True))
        self.cache = {name: found[name.replace("past", "present")] for name in self.cache}
        return found

    def keep(self, entries: Indices) -> None:
        self.positions = self.positions[entries]
        for held in self.cache.values():
            held[:, :, : len(entries)] = held[:, :, entries]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Folders by model and form, with activations in f32, each made once."""
    from pilotfish.exporters.torch_to_onnx.encoder_decoder import export_encoder_decoder_onnx

    made: dict[tuple[str, str], Path] = {}

    def folder(name: str, form: str = "fp32") -> Path:
        if (name, form) not in made:
            made[name, form] = tmp_path_factory.mktemp(f"{name}-{form}")
            export_encoder_decoder_onnx(tiny_encoder_decoder(name), made[name, form], FORMS[form], activations="f32")
        return made[name, form]

    return folder


def in_torch(model: PreTrainedModel, source: Any, tokens: Tokens, mask: Any = None) -> tuple[Floats, Floats, Floats]:
    """Encoder states, states of the decoder and logits."""
    with torch.no_grad():
        name = "input_features" if source.ndim == 3 else "input_ids"
        found = model(
            **{name: torch.from_numpy(source)},
            decoder_input_ids=torch.from_numpy(np.asarray(tokens))[None],
            decoder_attention_mask=mask,
            output_hidden_states=True,
        )
    return (
        found.encoder_last_hidden_state[0].numpy(),
        found.decoder_hidden_states[-1][0].numpy(),
        found.logits[0].numpy(),
    )


def distance(ours: Floats, theirs: Floats) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", quick(ENCODER_DECODERS, "t5", "bart", "whisper"))
def test_a_family_is_computed_as_transformers_does(exported: Exported, name: str) -> None:
    model, pair, tokens = tiny_encoder_decoder(name), Pair(exported(name)), text(60)
    source = source_of(model)
    states, hidden, logits = in_torch(model, source, tokens)
    assert np.ptp(logits.argmax(-1)) > 0  # a model that answers one thing proves little
    assert distance(pair.encode(source), states) < CLOSE
    steps = [pair.step(tokens[a:b]) for a, b in itertools.pairwise(STARTS)]
    assert distance(np.concatenate([step["logits"] for step in steps]), logits) < CLOSE
    assert distance(np.concatenate([step["hidden"] for step in steps]), hidden) < CLOSE


STARTS = (0, 1, 2, 10, 18, 19, 50, 60)  # steps of one token, of eight, and of others


@pytest.mark.parametrize("name", quick(ENCODER_DECODERS, "t5", "marian"))
def test_trees_equal_their_paths_apart(exported: Exported, name: str) -> None:
    model, pair, before, branch = tiny_encoder_decoder(name), Pair(exported(name)), text(20), text(5, seed=3)
    source = source_of(model)
    pair.encode(source)
    pair.step(before)
    parents = (-1, 0, 0, 1, 3)  # 0 - 1 - 3 - 4, and 0 - 2
    sees, depth = np.eye(5, dtype=bool), np.zeros(5, dtype=np.int64)
    for row, parent in enumerate(parents):
        if parent >= 0:
            sees[row] |= sees[parent]
            depth[row] = depth[parent] + 1
    ours = pair.step(branch, 20 + depth, ~sees)["logits"]
    for path in ([0, 1, 3, 4], [0, 2]):
        theirs = in_torch(model, source, np.concatenate([before, branch[path]]))[2]
        assert distance(ours[path], theirs[20:]) < CLOSE
    pair.keep(np.r_[0:20, 20, 21, 23])  # the path 0 - 1 - 3 is accepted
    after = text(9, seed=4)
    theirs = in_torch(model, source, np.concatenate([before, branch[[0, 1, 3]], after]))[2]
    assert distance(pair.step(after)["logits"], theirs[23:]) < CLOSE


@pytest.mark.parametrize("name", quick(ENCODER_DECODERS, "t5", "bart"))
def test_an_evicted_entry_is_one_that_is_masked(exported: Exported, name: str) -> None:
    model, pair, tokens = tiny_encoder_decoder(name), Pair(exported(name)), text(60)
    source = source_of(model)
    pair.encode(source)
    pair.step(tokens[:50])
    gone = np.r_[2:9, 30:41, 46:48]
    pair.keep(np.setdiff1d(np.arange(50), gone))
    ours = pair.step(tokens[50:], np.arange(50, 60))["logits"]
    seen = np.tril(np.ones((60, 60), dtype=bool))
    seen[50:, gone] = False
    mask = torch.from_numpy(np.where(seen, 0.0, -np.inf).astype(np.float32))[None, None]
    assert distance(ours, in_torch(model, source, tokens, mask)[2][50:]) < CLOSE


def test_another_source_is_another_answer(exported: Exported) -> None:
    model, pair, tokens = tiny_encoder_decoder("bart"), Pair(exported("bart")), text(12)
    for seed in (7, 8):
        source = source_of(model, seed)
        pair.encode(source)
        assert distance(pair.step(tokens)["logits"], in_torch(model, source, tokens)[2]) < CLOSE
    assert distance(in_torch(model, source_of(model, 7), tokens)[2], in_torch(model, source, tokens)[2]) > 0.05


def test_the_model_is_the_same_afterwards(tmp_path: Path) -> None:
    from pilotfish.exporters.torch_to_onnx.encoder_decoder import export_encoder_decoder_onnx

    for name in ("flan", "mbart"):
        model = tiny_encoder_decoder(name)
        source, kinds = source_of(model), [type(m) for m in model.modules()]
        before = in_torch(model, source, text(9))[2]
        (tmp_path / name).mkdir()
        export_encoder_decoder_onnx(model, tmp_path / name, FORMS["int4"])
        assert (in_torch(model, source, text(9))[2] == before).all()
        assert [type(m) for m in model.modules()] == kinds and model.config._attn_implementation == "eager"


def test_a_bundle_says_how_answers_begin(tmp_path: Path) -> None:
    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder

    for name, start, limit, kind in (("t5", (0,), None, "text"), ("mbart", (0, 5), 128, "text")):
        model = tiny_encoder_decoder(name)
        if name == "mbart":
            model.generation_config.forced_bos_token_id = 5  # a language
        export_encoder_decoder(model, tmp_path / name, FORMS["int8"], model_id="tiny")
        manifest = open_bundle(tmp_path / name).manifest
        assert (manifest.decoder_start, manifest.source_limit, manifest.source_kind) == (start, limit, kind)
        assert manifest.formats == {"onnx": "onnx/decoder.onnx"} and manifest.encoders == {"onnx": "onnx/encoder.onnx"}
        assert manifest.eos_ids == (2,)
        pair = Pair(tmp_path / name / "onnx")
        assert pair.encode(source_of(model)).shape[0] == 23 and pair.step(text(3))["logits"].shape == (3, VOCAB_SIZE)


@pytest.mark.parametrize("name", quick(ENCODER_DECODERS, "flan", "whisper"))
def test_the_engine_runs_it(tmp_path: Path, name: str) -> None:
    from pilotfish.backends import get
    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder

    model, tokens = tiny_encoder_decoder(name), text(30)
    source = source_of(model)
    export_encoder_decoder(model, tmp_path / "b", FORMS["fp32"], model_id="tiny", activations="f32")
    weights = get("onnx").open(open_model(tmp_path / "b"), device=None, threads=2, kv_dtype=None, options={})
    session = weights.session()
    session.encode(source[0])
    ours = [session.forward(tokens[a:b], n_logits=b - a).logits.copy() for a, b in ((0, 1), (1, 9), (9, 30))]
    assert distance(np.concatenate(ours), in_torch(model, source, tokens)[2]) < CLOSE
    weights.close()


def test_a_manifest_with_half_a_pair_is_refused(tmp_path: Path) -> None:
    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder

    whole = export_encoder_decoder(
        tiny_encoder_decoder("bart"), tmp_path / "b", FORMS["int8"], model_id="tiny"
    ).model_dump()
    for change in ({"encoders": {"onnx": "gone"}}, {"formats": {}}):
        with pytest.raises(ValueError, match=r"not listed under files|no decoder in"):
            Manifest(**{**whole, **change})
