"""Translators of many languages, from what the hub holds of them to an answer: transformers' own, whoever drafts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece_files import SPECIAL, pieces, write_sentencepiece
from tiers import quick
from tiny_encoder_decoders import tiny_encoder_decoder
from typer.testing import CliRunner

from pilotfish import load
from pilotfish.apps.cli import app
from pilotfish.exporters.sources.language_codes import M2M100, NLLB
from pilotfish.exporting.export import export
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.files.bundle import read_manifest
from pilotfish.runtime.speculation.draft_length import Fixed

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

pytestmark = pytest.mark.usefixtures("module_cache")

TEXT = "the shark has a pilot fish the shark has a pilot"
FAIRSEQ = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}


def nllb(folder: Path) -> None:
    model = write_sentencepiece(folder / "sentencepiece.bpe.model", pieces())
    said = {"src_lang": "eng_Latn", "tgt_lang": None, "tokenizer_class": "NllbTokenizer"}
    save(folder, "m2m100", len(pieces()) + 1 + len(NLLB) + 1, said, **FAIRSEQ)
    assert model.is_file()


def m2m100(folder: Path) -> None:
    write_sentencepiece(folder / "sentencepiece.bpe.model", pieces())
    listed = ["<s>", "<pad>", "</s>", "<unk>", *reversed([text for text, _, _ in pieces()[3:] if text != "▁has"])]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(listed)}))
    save(folder, "m2m100", len(listed) + len(M2M100["m2m100"]) + 8, {"src_lang": "en"}, **FAIRSEQ)


def marian(folder: Path) -> None:
    write_sentencepiece(folder / "source.spm", pieces())
    write_sentencepiece(folder / "target.spm", [*SPECIAL, ("▁der", -1.0, 1), ("▁hai", -2.0, 1)])
    listed = ["</s>", "<unk>", "▁der", "▁hai", *(text for text, _, _ in pieces()[3:]), ">>deu<<", ">>fra<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(listed)}))
    pad = len(listed) - 1
    ids = {"eos_token_id": 0, "pad_token_id": pad, "decoder_start_token_id": pad, "bos_token_id": None}
    save(folder, "marian", len(listed), {"source_lang": "en", "target_lang": "de"}, **ids)


def save(folder: Path, name: str, n_tokens: int, said: dict[str, Any], **settings: Any) -> None:
    """A model whose weights are pickled, as the hub's translators are."""
    model = tiny_encoder_decoder(name, vocab_size=n_tokens, init_std=0.3, **settings)
    model.config.save_pretrained(folder)
    kept = {part: values for part, values in model.state_dict().items() if "embed_positions" not in part}
    torch.save(kept, folder / "pytorch_model.bin")
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "generation_config.json").write_text(json.dumps({**settings, "num_beams": 5, "max_length": 200}))


MADE = {"nllb": nllb, "m2m100": m2m100, "marian": marian}
ASKED: dict[str, list[dict[str, str]]] = {
    "nllb": [{}, {"language": "deu_Latn"}, {"language": "fra_Latn", "source_language": "spa_Latn"}],
    "m2m100": [{}, {"language": "de"}, {"language": "en", "source_language": "en"}],  # the same twice is no mistake
    "marian": [{}, {"language": "fra"}],
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each model its folder, exported to ONNX when it is first asked for."""
    return {name: tmp_path_factory.mktemp(name) for name in MADE}


def bundle(folder: Path, name: str, to: str = "onnx") -> Path:
    out = folder / f"bundle-{to}"
    if not out.exists():
        if not (folder / "config.json").exists():
            MADE[name](folder)
        export(folder, out, to=(to,), weights="fp32", activations="f32")
    return out


def theirs(folder: Path, source: list[int], language: int | None, **options: Any) -> list[int]:
    """What transformers answers to these tokens, without start and end."""
    from pilotfish.exporters.open_source import open_source

    model: Any = open_source(folder).torch_model()
    forced = {} if language is None else {"forced_bos_token_id": language}
    with torch.no_grad():
        found = model.generate(torch.tensor([source]), do_sample=False, max_new_tokens=14, **forced, **options)
    ids = found[0].tolist()[1 if language is None else 2 :]
    end = model.config.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


@pytest.mark.parametrize("cell", quick([f"{n} {to}" for n in MADE for to in ("onnx", "openvino")], "nllb onnx"))
def test_an_answer_is_that_of_transformers(bundles: dict[str, Path], cell: str) -> None:
    name, to = cell.split()
    made = bundle(bundles[name], name, to)
    manifest = read_manifest(made)
    assert manifest.reports[to]["max_difference"] < 1e-3
    languages, in_source = manifest.generation.languages, manifest.generation.language_in_source
    found = {}
    for speculate in (False, Fixed(3)):
        with load(made, engine=to, threads=2, speculate=speculate) as model:
            for asked in ASKED[name]:
                source = model.encode(TEXT).tolist()
                language = languages[asked["language"]] if "language" in asked else None
                if "source_language" in asked:
                    source[0] = languages[asked["source_language"]]
                if in_source and language is not None:
                    source, language = [language, *source], None
                n_forced = int(language is not None)
                expected = theirs(bundles[name], source, language, num_beams=1)
                answer = model.generate(TEXT, max_new_tokens=14 - n_forced, **asked)  # type: ignore[arg-type]
                ids = [i for i in answer.token_ids if i not in model.tokenizer.eos_ids]
                assert ids == expected, asked
                assert answer.text == model.tokenizer.decode(expected)
                assert answer.stats.n_prompt == len(source)
                found[tuple(asked)] = expected
    assert len({tuple(ids) for ids in found.values()}) == len(found)  # each language has an answer of its own
    with load(made, engine=to, threads=2, speculate=False) as model:
        for asked in ASKED[name][-1:]:
            language = None if in_source else languages[asked["language"]]
            source = model.encode(TEXT).tolist()
            source = [languages[asked["language"]], *source] if in_source else source
            if "source_language" in asked:
                source[0] = languages[asked["source_language"]]
            expected = theirs(bundles[name], source, language, num_beams=4)
            best = model.generate(TEXT, beams=4, max_new_tokens=14 - int(language is not None), **asked)  # type: ignore[arg-type]
            assert [i for i in best.token_ids if i not in model.tokenizer.eos_ids] == expected


def test_a_language_that_is_no_token_is_refused_with_close_ones(bundles: dict[str, Path]) -> None:
    made = bundle(bundles["nllb"], "nllb")
    with load(made, engine="onnx", threads=2, speculate=False) as model:
        for option, name in (("language", "language"), ("source_language", "source language")):
            said: Any = {option: "de_Latn"}
            with pytest.raises(
                OptionError, match=rf"{name} 'de_Latn'; close are .*deu_Latn.*`pilotfish inspect` lists all 202"
            ):
                model.generate(TEXT, **said)
        with pytest.raises(OptionError, match=r"'DEU_LATN'; close are deu_Latn"):
            model.generate(TEXT, language="DEU_LATN")
    shown = CliRunner().invoke(app, ["inspect", str(made)]).stdout
    assert "languages" in shown and "zul_Latn" in shown


def test_the_command_line_takes_both_languages(bundles: dict[str, Path]) -> None:
    made = bundle(bundles["nllb"], "nllb")
    line = ["run", str(made), TEXT, "--json", "--threads", "2", "--engine", "onnx", "-n", "8"]
    done = CliRunner().invoke(app, [*line, "--language", "deu_Latn", "--source-language", "fra_Latn"])
    assert done.exit_code == 0, done.output
    with load(made, engine="onnx", threads=2, speculate=False) as model:
        asked: Any = {"max_new_tokens": 8, "language": "deu_Latn"}
        expected = list(model.generate(TEXT, source_language="fra_Latn", **asked).token_ids)
        assert json.loads(done.stdout)["token_ids"] == expected != list(model.generate(TEXT, **asked).token_ids)
