"""Numbers out of a decoder's metadata, each checked, and which of them nobody asked for."""

from __future__ import annotations

from typing import TypeVar

from ..errors import ModelFileError
from .decoder_file import DecoderFile

N = TypeVar("N", int, float)


class Numbers:
    """Entries of an architecture, by their names without its prefix; it remembers which of them were asked for."""

    def __init__(self, file: DecoderFile) -> None:
        self.file = file
        self._prefix = f"{file.architecture}."
        self._asked: set[str] = set()

    def need(self, key: str, kind: type[N]) -> N:
        """A positive number. Raises ModelFileError where there is none."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise self._wrong(key, "a positive number")
        if kind is int and value != int(value):
            raise self._wrong(key, "a whole number")
        return kind(value)

    def get(self, key: str, default: N) -> N:
        """A positive number; the default where the file is silent."""
        return default if self._value(key) is None else self.need(key, type(default))

    def optional(self, key: str, kind: type[N]) -> N | None:
        """A positive number; None where the file is silent or says 0."""
        return self.need(key, kind) if self._value(key) else None

    def flag(self, key: str, default: bool) -> bool:
        """Yes or no; the default where the file is silent."""
        value = self._value(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def word(self, key: str, default: str) -> str:
        """A text; the default where the file is silent."""
        value = self._value(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def flags(self, key: str, n: int, period: int) -> list[bool]:
        """A yes or no for each of n layers: a list in the file, or a period whose last layer is the no."""
        value = self._value(key)
        if isinstance(value, list):
            if len(value) != n or not all(isinstance(x, (bool, int)) for x in value):
                raise self._wrong(key, f"a yes or no for each of {n} layers")
            return [bool(x) for x in value]
        period = self.get(key, period)
        return [(i + 1) % period != 0 for i in range(n)]

    def each(self, key: str, n: int, default: int | None = None) -> list[int]:
        """A positive whole number for each of n layers: a list in the file, or one for all; the default where the file
        is silent. Raises ModelFileError."""
        value = self._value(key)
        if isinstance(value, list):
            if len(value) != n or not all(type(x) is int and 0 < x < 1 << 30 for x in value):
                raise self._wrong(key, f"a positive number for each of {n} layers")
            return [int(x) for x in value]
        return [self.need(key, int) if default is None else self.get(key, default)] * n

    def unread(self) -> list[str]:
        """Names of entries that say something and that nobody asked for."""
        entries = self.file.metadata.items()
        names = (key.removeprefix(self._prefix) for key, value in entries if key.startswith(self._prefix) and value)
        return sorted(set(names) - self._asked)

    def _value(self, key: str) -> object:
        self._asked.add(key)
        return self.file.metadata.get(self._prefix + key)

    def _wrong(self, key: str, what: str) -> ModelFileError:
        value = self.file.metadata.get(self._prefix + key)
        return ModelFileError(f"{self.file.path}: {self._prefix}{key} is {value!r:.60}, but must be {what}.")


def contradiction(file: DecoderFile, what: str) -> ModelFileError:
    """The error for a file, or a folder, whose settings and tensors do not belong together."""
    return ModelFileError(
        f"{file.path} does not fit {file.described_by}: {what}. Some of it is damaged, or another model's: fetch or "
        "copy all of it again."
    )
