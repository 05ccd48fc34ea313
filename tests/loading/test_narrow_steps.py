"""Steps of one row where the text repeats nothing: when they are taken, and that the text alone has a say in it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from pilotfish import load
from pilotfish.loading import load as loading
from pilotfish.runtime.errors import OptionError, PilotfishWarning
from pilotfish.runtime.interfaces import Weights
from pilotfish.runtime.profiling.calibrate import Calibration
from pilotfish.runtime.profiling.cost_curve import CostCurve
from pilotfish.runtime.profiling.row_classes import RowClasses
from pilotfish.runtime.progress import Progress
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.testing.tiny_models import tiny_gguf


class Machine:
    """What this machine is taken to measure: seconds of steps of one row, and of two."""

    def __init__(self, one_s: float, two_s: float, *, one_class: bool = False) -> None:
        widths = np.array([1, 2, 33])
        classes = ((1, 2, 3, 33),) if one_class else ((1,), (2, 3, 33))
        self.widths, self.seconds = widths, np.array([one_s, two_s, 20 * one_s])
        self.rows = RowClasses(classes)

    def calibration(self, weights: Weights, report: Progress) -> Calibration:
        return Calibration(CostCurve(self.widths, self.seconds), self.rows)


DEAR, CHEAP = Machine(10e-3, 12e-3), Machine(10e-3, 11e-3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "m.gguf", seed=10)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))


def measured(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "calibration", machine.calibration)


@pytest.mark.parametrize(
    ("machine", "narrow"),
    [
        (DEAR, True),
        (CHEAP, False),
        (Machine(10e-3, 12e-3, one_class=True), False),
        (Machine(1e-4, 5e-4), False),  # a tiny model: other things take the time
    ],
)
def test_where_two_rows_cost_clearly_more_than_one(
    machine: Machine, narrow: bool, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(machine, monkeypatch)
    with load(tiny, engine="reference") as model, model.sibling(policy=None) as plain:
        assert model.narrow is plain.narrow is narrow
    with load(tiny, engine="reference", exact=False) as model:
        assert not model.narrow


def test_decided_once_though_the_next_measurement_says_otherwise(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(DEAR, monkeypatch)
    load(tiny, engine="reference").close()
    measured(CHEAP, monkeypatch)
    with load(tiny, engine="reference") as model, load(tiny, engine="reference", speculate=False) as plain:
        assert model.narrow and plain.narrow


def test_widths_follow_from_the_text_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(DEAR, monkeypatch)
    with load(tiny, engine="reference", speculate=Fixed(3)) as model, model.sibling(policy=None) as plain:
        drafted, undrafted = (m.generate("one two one two one", raw=True, max_new_tokens=40) for m in (model, plain))
    assert drafted.token_ids == undrafted.token_ids
    assert {r.width for r in undrafted.rounds} == {1, 2}
    assert {r.width for r in drafted.rounds if not r.drafted} <= {1, 2}
    assert drafted.stats.drafted and all(r.width > 1 for r in drafted.rounds if r.drafted)


def test_a_draft_model_has_no_say_in_it_and_its_owner_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(DEAR, monkeypatch)
    with (
        pytest.warns(PilotfishWarning, match=r"1\.20 times .* narrow=False \(--no-narrow\)"),
        load(tiny, engine="reference", draft=tiny) as model,
    ):
        assert model.narrow
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with load(tiny, engine="reference", draft=tiny, narrow=False) as model:
            assert not model.narrow


def test_what_cannot_be_narrow_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(DEAR, monkeypatch)
    with pytest.raises(OptionError, match=r"narrow=True .* exact=False"):
        load(tiny, engine="reference", narrow=True, exact=False)
    with pytest.raises(OptionError, match=r"narrow=True .* quality="):
        load(tiny, engine="reference", narrow=True, cache="sinks:budget=64", quality=0.9)
    with load(tiny, engine="reference", cache="sinks:budget=64", quality=0.9) as model:
        assert not model.narrow


def test_narrow_by_hand(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(CHEAP, monkeypatch)
    with load(tiny, engine="reference", narrow=True) as model:
        assert model.narrow
    measured(Machine(10e-3, 12e-3, one_class=True), monkeypatch)
    with load(tiny, engine="reference", narrow=True) as model:
        assert not model.narrow  # steps of one row are of the class of wide ones anyway
