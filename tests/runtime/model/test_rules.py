"""A model's own settings for generating: what transformers' generate() says under them, whoever drafts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enumerate_randomness import LazyRng, distribution_of
from enumerated_loop import (  # noqa: F401 - a fixture among them
    BEGIN,
    POLICIES,
    SETTINGS,
    V,
    answer_distribution,
    run_answer,
    still_clock,
    total_variation,
)
from enumerated_loop import SOURCE as READ
from tiers import quick
from tiny_families import VOCAB_SIZE, tiny_tokenizer
from typer.testing import CliRunner

from pilotfish import Beams, Model, Sampling, load
from pilotfish.apps.cli import app
from pilotfish.backends import get
from pilotfish.exporting.export import export
from pilotfish.runtime.decoding.loop import Limits
from pilotfish.runtime.errors import ModelFileError, OptionError, PilotfishWarning
from pilotfish.runtime.files.bundle import read_manifest
from pilotfish.runtime.files.generation_settings import checked_settings, languages_of, said_by
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.runtime.model.rules import AnswerOptions, Frame, Rules
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH
from pilotfish.runtime.sampling.generation import Generation
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.draft_weights import Shared
from pilotfish.runtime.speculation.proposers import SourceCopy, Suffix
from pilotfish.runtime.text.prompts import Task
from pilotfish.runtime.text.tokenizer import Tokenizer
from pilotfish.testing.toy_model import toy_model, toy_weights

# One processor at a time


N_TOKENS, START = 12, 3  # of the vocabulary, and of the prompt
SOURCE = [5, 6, 7, 5, 8, 0]
ENDS = (1, 2)
WORDS = [[3, 4], [4, 4, 5], [6, 7, 8, 9]]


def theirs(name: str) -> Any:
    """transformers' processor of one setting, for a prompt of START tokens and an end at 9."""
    torch = pytest.importorskip("torch")
    made = pytest.importorskip("transformers").generation.logits_process
    read = torch.tensor([SOURCE])
    return {
        "repetition_penalty": lambda: made.RepetitionPenaltyLogitsProcessor(1.7),
        "encoder_repetition_penalty": lambda: made.EncoderRepetitionPenaltyLogitsProcessor(1.4, read),
        "no_repeat_ngram_size 1": lambda: made.NoRepeatNGramLogitsProcessor(1),
        "no_repeat_ngram_size 3": lambda: made.NoRepeatNGramLogitsProcessor(3),
        "encoder_no_repeat_ngram_size 1": lambda: made.EncoderNoRepeatNGramLogitsProcessor(1, read),
        "encoder_no_repeat_ngram_size 2": lambda: made.EncoderNoRepeatNGramLogitsProcessor(2, read),
        "encoder_no_repeat_ngram_size 5": lambda: made.EncoderNoRepeatNGramLogitsProcessor(5, read),
        "bad_words_ids": lambda: made.NoBadWordsLogitsProcessor(WORDS, eos_token_id=list(ENDS)),
        "sequence_bias": lambda: made.SequenceBiasLogitsProcessor([[word, 1.5] for word in [*WORDS, [9]]]),
        "min_length": lambda: made.MinLengthLogitsProcessor(6, list(ENDS)),
        "min_new_tokens": lambda: made.MinNewTokensLengthLogitsProcessor(START, 4, list(ENDS)),
        "forced_eos_token_id": lambda: made.ForcedEOSTokenLogitsProcessor(9, list(ENDS)),
        "exponential_decay_length_penalty": lambda: made.ExponentialDecayLengthPenalty((2, 1.3), list(ENDS), START),
    }[name]()


OURS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.4},
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size 3": {"no_repeat_ngram_size": 3},
    "encoder_no_repeat_ngram_size 1": {"encoder_no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size 2": {"encoder_no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size 5": {"encoder_no_repeat_ngram_size": 5},
    "bad_words_ids": {"bad_words_ids": WORDS},
    "sequence_bias": {"sequence_bias": [(word, 1.5) for word in [*WORDS, [9]]]},
    "min_length": {"min_length": 6},
    "min_new_tokens": {"min_new_tokens": 4, "min_length": 99},
    "forced_eos_token_id": {"forced_eos_token_id": ENDS},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 1.3)},
}


@pytest.mark.parametrize("name", OURS)
def test_a_setting_does_what_transformers_processor_of_that_name_does(name: str) -> None:
    processor = theirs(name)
    import torch

    frame = Frame(START, end=9, ends=ENDS, read=np.array(SOURCE))
    (ours,) = Rules(generation=Generation.model_validate(OURS[name])).processors(frame)
    rng, n_changed = np.random.default_rng(0), 0
    for length in range(START, 10):
        for low in (0, 3, 5):  # narrow ranges of tokens repeat themselves
            for _ in range(20):
                context = rng.integers(low, min(low + 5, N_TOKENS), length)
                if rng.random() < 0.3 and length > 4:
                    context[-4:] = SOURCE[:4]
                logits = rng.normal(0, 2, N_TOKENS).astype(np.float32)
                expected = processor(torch.from_numpy(context)[None], torch.from_numpy(logits.copy())[None])[0].numpy()
                n_changed += not np.array_equal(expected, logits)
                np.testing.assert_allclose(ours(logits.copy(), context), expected, rtol=1e-6)
    assert n_changed > 10


def test_an_end_without_a_chance_gets_none_by_growing() -> None:
    rules = Rules(generation=Generation(min_new_tokens=9, exponential_decay_length_penalty=(0, 2.0)))
    logits = np.ones(4, np.float32)
    for processor in rules.processors(Frame(1, ends=(2,))):
        logits = processor(logits, np.zeros(5, np.int64))
    assert logits.tolist() == [1, 1, -np.inf, 1]


# The distribution, with drafts


WANTED = 4
RULES = {
    "no repeats": Generation(no_repeat_ngram_size=2),
    "penalties": Generation(repetition_penalty=1.7, encoder_repetition_penalty=0.7, sequence_bias=(((0, 1), 0.8),)),
    "lengths": Generation(min_new_tokens=3, forced_eos_token_id=(1,), exponential_decay_length_penalty=(1, 1.5)),
    "words": Generation(bad_words_ids=((0, 2), (1, 1, 0)), encoder_no_repeat_ngram_size=3),
}
FRAME = Frame(len(BEGIN), 1, len(BEGIN) + WANTED, (1,), READ)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("settings", quick(SETTINGS, *list(SETTINGS)[:2]))
@pytest.mark.parametrize("rules", RULES)
def test_the_distribution_is_the_same_with_drafts(rules: str, settings: str, policy: str) -> None:
    sampling = Rules(generation=RULES[rules]).applied(SETTINGS[settings], FRAME)
    assert len(sampling.processors) > len(SETTINGS[settings].processors)
    whole = set()  # answers end behind a 1
    for sequence in itertools.product(range(V), repeat=WANTED):
        whole.add(sequence[: sequence.index(1) + 1] if 1 in sequence else sequence)
    expected = answer_distribution(sampling, whole)
    assert sum(expected.values()) == pytest.approx(1.0)
    drafters = SourceCopy().reading(READ, len(BEGIN)), Suffix().reading(READ, len(BEGIN))
    limits = Limits(max_new_tokens=WANTED, stop_ids=frozenset({1}))

    def run(rng: LazyRng) -> tuple[int, ...]:
        return run_answer(rng, sampling, drafters, policy, ANY_WIDTH, limits)

    assert total_variation(distribution_of(run), expected) <= 1e-12


def test_a_caller_s_repetition_penalty_takes_the_model_s_place() -> None:
    rules = Rules(generation=Generation(repetition_penalty=2.0))
    logits, context = np.array([1.0, 4.0], np.float32), np.array([1])
    for asked, left in ((1.0, 2.0), (4.0, 1.0)):
        sampling = rules.applied(Sampling(repetition_penalty=asked), Frame(1))
        assert sampling._adjust(logits, context, 1)[1] == left


# Families, against generate()


TEXT = "the pilot fish follows the shark through the water"
FORCED = {"forced_bos_token_id": 9, "forced_eos_token_id": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "no repeats": {"no_repeat_ngram_size": 2},
    "summary": {"no_repeat_ngram_size": 3, "min_length": 12, "max_length": 24, "length_penalty": 2.0, **FORCED},
    "penalties": {"repetition_penalty": 1.8, "encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
    "words": {},  # chosen by what is said without
    "shortest": {"min_new_tokens": 18, "suppress_tokens": [5], "max_new_tokens": 20, **FORCED},
    "ends": {"exponential_decay_length_penalty": [6, 1.7], "max_new_tokens": 20, **FORCED},
}


class Pair:
    """A tiny model in transformers and on ONNX Runtime, in f32."""

    def __init__(self, name: str, folder: Path) -> None:
        from tiny_encoder_decoders import tiny_encoder_decoder

        from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder
        from pilotfish.exporters.quantize.weight_form import WeightForm

        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        self.hears = name == "whisper"
        self.model: Any = tiny_encoder_decoder(name, seed=5, vocab_size=VOCAB_SIZE)
        self.model.generation_config.update(forced_eos_token_id=None, eos_token_id=2)
        export_encoder_decoder(self.model, folder / "b", WeightForm("fp32"), model_id="tiny", activations="f32")
        self.weights: Weights = get("onnx").open(open_model(folder / "b"), device=None, threads=2, kv_dtype=None)
        self.tokenizer = Tokenizer.from_file(folder / "tokenizer.json", eos_ids=[2])
        session = self.weights.session(64)
        self.calibration = calibrate(session)
        session.close()
        heard = np.random.default_rng(0).normal(0, 1, (20, 120)).astype(np.float32)
        self.prompt: Any = heard if self.hears else TEXT
        self.base = self.model.generation_config.to_dict()

    def told(self, said: dict[str, Any], **asked: Any) -> list[int]:
        """transformers' answer, without the token that it starts from and what is forced to follow."""
        import torch
        from transformers import GenerationConfig

        self.model.generation_config = GenerationConfig.from_dict({**self.base, **said})
        read = self.prompt if self.hears else self.tokenizer.encode_source(TEXT)
        with torch.no_grad():
            found = self.model.generate(torch.from_numpy(read)[None], do_sample=False, use_cache=False, **asked)[
                0
            ].tolist()
        if not self.hears:
            return found[1 + ("forced_bos_token_id" in said) :]
        found = found[1:] if found[:1] == [0] else found
        return found if len(found) == asked.get("max_new_tokens") else [*found, 2]  # which it leaves out

    def ours(self, said: dict[str, Any], policy: Any = None, **asked: Any) -> list[int]:
        found = checked_settings({**said, "eos_token_id": 2}, VOCAB_SIZE)
        weights: Any = Shared(self.weights)
        if "forced_bos_token_id" in said:
            weights = Begun(self.weights, (0, said["forced_bos_token_id"]))
        rules = Rules(found.suppress_tokens, found.begin_suppress_tokens, found.generation)
        with Model(weights, self.tokenizer, None, self.calibration, policy=policy, rules=rules) as model:
            return list(model.generate(self.prompt, **asked).token_ids)


class Begun:
    """The same weights, whose answers go on from other tokens."""

    def __init__(self, weights: Weights, start: tuple[int, ...]) -> None:
        assert weights.info.encoder is not None
        self.info = replace(weights.info, encoder=replace(weights.info.encoder, decoder_start=start))
        self.session = weights.session

    def close(self) -> None:
        """They are another's."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pair]]:
    for package in ("torch", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            made[name] = Pair(name, tmp_path_factory.mktemp(name))
        return made[name]

    yield pair
    for one in made.values():
        one.weights.close()


NAMES = quick(("t5", "bart", "mbart", "pegasus", "marian", "whisper"), "t5", "bart", "whisper")


@pytest.mark.parametrize("settings", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers(name: str, settings: str, pairs: Callable[[str], Pair]) -> None:
    pair, said = pairs(name), dict(FAMILIES[settings])
    if pair.hears:
        said = {k: v for k, v in said.items() if not k.startswith(("encoder_", "forced_bos"))}
    free = pair.ours({}, max_new_tokens=16)
    if settings == "words":
        said = {"bad_words_ids": [free[:2], [free[4]], [2]], "sequence_bias": [[[free[0]], -3.0], [free[6:9], -9.0]]}
    asked = {} if "max_length" in said or "max_new_tokens" in said else {"max_new_tokens": 16}
    expected = pair.told(said, num_beams=1, **asked)
    assert pair.ours(said, **asked) == expected != free[: len(expected)]
    assert pair.ours(said, Fixed(4), **asked) == expected
    assert pair.ours(said, Fixed(4), temperature=1.0, seed=2, **asked) == pair.ours(
        said, temperature=1.0, seed=2, **asked
    )
    said.pop("encoder_repetition_penalty", None)  # which transformers applies to the first of the beams alone
    beams = pair.told(said, num_beams=3, **asked)
    while beams and beams[-1] == 0:
        beams.pop()  # padding
    assert pair.ours(said, beams=3, **asked) == beams


def test_beams_asked_for_by_number_are_weighed_as_the_settings_say() -> None:
    found, asked = {}, {"max_new_tokens": 14}
    for penalty in (-9.0, 9.0):
        rules = Rules(generation=Generation(length_penalty=penalty, early_stopping="never"))
        with toy_model(toy_weights(6.0), rules=rules) as model:
            found[penalty] = model.generate("some words", beams=4, **asked).token_ids
            other = model.generate("some words", beams=Beams(4, -penalty, "never"), **asked).token_ids
            assert model.generate("some words", beams=Beams(4, penalty, "never"), **asked).token_ids == found[penalty]
            assert other != found[penalty]
    assert len(found[-9.0]) < len(found[9.0])


# From a folder to an answer


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an mBART with three languages, whose settings do much and name what cannot be done."""
    pytest.importorskip("torch")
    import tokenizers
    from tiny_encoder_decoders import save_encoder_decoder

    folder = save_encoder_decoder("mbart", tmp_path_factory.mktemp("mbart") / "source")
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.add_special_tokens(["fr_XX", "de_DE", "zh_CN"])
    inner.save(str(folder / "tokenizer.json"))
    settings = {
        "decoder_start_token_id": 2,
        "eos_token_id": 2,
        "forced_bos_token_id": inner.token_to_id("fr_XX"),
        "no_repeat_ngram_size": 2,
        "max_length": 12,
        "num_beams": 5,
        "length_penalty": 0.8,
        "temperature": 0.6,
        "guidance_scale": 1.5,
        "a_new_thing": [1],
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def bundle(translator: Path, module_cache: None) -> Path:
    pytest.importorskip("onnxscript")
    out = translator.parent / "bundle"
    with pytest.warns(PilotfishWarning, match="sets a_new_thing, guidance_scale for generating, and that is not done"):
        export(translator, out, to=("onnx",), weights="fp32", activations="f32")
    return out


def test_settings_of_a_folder_are_kept_or_named(bundle: Path) -> None:
    found = read_manifest(bundle).generation
    assert found.no_repeat_ngram_size == 2 and found.num_beams == 5 and found.length_penalty == 0.8
    assert list(found.languages) == ["de_DE", "fr_XX", "zh_CN"]
    assert found.unheeded == ("a_new_thing", "guidance_scale")
    shown = " ".join(CliRunner().invoke(app, ["inspect", str(bundle)]).stdout.split())
    assert "no_repeat_ngram_size 2" in shown and "languages de_DE" in shown


def test_an_answer_is_in_the_language_that_is_asked_for(translator: Path, bundle: Path) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(translator).eval()
    model.generation_config.update(guidance_scale=None, num_beams=1, temperature=1.0)
    found = {}
    for speculate in (False, Fixed(3)):
        with load(bundle, engine="onnx", threads=2, speculate=speculate) as loaded:
            source = torch.from_numpy(loaded.encode(TEXT))[None]
            for language in (None, "fr_XX", "de_DE", "zh_CN"):
                forced = {} if language is None else {"forced_bos_token_id": loaded.tokenizer.id_of(language)}
                with torch.no_grad():
                    expected = model.generate(source, do_sample=False, **forced)[0].tolist()[2:]
                found[language] = list(loaded.generate(TEXT, language=language).token_ids)
                assert found[language] == expected
            with pytest.raises(OptionError, match="language 'it_IT'; those it has are de_DE, fr_XX, zh_CN"):
                loaded.generate(TEXT, language="it_IT")
    assert found[None] == found["fr_XX"] != found["de_DE"] != found["zh_CN"]
    assert len(found["fr_XX"]) == 10  # of twelve tokens two are not generated
    with load(bundle, engine="onnx", threads=2, suppress=False) as loaded:
        free = loaded.generate(TEXT, language="de_DE").token_ids
        assert len(set(itertools.pairwise(free))) < len(free) - 1  # it repeats itself


def test_the_command_line_asks_for_a_language(bundle: Path) -> None:
    line = ["run", str(bundle), TEXT, "--json", "--threads", "2", "--language"]
    done = CliRunner().invoke(app, [*line, "de_DE"])
    assert done.exit_code == 0, done.output
    with load(bundle, engine="onnx", threads=2) as loaded:
        assert json.loads(done.stdout)["token_ids"] == list(loaded.generate(TEXT, language="de_DE").token_ids)
    assert "those it has are" in str(CliRunner().invoke(app, [*line, "x"]).exception)


def test_a_decoder_s_settings_are_heeded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from tiny_families import save_tiny
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    folder = save_tiny("llama", tmp_path / "source")
    said = {"repetition_penalty": 1.6, "no_repeat_ngram_size": 3, "suppress_tokens": [7, 8], "eos_token_id": 2}
    drawn = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "max_length": 40}
    (folder / "generation_config.json").write_text(json.dumps({**said, **drawn}))
    export(folder, tmp_path / "b", to=("onnx",), weights="fp32", activations="f32")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for speculate in (False, Fixed(3)):
        with load(tmp_path / "b", engine="onnx", threads=2, speculate=speculate) as loaded:
            prompt = torch.from_numpy(loaded.encode(TEXT, raw=True))[None]
            with torch.no_grad():
                expected = model.generate(prompt, do_sample=False, max_new_tokens=24)[0, prompt.shape[1] :].tolist()
            result = loaded.generate(TEXT, raw=True, max_new_tokens=24)
            assert list(result.token_ids) == expected
            assert result.token_ids == loaded.generate(TEXT, raw=True, max_new_tokens=24).token_ids
            assert len(loaded.generate(TEXT, raw=True).token_ids) > 30  # how long is the caller's to say
    with load(tmp_path / "b", engine="onnx", threads=2, suppress=False) as loaded:
        assert list(loaded.generate(TEXT, raw=True, max_new_tokens=24).token_ids) != expected


def test_an_older_folder_says_it_in_config_json() -> None:
    config = {"no_repeat_ngram_size": 3, "d_model": 64, "bos_token_id": 1, "force_bos_token_to_be_generated": True}
    assert said_by({}, config) == {"no_repeat_ngram_size": 3, "forced_bos_token_id": 1}
    assert said_by({"min_length": 4}, config) == {"min_length": 4}  # the other file alone, as in transformers
    assert said_by({}, {"forced_bos_token_id": None, "num_beams": 4}) == {"num_beams": 4}


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"no_repeat_ngram_size": "many"}, "no_repeat_ngram_size = 'many'"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty = 0\.0"),
        ({"min_length": -3}, "min_length = -3"),
        ({"bad_words_ids": [["x", 3]]}, "bad_words_ids"),
        ({"bad_words_ids": 3}, "bad_words_ids is 3"),
        ({"sequence_bias": [[3, 1.0]]}, "must hold pairs"),
        ({"exponential_decay_length_penalty": [3]}, "exponential_decay_length_penalty"),
    ],
)
def test_settings_that_are_damaged_are_named(said: dict[str, Any], error: str) -> None:
    with pytest.raises(ModelFileError, match=error):
        checked_settings(said, 50)


def test_settings_at_their_defaults_are_not_named() -> None:
    defaults = {"guidance_scale": 1.0, "num_beam_groups": 1, "diversity_penalty": 0.0, "renormalize_logits": False}
    found = checked_settings(
        {**defaults, "eos_token_id": 1, "top_k": 50, "transformers_version": "5", "dola_layers": None}, 9
    )
    assert found.generation == Generation()
    assert checked_settings({"num_beam_groups": 2, "stop_strings": ["x"]}, 9).generation.unheeded == (
        "num_beam_groups",
        "stop_strings",
    )


def test_a_language_replaces_the_one_that_is_set_or_comes_behind_the_start() -> None:
    rules = Rules(generation=Generation(languages={"a": 7, "b": 8}))
    for context, expected in (([2, 7], [2, 8]), ([2], [2, 8]), ([7], [8])):
        task = Task(np.array(context), np.arange(3))
        assert rules.asked(task, AnswerOptions("b"), False).context.tolist() == expected
    inner = tiny_tokenizer()
    inner.add_special_tokens(["fr_XX", "zho_Hans", "fr_", "<mask>"])
    assert list(languages_of(Tokenizer(inner)).tokens) == ["fr_XX", "zho_Hans"]
    with toy_model(toy_weights()) as model:
        for asked in ({"language": "fr"}, {"source_language": "fr"}):
            with pytest.raises(OptionError, match="it has none; drop it"):
                model.generate("a text", **asked)  # type: ignore[arg-type]


def test_a_source_s_language_is_told_where_the_tokenizer_puts_it() -> None:
    rules = Rules(generation=Generation(languages={"a": 7, "b": 8}))
    asked = AnswerOptions("a", source_language="b")
    for source, expected in (([7, 3, 4, 2], [8, 3, 4, 2]), ([3, 4, 2, 7], [3, 4, 2, 8]), ([8, 2], [8, 2])):
        task = Task(np.array([2]), np.array(source))
        found = rules.asked(task, asked, False)
        assert found.source is not None and found.source.tolist() == expected
        assert found.context.tolist() == [2, 7] and task.source is not None and task.source.tolist() == source
    for refused in (Task(np.array([2]), np.array([3, 4, 2])), Task(np.array([2, 3]))):  # it tells none; a decoder
        with pytest.raises(OptionError, match="is not told which language a text is in"):
            rules.asked(refused, asked, False)


def test_a_language_in_the_source_comes_first_and_once() -> None:
    rules = Rules(generation=Generation(languages={"a": 7, "b": 8}, language_in_source=True))
    for source in ([3, 4, 0], [7, 3, 4, 0], [8, 3, 4, 0]):
        found = rules.asked(Task(np.array([9]), np.array(source)), AnswerOptions("b"), False)
        assert found.source is not None and found.source.tolist() == [8, 3, 4, 0] and found.context.tolist() == [9]
    with pytest.raises(OptionError, match="is not told which language a text is in"):
        rules.asked(Task(np.array([9]), np.array([7, 3])), AnswerOptions(source_language="a"), False)


def test_a_decoder_takes_no_language() -> None:
    for asked in (AnswerOptions("fr"), AnswerOptions(source_language="fr")):
        with pytest.raises(OptionError, match=r"no token for the (source )?language 'fr'; it has none; drop it"):
            Rules().asked(Task(np.array([1, 2])), asked, False)
