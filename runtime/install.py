"""The command that adds optional packages to this installation, however it was made."""

from __future__ import annotations

import functools
import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = __package__.partition(".")[0]


def install_command(*extras: str) -> str:
    """What to type for these extras of Pilotfish, from any folder: for a checkout, an archive or the package index."""
    option, before, behind = _origin()
    wanted = f"{before}[{','.join(extras)}]{behind}" if extras else f"{before}{behind}"
    return f"pip install {option}{shlex.quote(wanted)}"


@functools.cache
def _origin() -> tuple[str, str, str]:
    """pip's option for where this installation came from, and what stands before and behind the extras.

    Source: PEP 610, direct_url.json.
    """
    try:
        text = metadata.distribution(_NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    checkout = Path(__file__).resolve().parents[1]
    if text is None and (checkout / "pyproject.toml").exists():  # Python was started there, and found it before pip's
        return "-e ", str(checkout), ""
    origin: dict[str, Any] = {} if text is None else json.loads(text)
    url = origin.get("url", "")
    if "dir_info" in origin:
        return "-e " if origin["dir_info"].get("editable") else "", url2pathname(urlsplit(url).path), ""
    if "vcs_info" in origin:
        return "", _NAME, f" @ {origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    return "", _NAME, f" @ {url}" if url else ""
