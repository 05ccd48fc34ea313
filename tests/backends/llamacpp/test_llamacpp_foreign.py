"""llama.cpp opens files of architectures that nothing here knows: what sessions can do with each is found by trying."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, own_cache, pilotfish, refused  # noqa: F401
from tiers import quick
from tiny_foreign import FAMILIES, STATES, write_foreign

from pilotfish import load
from pilotfish.backends import get
from pilotfish.loading.measuring import known_answer
from pilotfish.runtime.errors import AbilityError, ModelFileError, OptionError, PilotfishWarning, UnsupportedModelError
from pilotfish.runtime.files.gguf_model import GgufModel
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Session, Weights
from pilotfish.runtime.model.model import Model
from pilotfish.runtime.profiling.canary import WRONG, canary_error
from pilotfish.testing import CHECKS, Shared, Subject
from pilotfish.testing.tiny_models import tiny_gguf

BACKEND = get("llamacpp")
pytestmark = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")

QUICK = ("gemma2", "mamba", "lfm2")  # windows and caps; a state; a state that can be taken back, beside a cache
NOISE = 0.05  # of f32 weights over keys in f16 and values in bf16
PROMPTS = ("the hello and the hello and the hello", "12 the 12 the 12 the")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("foreign")


def written(folder: Path, name: str) -> Path:
    path = folder / f"{name}.gguf"
    return path if path.exists() else write_foreign(folder, [name])[name]


@pytest.fixture(scope="module", params=quick(FAMILIES, *QUICK))
def family(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path]:
    return request.param, written(folder, request.param)


@pytest.fixture(scope="module")
def pair(family: tuple[str, Path]) -> Iterator[tuple[Model, Model]]:
    """With drafts and without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PilotfishWarning)
        drafting = load(family[1], engine="llamacpp", threads=1)
    with drafting, load(family[1], engine="llamacpp", threads=1, speculate=False) as plain:
        yield drafting, plain


def test_drafts_change_nothing(family: tuple[str, Path], pair: tuple[Model, Model]) -> None:
    drafting, plain = pair
    rewinds = STATES.get(family[0])
    assert drafting.info.rewinds == rewinds
    drafted = 0
    for prompt in PROMPTS:
        ours = drafting.generate(prompt, raw=True, max_new_tokens=48)
        theirs = plain.generate(prompt, raw=True, max_new_tokens=48)
        assert ours.token_ids == theirs.token_ids
        drafted += ours.stats.drafted
        assert max(r.width for r in ours.rounds) <= (33 if rewinds is None else rewinds + 1)
    assert (drafted == 0) == (rewinds == 0)


def test_a_second_turn_is_that_of_a_new_conversation(pair: tuple[Model, Model]) -> None:
    drafting, plain = pair
    chat = drafting.chat()
    chat.send("hello the", max_new_tokens=12)
    second = chat.send("and the", max_new_tokens=12)
    assert second.token_ids == plain.generate(chat.messages[:-1], max_new_tokens=12).token_ids
    changed = [{"role": "user", "content": "hello and"}]  # goes on from the middle of what was read
    assert (
        drafting.generate(changed, max_new_tokens=12).token_ids == plain.generate(changed, max_new_tokens=12).token_ids
    )


def test_a_session_evicts_or_says_why_not(family: tuple[str, Path]) -> None:
    def compressed() -> Model:
        return load(family[1], engine="llamacpp", threads=1, cache="sinks:budget=48,every=8", speculate=False)

    if family[0] in STATES:
        with pytest.raises(AbilityError, match=r"sums up what it has read in a state.* Leave out .*cache"):
            compressed()
        return
    with compressed() as model:
        result = model.generate(PROMPTS[0], raw=True, max_new_tokens=64)
        assert result.stats.kv_entries is not None and result.stats.kv_entries <= 48 + 8


def test_a_fork_goes_on_alike(family: tuple[str, Path]) -> None:
    weights = opened(family[1])
    session = weights.session(64)
    session.forward(np.arange(20), n_logits=0)
    other = session.fork()
    assert np.array_equal(
        other.forward(np.arange(3), n_logits=3).logits, session.forward(np.arange(3), n_logits=3).logits
    )
    weights.close()


def test_a_known_answer_is_its_own_row_by_row(family: tuple[str, Path]) -> None:
    canary = known_answer(open_model(family[1]), lambda what, share: None)
    assert canary is not None
    weights = opened(family[1])
    session = weights.session(64)
    rows = [session.forward(np.array([token]), n_logits=1).logits[0].copy() for token in canary.tokens]
    assert [int(row.argmax()) for row in rows[-len(canary.best) :]] == list(canary.best)
    session.truncate(0)
    assert canary_error(session, canary) < WRONG / 10
    wrong = canary.model_copy(update={"best": tuple((best + 1) % 200 for best in canary.best)})
    assert canary_error(session, wrong) > WRONG
    weights.close()


def opened(path: Path) -> Weights:
    return BACKEND.open(open_model(path), device=None, threads=1, kv_dtype=None)


@pytest.fixture(scope="module")
def shared(family: tuple[str, Path]) -> Iterator[Subject]:
    weights = opened(family[1])
    yield Subject(lambda: Shared(weights), NOISE)
    weights.close()


@pytest.mark.parametrize(
    "check", [c for c in CHECKS if c.__name__ != "closed_weights_open_nothing"], ids=lambda c: c.__name__
)
def test_contract(shared: Subject, check: Callable[[Subject], None]) -> None:
    check(shared)


@pytest.mark.parametrize("name", ["mamba", "lfm2"])
def test_what_is_forgotten_of_a_state_leaves_no_trace(name: str, folder: Path) -> None:
    """Whole steps, several steps, the same step twice: wherever llama.cpp keeps no state to go back to."""
    weights = opened(written(folder, name))
    tokens = np.arange(40, dtype=np.int64) * 7 % 250
    one, other = weights.session(256), weights.session(256)
    for stays, steps in ((12, (4,)), (12, (1, 1, 1)), (10, (5,)), (9, (40,)), (12, (3, 5)), (1, (2,))):
        one.truncate(0)
        other.truncate(0)
        for session in (one, other):
            session.forward(tokens[:12], n_logits=0)
        for width in steps:
            one.forward(tokens[40 - width :], n_logits=width)
        one.truncate(max(stays, 11))
        one.truncate(stays)
        other.truncate(stays)
        assert np.array_equal(rows(one, tokens), rows(other, tokens)), (stays, steps)
    weights.close()


def rows(session: Session, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> object:
    return session.forward(tokens[:6], n_logits=6).logits.copy()


def test_keys_and_values_have_one_type_where_they_must(folder: Path) -> None:
    weights = opened(written(folder, "deepseek2"))
    assert weights.info.settings.startswith("f16 keys f16 values")
    weights.close()


def test_that_nothing_is_drafted_is_said_once(folder: Path) -> None:
    with pytest.warns(PilotfishWarning, match=r"mamba\.gguf is decoded without drafts.*state") as said:
        load(written(folder, "mamba"), engine="llamacpp", threads=1).close()
    assert len(said) == 1


def test_a_model_with_a_state_does_not_draft(folder: Path) -> None:
    target = tiny_gguf(folder / "target.gguf")
    with pytest.raises(OptionError, match="cannot draft: it keeps a state"):
        load(target, engine="llamacpp", threads=1, draft=written(folder, "mamba"))


def test_without_an_engine_the_one_that_can_opens_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOTFISH_ENGINE", raising=False)
    with load(written(folder, "gemma2"), threads=1, speculate=False) as model:
        assert model.info.engine == "llamacpp"


@pytest.mark.parametrize("engine", ["onnx", "reference", "openvino"])
def test_another_engine_says_which_one_runs_it(engine: str, folder: Path) -> None:
    if get(engine).version() is None:
        pytest.skip(f"{engine} is not installed")
    with pytest.raises(UnsupportedModelError, match=r"'lfm2'.* The llamacpp engine runs it") as error:
        load(written(folder, "lfm2"), engine=engine, threads=1)
    assert "\n" not in str(error.value)


def test_what_the_engine_found_is_shown(folder: Path, pilotfish: Run) -> None:
    shown = pilotfish("inspect", written(folder, "mamba"), "--json")
    assert shown.code == 0 and '"architecture": "mamba"' in shown.out and "nothing is drafted" in shown.out


def test_a_large_file_is_not_loaded_to_be_shown(
    folder: Path,
    pilotfish: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))
    monkeypatch.setattr("pilotfish.apps.inspection._SMALL", 0)
    path = written(folder, "lfm2")
    assert f"not tried yet; to find out what it can do: pilotfish doctor {path}" in pilotfish("inspect", path).out
    BACKEND.known_answer(GgufModel(path))  # type: ignore[attr-defined]
    assert "not tried yet" not in pilotfish("inspect", path).out
    checked = tiny_gguf(folder / "checked.gguf")
    assert "any number of tokens" in pilotfish("inspect", checked).out


def test_what_llama_cpp_refuses_is_one_line_with_its_reason(folder: Path, pilotfish: Run) -> None:
    whole = written(folder, "mamba").read_bytes()
    damaged = folder / "damaged.gguf"
    damaged.write_bytes(whole.replace(b"blk.0.ssm_in.weight", b"blk.0.ssm_xx.weight"))
    refused(pilotfish("run", damaged, "hello", "--engine", "llamacpp"), "ssm_in.weight", "llama.cpp says")


def test_a_model_that_reads_both_ways_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is not causal"):
        opened(tiny_gguf(folder / "both.gguf", metadata={"attention.causal": False}))


class Stub:
    """A process in the place of the one that tries a file: dies of what it is told to die of."""

    def __init__(self, folder: Path, *deadly: str) -> None:
        self.path, self.log = folder / "stub.py", folder / "log"
        self.path.write_text(
            "import json, os, sys\n"
            "asked = json.loads(sys.stdin.read())\n"
            f"open({str(self.log)!r}, 'a').write(json.dumps(asked['left_out']) + '\\n')\n"
            "for stage in ('loading it', 'trying tree', 'trying fork'):\n"
            "    if stage not in asked['left_out']:\n"
            "        print(json.dumps({'stage': stage}), flush=True)\n"
            f"        if stage in {deadly!r}: os._exit(3)\n"
            "able = [x for x in ('tree', 'fork') if 'trying ' + x not in asked['left_out']]\n"
            "print(json.dumps({'findings': {'abilities': able}}))\n"
        )


def test_what_ends_the_process_is_left_out_and_remembered(folder: Path, tmp_path: Path) -> None:
    import sys

    from pilotfish.backends.llamacpp.probe import build_verdict
    from pilotfish.backends.llamacpp.trial import Request, findings_of

    path = written(folder, "gemma2")
    stub = Stub(tmp_path, "trying tree")
    asked = Request(path=path, device="cpu", kv_dtype="bf16", options={}, repacked=True)
    trial = (sys.executable, str(stub.path))
    for _ in range(2):
        assert findings_of(asked, build_verdict(), trial).abilities == ("fork",)
    assert stub.log.read_text().splitlines() == ["[]", '["trying tree"]']
    deadly = Stub(tmp_path, "loading it")
    with pytest.raises(UnsupportedModelError, match=r"in a process of its own, which .* while loading it"):
        findings_of(asked.model_copy(update={"kv_dtype": "f16"}), build_verdict(), (sys.executable, str(deadly.path)))


def test_a_damaged_size_is_refused_by_the_check_of_its_header(folder: Path) -> None:
    whole = written(folder, "gemma2").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="truncated or damaged"):
        opened(folder / "cut.gguf")
