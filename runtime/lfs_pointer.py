"""What Git LFS leaves in the place of a file that is not fetched yet, told from the file itself."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .errors import ModelFileError

_BEGINS = b"version https://git-lfs"


def refuse_pointer(path: Path) -> None:
    """Raise ModelFileError where a file is a Git LFS pointer. What cannot be read is left to whoever reads it."""
    begins = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        begins = file.read(len(_BEGINS))
    if begins == _BEGINS:
        raise ModelFileError(
            f"{path} is a Git LFS pointer, which stands for a file that is not fetched yet. Fetch it: git lfs pull, in "
            "that folder; or name the model as the Hugging Face hub does, hf:ORG/NAME."
        )
