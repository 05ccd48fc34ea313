"""What commands read: a prompt, standard input, files; each refused in one line where it cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from ..runtime.checks import shown
from ..runtime.errors import OptionError
from ..runtime.storage import require_writable


def require_input(why: str) -> TextIO:
    """Standard input. Raises OptionError where it is closed."""
    if sys.stdin is None:
        raise OptionError(f"standard input is closed, and {why}; leave it open.")
    return sys.stdin


def read_prompt(prompt: str | None) -> str:
    """The prompt given, or standard input. Raises OptionError where there is none, or it is not UTF-8."""
    if prompt is None:
        given = require_input("no prompt is given")
        if given.isatty():
            raise OptionError("no prompt: give one as an argument, or pipe it in.")
        try:
            data = given.buffer.read()
        except OSError as error:
            raise OptionError(
                f"standard input cannot be read: {error.strerror}. Give the prompt in another way."
            ) from None
        try:
            prompt = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise OptionError(
                f"standard input is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}. Convert it first."
            ) from None
    if not prompt.strip():
        raise OptionError("the prompt is empty.")
    return prompt


def require_conversation(path: Path, system: str | None) -> None:
    """Raise where a conversation could not be gone on with, or be kept at its end: before a model is opened for it."""
    from ..runtime.model.saved_chat import read_conversation

    if path.exists():
        require_readable(path)
        read_conversation(path)
        if system is not None:
            raise OptionError(f"{path} holds a conversation with its own beginning; drop --system.")
    require_writable(path.absolute().parent)


def read_document(path: Path) -> str:
    """A text file's. Raises OptionError for what is none."""
    require_readable(path)
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read as UTF-8 text: {error}. Give a text file.") from None


def require_readable(path: Path) -> None:
    """Raise OptionError for what is no file that can be read: before a model is opened for it."""
    try:
        if not path.is_file():
            raise OptionError(f"{path} is {'no file' if path.exists() else 'not there'}; give a file.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise OptionError(f"{shown(str(path))} cannot be read: {error.strerror}. Give another file.") from None
