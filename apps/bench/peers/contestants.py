"""Who takes part in `pilotfish bench peers`: families of runtimes, and the ways in which each decodes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ....runtime.checks import shown
from ....runtime.errors import OptionError
from .contract import Engine
from .process import command_of

OURS, PLAIN = "pilotfish", "plain"
_PYTHON = "Give the Python interpreter of the environment that has this peer."
_ANSWER_S = 20.0  # for an interpreter that is asked what it is


@dataclass(frozen=True, slots=True)
class Family:
    """One runtime. module: beside this one; variants: ways to decode, plain first; drafted: those that need a draft."""

    name: str
    module: str
    variants: tuple[str, ...]
    drafted: tuple[str, ...] = ()

    @property
    def engine(self) -> type[Engine]:
        found: type[Engine] = import_module(f".{self.module}", __package__).ENGINE
        return found


FAMILIES = (
    Family(OURS, "pilotfish_engine", (PLAIN, "default", "inexact"), ("draft",)),
    Family("openvino-genai", "openvino_genai_engine", (PLAIN, "lookup"), ("draft fixed", "draft dynamic")),
    Family("llama-cpp-python", "llama_cpp_python_engine", (PLAIN, "lookup")),
    Family("llama-server", "llama_server_engine", (PLAIN, "ngram")),
    Family("onnxruntime-genai", "onnxruntime_genai_engine", (PLAIN,)),
    Family("transformers", "transformers_engine", (PLAIN, "lookup"), ("assisted",)),
    Family("ctranslate2", "ctranslate2_engine", (PLAIN,)),
)


@dataclass(frozen=True, slots=True)
class Contestant:
    """One row: a runtime that decodes in one way. weights: what it opens; python: its interpreter; None: this one."""

    family: str
    variant: str
    command: tuple[str, ...]
    weights: str
    draft: str | None = None
    python: str | None = None

    @property
    def name(self) -> str:
        return self.family if self.variant == "default" else f"{self.family} {self.variant}"


def named_paths(option: str, given: Sequence[str], families: Sequence[Family]) -> dict[str, str]:
    """The paths by family of texts NAME=PATH. Raises OptionError."""
    names = [family.name for family in families if family.name != OURS]
    found = {}
    for text in given:
        name, _, path = text.partition("=")
        if name not in names or not path:
            raise OptionError(f"{option} is {shown(text)}, but must be NAME=PATH with a NAME of {', '.join(names)}.")
        found[name] = path
    return found


def interpreters(given: Mapping[str, str]) -> dict[str, str]:
    """The interpreters by family, each one that runs. Raises OptionError."""
    found = {}
    for name, path in given.items():
        program = shutil.which(path)
        if program is None:
            raise OptionError(f"--python {name}={path}: there is no program {path} that can be run. {_PYTHON}")
        if not _is_python(program):
            raise OptionError(f"--python {name}={path}: {path} is no Python. {_PYTHON}")
        found[name] = program
    return found


def _is_python(program: str) -> bool:
    """Whether it computes what an interpreter does."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = [program, "-c", "print(6 * 7)"]
        said = subprocess.run(asked, capture_output=True, stdin=subprocess.DEVNULL, timeout=_ANSWER_S, check=False)
        return said.stdout.strip() == b"42"
    return False


def weights(given: Mapping[str, str], encoder_decoder: bool, families: Sequence[Family]) -> dict[str, str]:
    """The weights by family, each such as its runtime opens. Raises OptionError."""
    for family in families:
        path = given.get(family.name)
        if path is None:
            continue
        if not Path(path).exists():
            raise OptionError(f"--weights {family.name}={path}: there is no file or folder {path}.")
        if not family.engine.reads(Path(path), encoder_decoder):
            kind = _kind(family, encoder_decoder)
            raise OptionError(f"--weights {family.name}={path} is not what {family.name} reads. {kind}")
    return {name: str(Path(path).resolve()) for name, path in given.items()}


def _kind(family: Family, encoder_decoder: bool) -> str:
    """What a runtime reads, in its own words."""
    said = " ".join((family.engine.reads.__doc__ or "").split())
    return f"For {'an encoder-decoder' if encoder_decoder else 'a decoder'} it is: {said}"


def chosen(names: str, families: Sequence[Family]) -> list[Family]:
    """The families of these names, comma-separated, or all; Pilotfish is always among them. Raises OptionError."""
    known = {family.name: family for family in families}
    wanted = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise OptionError(f"there is no peer {shown(name)}; there are {', '.join(known)}.")
    return [family for family in families if family.name in {OURS, *wanted}]


def contestants(
    families: Sequence[Family],
    model: Path,
    draft: Path | None,
    *,
    encoder_decoder: bool,
    weights: Mapping[str, str],
    pythons: Mapping[str, str],
) -> tuple[list[Contestant], dict[str, str]]:
    """The rows, and by family why it has none: nothing there that it reads."""
    rows, without = [], {}
    for family in families:
        path = Path(weights.get(family.name, model))
        if not family.engine.reads(path, encoder_decoder):
            kind = "encoder-decoder" if encoder_decoder else "decoder"
            without[family.name] = f"no weights: it does not read this {kind}; --weights {family.name}=PATH gives some"
            continue
        for variant in (*family.variants, *(() if draft is None else family.drafted)):
            needs = variant in family.drafted
            if needs and draft is not None and family.name != OURS and not family.engine.reads(draft, encoder_decoder):
                without[f"{family.name} {variant}"] = "no weights: it does not read this draft model"
                continue
            python = pythons.get(family.name)
            command = tuple(command_of(family.module, python))
            rows.append(Contestant(family.name, variant, command, str(path), str(draft) if needs else None, python))
    return rows, without
