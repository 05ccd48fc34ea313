"""The small files of a model's folder, read with errors that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...runtime.errors import ModelFileError, ModelNotFoundError


def read_json(path: Path, required: bool = False) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is absent and need not be there.

    Raises ModelNotFoundError and ModelFileError.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if required:
            raise ModelNotFoundError(
                f"{path.parent} holds no {path.name}: it is not a Hugging Face model folder."
            ) from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON: {error}. Fetch or copy it again.") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} does not hold a JSON object. Fetch or copy it again.")
    return value


def read_text(path: Path) -> str:
    """The text in a file. Raises ModelFileError."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
