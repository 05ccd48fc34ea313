"""What an engine is to the rest: how it is found here, and how it opens a model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, TypeAlias

from ..runtime.errors import OptionError
from ..runtime.files.model_file import ModelFile
from ..runtime.interfaces import Weights

Options: TypeAlias = Mapping[str, object]  # of one engine alone, by name
NO_OPTIONS: Options = MappingProxyType({})


class Backend(Protocol):
    """One engine: whether it is here, and how it opens a model."""

    @property
    def name(self) -> str: ...

    @property
    def install(self) -> str:
        """The command that adds the engine."""
        ...

    def version(self) -> str | None:
        """Version of the installed engine; None where it is not installed."""
        ...

    def problem(self) -> str | None:
        """What keeps the installed engine from running here, and the command that mends it, in one line; None where it
        runs, and where it is not installed."""
        ...

    def devices(self) -> tuple[str, ...]:
        """Devices that can be named, the default first; empty where the engine is not installed or does not run."""
        ...

    def notes(self) -> dict[str, str]:
        """What a user should know of this installation: a device or topic, and what was found out about it, and how."""
        ...

    def formats(self, device: str | None = None) -> tuple[str, ...]:
        """What it opens on a device (None: its default), the preferred first: keys of Manifest.formats, where "gguf"
        is a file and any other format a bundle that lists it, or a folder made elsewhere with such a graph."""
        ...

    def open(
        self, model: ModelFile, *, device: str | None, threads: int, kv_dtype: str | None, options: Options = NO_OPTIONS
    ) -> Weights:
        """The weights on a device.

        model: one that has, or was converted into, one of the formats.
        kv_dtype: how keys and values are stored, "f16" or, apart, "u8/u4"; None is the engine's exact default.
        options: settings of this engine alone; an unknown one is an OptionError that lists those there are.
        Raises EngineMissingError, OptionError, ModelFileError, UnsupportedModelError.
        """
        ...


def refuse_options(name: str, options: Options) -> None:
    """Raise OptionError if an engine without settings of its own was given some."""
    if options:
        raise OptionError(f"the {name} engine has no options of its own, but {', '.join(options)} were given.")
