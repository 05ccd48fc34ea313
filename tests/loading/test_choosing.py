"""Which engine answers: the fastest of those that give the known answer, found once and remembered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from busy_machine import other_programs

from pilotfish import backends, load
from pilotfish.backends.protocol import NO_OPTIONS, Options
from pilotfish.loading.choosing import Wish
from pilotfish.loading.trials import doubt_of
from pilotfish.runtime.errors import AbilityError, EngineError, EngineMissingError, OptionError, UnsupportedModelError
from pilotfish.runtime.files.model_file import ModelFile
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Session, Step, Weights, as_tokens
from pilotfish.runtime.profiling.canary import Canary, canary_error, make_canary
from pilotfish.runtime.profiling.engine_trial import KINDS, Choice, EngineTrial, Job, TextKind
from pilotfish.testing.tiny_models import tiny_gguf


class Clock:
    """Stands still but for the steps of the engines under test."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


class Slowed:
    """A session of the reference engine that takes its time, and may lie."""

    def __init__(self, session: Session, engine: Engine) -> None:
        self._session, self._engine = session, engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    @property
    def abilities(self) -> frozenset[str]:
        return self._session.abilities - self._engine.lacks

    def forward(self, tokens: object, **options: object) -> Step:
        CLOCK.now += self._engine.step_s * self._engine.load(len(tokens))  # type: ignore[arg-type]
        step = self._session.forward(tokens, **options)  # type: ignore[arg-type]
        return replace(step, logits=-step.logits) if self._engine.device in self._engine.wrong else step


@dataclass
class Engine:
    """An engine of another package over the reference engine; counts how often it opened weights."""

    name: str
    step_s: float = 1e-3
    has: tuple[str, ...] = ("cpu",)
    wrong: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    install: str = "pip install it"
    opened: list[tuple[str | None, int]] = field(default_factory=list)
    device: str | None = None
    lacks: frozenset[str] = frozenset()
    load: Callable[[int], float] = lambda rows: 1.0  # how many times longer a step of so many rows takes

    def version(self) -> str | None:
        return "1.0"

    def problem(self) -> str | None:
        return None

    def devices(self) -> tuple[str, ...]:
        return self.has

    def notes(self) -> dict[str, str]:
        return {}

    def formats(self, device: str | None = None) -> tuple[str, ...]:
        return ("gguf",)

    def open(
        self, model: ModelFile, *, device: str | None, threads: int, kv_dtype: str | None, options: Options = NO_OPTIONS
    ) -> Weights:
        if device in self.broken:
            raise EngineError(f"the driver of {device} does not answer")
        self.opened.append((device, threads))
        self.device = device
        weights = backends.get("reference").open(model, device=None, threads=1, kv_dtype=None)
        made = weights.session
        facts = {"engine": self.name, "device": device or "cpu", "threads": threads}
        weights.model.info = replace(weights.info, **facts)  # type: ignore[attr-defined]
        weights.session = lambda max_context=None: Slowed(made(max_context), self)  # type: ignore[assignment,method-assign,return-value]
        return weights


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PILOTFISH_ENGINE")
    monkeypatch.delenv("PILOTFISH_THREADS")
    CLOCK.now = 0.0
    monkeypatch.setattr(time, "perf_counter", CLOCK)
    monkeypatch.setattr(backends, "_BUILT_IN", {"reference": "reference.backend"})
    return tiny_gguf(tmp_path / "m.gguf", seed=10)


def install(monkeypatch: pytest.MonkeyPatch, *engines: Engine) -> None:
    class Entry:
        def __init__(self, engine: Engine) -> None:
            self.name, self.value, self.load = engine.name, "somewhere", lambda: engine

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry(e) for e in engines])


def test_the_fastest_engine_is_taken_and_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = Engine("a", 0.02), Engine("b", 0.002)
    install(monkeypatch, slow, fast)
    with load(path) as model:
        assert model.info.engine == "b"
        assert model.choice is not None and next(t.engine for t in model.choice.trials if t.usable) == "b"
        assert {t.engine for t in model.choice.trials} == {"a", "b"}
        assert all(t.canary_error == 0.0 for t in model.choice.trials)
    tried = len(slow.opened)
    assert tried >= 1
    opened = len(fast.opened)
    with load(path) as model:
        assert model.info.engine == "b"
    assert len(slow.opened) == tried and len(fast.opened) == opened + 1  # nothing is tried twice


def kept_trials(path: Path) -> dict[str, dict[str, object]]:
    (kept,) = (path.parent / "cache" / "trials").glob("*.json")
    return json.loads(kept.read_text())


@other_programs
def test_trials_on_a_busy_machine_are_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch, seen: str) -> None:
    engine = Engine("a")
    install(monkeypatch, engine, Engine("b", 0.02))
    opened, kept, doubted, said = [], [], [], []
    for busy in (0.9, 0.9, 0.0, 0.9):
        monkeypatch.setattr(seen, lambda *_, busy=busy: busy)
        before = len(engine.opened)
        with load(path, progress=lambda what, share: said.append(what)) as model:
            assert model.info.engine == "a" and model.choice is not None
            doubted.append({doubt_of(trial) for trial in model.choice.trials})
        opened.append(len(engine.opened) - before)
        kept.append({name.partition("-")[0] for name in kept_trials(path)})
    assert opened[0] == opened[1] == opened[2] > 1 and opened[3] == 1
    assert kept == [set(), set(), {"a", "b"}, {"a", "b"}]
    assert doubted[:2] == [{"other programs used 90% of the processor meanwhile"}] * 2 and doubted[2:] == [{""}, {""}]
    assert any("busy; again next time" in what for what in said) == seen.endswith("cpu_load")


def test_trials_with_times_that_no_kernel_has_are_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load that the system does not tell of, as in some containers: one row takes longer than two."""
    engine = Engine("a", load=lambda rows: 2.0 if rows == 1 else 1.0)
    install(monkeypatch, engine, Engine("b", 0.02))
    for _ in range(2):
        with load(path) as model:
            assert model.info.engine == "a"
        assert {name.partition("-")[0] for name in kept_trials(path)} == {"b"}
    before = len(engine.opened)
    engine.load = lambda rows: 1.0
    for _ in range(2):
        load(path).close()
    assert "a" in {name.partition("-")[0] for name in kept_trials(path)} and len(engine.opened) > before + 2


def test_trials_that_an_earlier_version_kept_are_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Engine("a", 2.0**-10), Engine("b", 2.0**-6))  # whose sums are exact
    load(path).close()
    (file,) = (path.parent / "cache" / "trials").glob("*.json")
    good = kept_trials(path)
    for worse in ({"busy": 0.9}, {"step_s": {"1": 0.0896, "2": 0.055, "4": 0.06, "8": 0.07}}):
        file.write_text(json.dumps({name: {**trial, **worse} for name, trial in good.items()}))
        load(path).close()
        assert kept_trials(path) == good


def test_an_engine_that_lacks_what_a_policy_needs_is_passed_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = frozenset({"attention", "queries", "keys", "evict_heads"})
    fast, able = Engine("fast", lacks=blind), Engine("able", 0.01)
    install(monkeypatch, fast, able)
    for options in ({"cache": "snapkv"}, {"cache": "keydiff"}, {"draft": "self:keydiff:per_head=false"}):
        with load(path, max_context=2048, **options) as model:  # type: ignore[arg-type]
            assert model.info.engine == "able", options
            assert model.choice is not None
            (passed_over,) = {t.problem for t in model.choice.trials if t.engine == "fast"}
            assert "needs" in passed_over
    for options in ({}, {"cache": "sinks"}, {"draft": "self"}):
        with load(path, **options) as model:  # type: ignore[arg-type]
            assert model.info.engine == "fast", options
    with pytest.raises(AbilityError, match="fast engine does not offer here"):  # it was asked for
        load(path, engine="fast", cache="snapkv")
    install(monkeypatch, fast)
    with pytest.raises(AbilityError, match="snapkv cache policy needs attention"):  # nobody else
        load(path, cache="snapkv")


def test_what_is_named_is_taken_however_slow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = Engine("a", 0.005), Engine("b")
    install(monkeypatch, slow, fast)
    monkeypatch.setattr("pilotfish.loading.options.os.cpu_count", lambda: 4)
    with load(path, engine="a", threads=3) as model:
        assert (model.info.engine, model.info.threads) == ("a", 3)
    assert not fast.opened and len(slow.opened) == 1
    monkeypatch.setenv("PILOTFISH_ENGINE", "a")
    with load(path, threads=1) as model:
        assert model.info.engine == "a"
    monkeypatch.setenv("PILOTFISH_THREADS", "none")
    with pytest.raises(OptionError, match="PILOTFISH_THREADS is 'none'"):
        load(path)


def test_threads_are_measured(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("a")
    install(monkeypatch, engine)
    monkeypatch.setattr("pilotfish.loading.choosing.usable_cores", lambda: 4)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 2)
    with load(path) as model:
        assert model.choice is not None
        assert {t.threads for t in model.choice.trials} == {1, 2, 4}
        assert model.info.threads == min(model.choice.trials, key=lambda t: t.seconds(model.choice.job)).threads


def test_a_wrong_answer_moves_on_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    liar, honest = Engine("a", 0.001, wrong=("cpu",)), Engine("b", 0.002)
    install(monkeypatch, liar, honest)
    with pytest.warns(RuntimeWarning, match="a 1.0 on cpu, . threads gave a wrong answer"):
        model = load(path)
    assert model.info.engine == "b"
    model.close()
    with pytest.raises(EngineError, match=r"a on cpu gave a wrong answer .*Choose another engine"):
        load(path, engine="a", device="cpu", threads=1)


def test_a_device_that_turns_bad_later_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("a", 0.01, has=("gpu", "cpu"))
    install(monkeypatch, engine)
    with load(path, threads=1) as model:
        assert model.choice is not None
        assert {t.device for t in model.choice.trials} == {"gpu", "cpu"}
        first = model.info.device
    other = "cpu" if first == "gpu" else "gpu"
    engine.broken = (first,)
    with pytest.warns(RuntimeWarning, match=rf"a on {first} failed: the driver .* went on with a on {other}"):
        model = load(path, threads=1)
    assert model.info.device == other
    model.close()
    engine.broken, engine.wrong = (), (first,)
    with pytest.warns(RuntimeWarning, match=rf"a on {first} gave a wrong answer .* went on with a on {other}"):
        model = load(path, threads=1)
    assert model.info.device == other
    model.close()


def test_nothing_usable_names_every_reason(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Engine("a", wrong=("cpu",)), Engine("b", broken=("cpu",)))
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(UnsupportedModelError, match=r"(?s)wrong answer.*driver of cpu does not answer"),
    ):
        load(path)


def test_a_device_nobody_has(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Engine("a"), Engine("b", has=("cpu", "xpu")))
    with load(path, device="xpu") as model:
        assert (model.info.engine, model.info.device) == ("b", "xpu")
    with pytest.raises(OptionError, match=r"no installed engine has a device 'npu7'.*b: cpu, xpu"):
        load(path, device="npu7")


def test_no_engine_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises((EngineMissingError, UnsupportedModelError)):
        load(path)


def test_what_was_remembered_and_is_damaged_is_measured_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("a")
    install(monkeypatch, engine, Engine("b", 0.02))
    load(path).close()
    kept = next((path.parent / "cache" / "trials").glob("*.json"))
    good = json.loads(kept.read_text())
    for bad in ("", "[]", '{"x": 1}', json.dumps({k: {**v, "step_s": "no"} for k, v in good.items()})):
        kept.write_text(bad)
        load(path).close()
        assert json.loads(kept.read_text()).keys() == good.keys()


def test_the_draft_may_run_on_another_engine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Engine("a"), Engine("b"))
    small = tiny_gguf(path.parent / "small.gguf", seed=11)
    with (
        load(path, engine="a", threads=1) as plain,
        load(path, engine="a", threads=1, draft=small, draft_engine="b") as model,
    ):
        ours, theirs = (m.generate("abc", max_new_tokens=24) for m in (model, plain))
        assert ours.token_ids == theirs.token_ids


def test_expected_seconds_of_a_job() -> None:
    trial = EngineTrial("a", "1", "cpu", 1, {1: 1.0, 2: 1.14, 4: 2.0, 8: 6.0}, 0.01, 0.0, ((1,), (2, 4, 8)), 0.0)
    assert trial.seconds(Job(100, 10, 0.0), exact=False) == pytest.approx(1.0 + 10 * 1.0)
    assert trial.seconds(Job(100, 10, 0.0)) == pytest.approx(1.0 + 10 * 1.14)  # one row is of another class
    assert trial.seconds(Job(1, 10, 0.5)) == pytest.approx(0.01 + 10 * 1.14 / 1.5)
    assert trial.seconds(Job(1, 10, 0.9)) == pytest.approx(0.01 + 10 * 2.0 / (1 + 0.9 + 0.81 + 0.729))
    slow_to_switch = replace(trial, switch_s=0.5)
    assert slow_to_switch.seconds(Job(1, 10, 0.9)) == pytest.approx(0.01 + 10 * 1.14 / 1.9)
    for bad in (Job, lambda: Job(-1), lambda: Job(0, 10), lambda: Job(10, 0), lambda: Job(acceptance=1.0)):
        if bad is not Job:
            with pytest.raises(OptionError):
                bad()


def test_expected_seconds_of_texts() -> None:
    chat, code, copy = KINDS
    dear = EngineTrial("a", "1", "cpu", 1, {1: 1.0, 2: 1.2, 4: 2.0, 8: 6.0}, 0.0, 0.0, ((1,), (2, 4, 8)), 0.0)
    cheap = replace(dear, step_s={1: 1.0, 2: 1.1, 4: 2.0, 8: 6.0})
    narrow = dear.token_s(TextKind("new", 0.0, 0.9, 0.13))
    assert narrow == 1.0  # where nothing repeats, a step of one row and no draft
    assert cheap.token_s(TextKind("new", 0.0, 0.9, 0.13)) == pytest.approx(1.1 / 1.13)  # else a guess in a spare row
    assert dear.token_s(TextKind("old", 1.0, 0.9, 0.13)) == pytest.approx(2.0 / (1 + 0.9 + 0.81 + 0.729))
    assert dear.token_s(chat) > dear.token_s(code) > dear.token_s(copy)
    mean = (dear.token_s(chat) + dear.token_s(code) + dear.token_s(copy)) / 3
    assert dear.seconds(Job(1, 10)) == pytest.approx(10 * mean)


def test_a_faster_step_wins_chat_though_wide_steps_cost_it_more() -> None:
    """With half of all drafts right, the engine with cheap wide steps would be chosen."""
    plain = EngineTrial("a", "1", "cpu", 1, {1: 1.0, 2: 1.7, 4: 3.2}, 0.0, 0.0, ((1, 2, 4),), 0.0)
    wide = EngineTrial("b", "1", "cpu", 1, {1: 1.3, 2: 1.4, 4: 2.6}, 0.0, 0.0, ((1,), (2, 4)), 0.0)
    assert plain.token_s(KINDS[0]) < wide.token_s(KINDS[0])
    assert plain.seconds(Job(1, 10, 0.5)) > wide.seconds(Job(1, 10, 0.5))


def test_what_all_engines_say_of_a_file_is_said_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Engine("a", broken=("cpu",)), Engine("b", broken=("cpu",)))
    with pytest.raises(UnsupportedModelError) as caught:
        load(path)
    assert str(caught.value).count("the driver of cpu does not answer") == 1


def test_unusable_trials_come_last() -> None:
    fast = EngineTrial("a", "1", "cpu", 1, {1: 0.1}, canary_error=0.9)
    slow = EngineTrial("b", "1", "cpu", 1, {1: 1.0}, canary_error=0.0)
    none = EngineTrial("c", "1", "cpu", 1, {}, problem="no driver")
    assert [t.engine for t in Choice.of([none, fast, slow], Job(), True).trials] == ["b", "a", "c"]


def test_the_canary_tells_right_from_wrong(path: Path) -> None:
    session = backends.get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None).session()
    text = as_tokens([5, 3, 8, 1, 9, 4, 7, 2, 6, 5, 3, 1, 8, 2, 9, 4, 7, 6, 1, 2])
    canary = make_canary(session, text)
    assert len(canary.best) == 14 and len(session.positions) == 0
    assert canary_error(session, canary) == 0.0 and len(session.positions) == 0
    shifted = canary.model_copy(update={"best": tuple((b + 1) % 30 for b in canary.best)})
    assert canary_error(session, shifted) > 0.3
    beyond = canary.model_copy(update={"best": (*canary.best[:-1], session.info.vocab_size)})
    assert canary_error(session, beyond) == 1.0
    with pytest.raises(ValueError, match="one answer and one gap"):
        Canary(tokens=(1,), best=(1, 2), gaps=(0.1, 0.2))


def test_what_is_not_finite_is_wrong(path: Path) -> None:
    session = backends.get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None).session()
    canary = make_canary(session, as_tokens([5, 3, 8, 1]))

    class Overflowing:
        def __getattr__(self, name: str) -> object:
            return getattr(session, name)

        def forward(self, tokens: object, **options: object) -> Step:
            step = session.forward(tokens, **options)  # type: ignore[arg-type]
            return replace(step, logits=np.full_like(step.logits, np.nan))

    assert canary_error(Overflowing(), canary) == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["engine", "device", "kv_dtype"])
def test_an_empty_name_is_no_choice(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} is empty; name one, or leave it out"):
        load("smollm2-135m", **{name: ""})


def test_an_empty_environment_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PILOTFISH_ENGINE", "PILOTFISH_THREADS"):
        monkeypatch.setenv(name, "")
    assert Wish().with_environment() == Wish()
