"""A model of no library's class: ANNalog, which answers a molecule with others like it, against its own program.

Its blocks are Marian's with learned positions (the Transformer of Trevett's tutorial), so that its weights fit
transformers' Marian, and from there it is exported as any other.
"""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from real_weights import annalog

from pilotfish import Model, load
from pilotfish.runtime.speculation.draft_length import Fixed

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("module_cache")]

PAD, START, END = 1, 2, 3
LAYERS, WIDTH, HEADS, INNER, LONGEST = 3, 256, 8, 512, 102
MOLECULES = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "CN1CCC[C@H]1c1cccnc1",
    "CC(C)NCC(O)COc1cccc2ccccc12",
    "CN(C)CCCN1c2ccccc2Sc2ccc(Cl)cc21",
)
_NAMES = {  # its own, and Marian's
    "tok_embedding": "embed_tokens",
    "pos_embedding": "embed_positions",
    "self_attention.": "self_attn.",
    "encoder_attention.": "encoder_attn.",
    "enc_attn_layer_norm": "encoder_attn_layer_norm",
    "ff_layer_norm": "final_layer_norm",
    "positionwise_feedforward.fc_": "fc",
    "fc_o.": "out_proj.",
    **{f"fc_{p}.": f"{p}_proj." for p in "qkv"},
}


class _PlainPickle(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


def as_marian(state: dict[str, Any], vocab_size: int) -> Any:
    """The same weights in transformers' module."""
    from transformers import MarianConfig, MarianMTModel

    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _SIZES.items()}
    model = MarianMTModel(
        MarianConfig(
            vocab_size=vocab_size,
            decoder_vocab_size=vocab_size,
            d_model=WIDTH,
            max_position_embeddings=LONGEST,
            scale_embedding=True,
            activation_function="relu",
            share_encoder_decoder_embeddings=False,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
            decoder_start_token_id=START,
            forced_eos_token_id=None,
            attn_implementation="eager",
            **sides,
        )
    ).float()
    named = {"lm_head.weight": state.pop("decoder.fc_out.weight")}
    named["final_logits_bias"] = state.pop("decoder.fc_out.bias")[None]
    for name, values in state.items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        named[f"model.{name}"] = values
    model.load_state_dict(named)
    model.requires_grad_(False)
    model.train(False)
    return model


_SIZES = {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": INNER}


class Reference:
    """Its own program, as its package has it."""

    def __init__(self, package: Path, state: dict[str, Any], vocab_size: int) -> None:
        sys.path.insert(0, str(package))
        try:
            from model_files import seq2seq_attention as theirs  # type: ignore[import-not-found]
        finally:
            sys.path.remove(str(package))
        sizes = (vocab_size, WIDTH, LAYERS, HEADS, INNER, 0.1, "cpu", LONGEST)
        self.model = theirs.Seq2Seq(theirs.Encoder(*sizes), theirs.Decoder(*sizes), PAD, PAD, "cpu")
        self.model.load_state_dict(state)
        self.model.train(False)

    @torch.no_grad()
    def logits(self, source: list[int], answer: list[int]) -> Any:
        return self.model(torch.tensor([source]), torch.tensor([answer]))[0][0].numpy()

    def greedy(self, source: list[int]) -> list[int]:
        answer = [START]
        while len(answer) < LONGEST - 2 and answer[-1] != END:
            answer.append(int(self.logits(source, answer)[-1].argmax()))
        return answer[1:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, dict[str, Path]]:
    """Its own program, and bundles by the type of their weights."""
    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder
    from pilotfish.exporters.quantize.weight_form import WeightForm

    package, folder = annalog(), tmp_path_factory.mktemp("annalog")
    kept = package / "ckpt_and_vocab"
    words = _PlainPickle(io.BytesIO((kept / "stereo_experiment_vocab_ttf.pkl").read_bytes())).load()["itos"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.add_special_tokens(words[:4])
    pattern = tokenizers.Regex(r"\[[^\]]*\]|%\d\d|Br|Cl|.")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<sos> $A <eos>", special_tokens=[("<sos>", START), ("<eos>", END)]
    )
    inner.save(str(folder / "tokenizer.json"))
    state = torch.load(kept / "Lev_extended.pt", map_location="cpu", weights_only=True)
    reference, bundles = Reference(package, dict(state), len(words)), {}
    for weights in ("fp32", "int8"):
        bundles[weights] = folder / weights
        export_encoder_decoder(
            as_marian(dict(state), len(words)),
            bundles[weights],
            WeightForm(weights),
            model_id="annalog",
            tokenizer=folder / "tokenizer.json",
            activations="f32" if weights == "fp32" else "int8",
        )
    return reference, bundles


def distance(model: Model, reference: Reference, molecule: str) -> float:
    """Largest difference of a logit over the spread of all, along the reference's answer."""
    source = model.encode(molecule)
    expected = reference.greedy(source.tolist())
    session = model.target.session()
    session.encode(source)
    found = session.forward(np.array([START, *expected[:-1]]), n_logits=len(expected)).logits
    theirs = reference.logits(source.tolist(), [START, *expected[:-1]])
    session.close()
    return float(np.abs(found - theirs).max() / theirs.std())


@pytest.mark.parametrize(("weights", "allowed"), [("fp32", 1e-4), ("int8", 0.5)])
def test_it_answers_as_its_own_program_does(
    made: tuple[Reference, dict[str, Path]], weights: str, allowed: float
) -> None:
    reference, bundles = made
    answers: dict[str, list[tuple[int, ...]]] = {}
    for name, policy in (("plain", False), ("drafts", True), ("long drafts", Fixed(8))):
        with load(bundles[weights], engine="onnx", threads=2, speculate=policy) as model:
            results = [model.generate(molecule, max_new_tokens=LONGEST - 3) for molecule in MOLECULES]
            answers[name] = [result.token_ids for result in results]
            assert max(distance(model, reference, molecule) for molecule in MOLECULES) < allowed
            expected = [tuple(reference.greedy(model.encode(molecule).tolist())) for molecule in MOLECULES]
    assert answers["plain"] == answers["drafts"] == answers["long drafts"]
    assert weights == "int8" or answers["plain"] == expected
    assert all(result.finish_reason == "stop" and len(result.text) > 5 for result in results)
    assert (
        sum(r.stats.n_rounds for r in results) < sum(r.stats.n_tokens for r in results) / 2
    )  # answers resemble sources
