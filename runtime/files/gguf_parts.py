"""Models that are split into several GGUF files: which files belong together, and one digest for all.

Source: llama.cpp, llama_split_path: NAME-00001-of-00003.gguf and so on; the first part has the model's metadata.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ..errors import ModelFileError
from ..progress import Counted
from ..storage import file_digest

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """All files of the model that a file is a part of, in order; the file alone, if its name is not that of a part.

    Raises ModelFileError naming the first one that is missing.
    """
    named = _NAME.fullmatch(path.name)
    if named is None or not 1 <= int(named["number"]) <= int(named["count"]):
        return (path,)
    count = int(named["count"])
    parts = []
    for number in range(1, count + 1):
        part = path.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise ModelFileError(
                f"{path} is part {int(named['number'])} of {count} of a model, and part {number} is missing: there is "
                f"no file {part}. Put all parts into one folder."
            )
        parts.append(part)
    return tuple(parts)


def gguf_digest(path: Path, progress: Counted | None = None) -> str:
    """Digest of a GGUF file; of a split model one of all its parts."""
    parts = gguf_parts(path)
    if len(parts) == 1:
        return file_digest(path, progress)
    return hashlib.sha256("".join(file_digest(part, progress) for part in parts).encode()).hexdigest()
