"""Help pages: every argument and option of every command is explained, within 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from command_line import Run, pilotfish

from pilotfish.apps import cli

__all__ = ["pilotfish"]  # a fixture


def commands(of: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of a command and of those below it."""
    yield names, of
    for name, inner in getattr(of, "commands", {}).items():
        yield from commands(inner, *names, name)


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_everything_is_explained_in_80_columns(
    names: tuple[str, ...], pilotfish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = pilotfish(*names, "--help").out
    assert all(len(line) <= 80 for line in shown.splitlines())
    for parameter in COMMANDS[names].params:
        if parameter.param_type_name == "argument":
            assert f"{parameter.name.upper()}: " in shown, "click from 8.5 on loses what typer is told of arguments"
        else:
            assert parameter.help, parameter.name
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert name in shown.replace(",", " ").split(), f"{name} is cut short"


@pytest.mark.parametrize("names", [(), ("bench",), ("draft",)], ids=" ".join)
def test_a_group_without_a_command_shows_its_help(names: tuple[str, ...], pilotfish: Run) -> None:
    bare = pilotfish(*names)
    assert (bare.code, bare.err) == (2, "") and bare.out == pilotfish(*names, "--help").out


def test_the_catalogue_is_listed_where_a_name_is_asked_for(pilotfish: Run) -> None:
    assert "smollm2-135m" in pilotfish("pull", "--help").out
