"""What other programs use of the processor, by the system's own counts."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from pilotfish.loading import cpu_load


class Machine:
    """Two cores, and what they have spent their seconds on."""

    def __init__(self) -> None:
        self.system = dict.fromkeys(("user", "system", "idle", "iowait", "steal", "guest"), 100.0)
        self.own = dict.fromkeys(("user", "system", "children_user", "children_system"), 10.0)

    def cpu_times(self) -> SimpleNamespace:
        return SimpleNamespace(**self.system, _asdict=lambda: dict(self.system))

    def Process(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(cpu_times=lambda: SimpleNamespace(**self.own))

    def cpu_percent(self, interval: float) -> float:
        return 25.0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(cpu_load, "psutil", made)
    return made


@pytest.mark.parametrize(
    ("spent", "of_ours", "share"),
    [
        ({"idle": 2.0}, {}, 0.0),
        ({"user": 2.0}, {"user": 2.0}, 0.0),
        ({"user": 1.5, "system": 0.5}, {"user": 0.7, "system": 0.3}, 0.5),
        ({"user": 1.0, "idle": 1.0}, {"children_user": 1.0}, 0.0),  # of a process that we have ended
        ({"user": 1.0, "steal": 1.0}, {"user": 1.0}, 0.5),  # what a host takes from a virtual machine
        ({"user": 1.0, "iowait": 1.0}, {"user": 1.0}, 0.0),
        ({"user": 2.0, "guest": 2.0}, {}, 1.0),  # a guest's seconds are among the user's
        ({"user": 1.0}, {"user": 1.01}, 0.0),  # counts are read one after the other
    ],
)
def test_the_share_of_others_is_what_is_neither_idle_nor_ours(
    machine: Machine, spent: dict[str, float], of_ours: dict[str, float], share: float
) -> None:
    others = cpu_load.Others()
    for name, seconds in spent.items():
        machine.system[name] += seconds
    for name, seconds in of_ours.items():
        machine.own[name] += seconds
    assert others.share() == pytest.approx(share)


def test_a_moment_is_too_short_to_tell(machine: Machine) -> None:
    others = cpu_load.Others()
    machine.system["user"] += 0.05
    assert others.share() == 0.0 and cpu_load.cpu_load() == 0.25


def test_this_systems_counts_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_load, "psutil", psutil)
    others = cpu_load.Others()
    assert 0.0 <= cpu_load.cpu_load() <= 1.0 and 0.0 <= others.share() <= 1.0
