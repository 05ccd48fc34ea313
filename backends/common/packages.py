"""Python packages that engines wrap: which version is there, what keeps one from running, how to install it anew."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from importlib import metadata

_ANEW = "--force-reinstall --no-cache-dir --no-deps"  # or pip says that it is there, or takes the file it kept
_LONGEST = 300  # characters of a reason
_worked: dict[str, object] = {}  # modules that did what they were asked in this process, which need not be asked again


def package_version(module: str) -> str | None:
    """Version of the package that brings a module; None where it is not installed."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except ValueError:  # imported, and says nothing of where it comes from
        pass
    try:
        return str(importlib.import_module(module).__version__)
    except Exception:  # a broken package may fail in any way, and problem_of() says how
        return _metadata_version(module) or "unknown"


def problem_of(engine: str, module: str, use: Callable[[], object]) -> str | None:
    """What keeps the installed package of an engine from running here, and how to mend it, in one line.

    use: imports the module and asks it for something. None where that works, and where the package is not installed.
    """
    if package_version(module) is None or _worked.get(module) is sys.modules.get(module, _worked):
        return None
    try:
        use()
        _worked[module] = sys.modules[module]
    except Exception as error:  # a broken package may fail in any way
        reason = " ".join(str(error).split())[:_LONGEST].rstrip(".") or type(error).__name__
        return f"the {engine} engine is installed, but does not run: {reason}. Install it anew: {reinstall(module)}"
    return None


def reinstall(module: str, *more: str) -> str:
    """The command that installs a module's package anew, in a version that Pilotfish takes. more: other options."""
    name = _distribution(module)
    return " ".join(("pip install", _ANEW, *(option.format(name=name) for option in more), f"'{name}{_bounds(name)}'"))


def _distribution(module: str) -> str:
    """The name under which a module was installed, such as onnxruntime-gpu."""
    return sorted(metadata.packages_distributions().get(module, [module]))[0].replace("_", "-")


def _metadata_version(module: str) -> str | None:
    try:
        return metadata.version(_distribution(module))
    except metadata.PackageNotFoundError:
        return None


def _bounds(name: str) -> str:
    """Versions that Pilotfish's own metadata asks for, as ">=1.31,<2"; empty where they say nothing of it."""
    try:
        wanted = metadata.requires(__package__.partition(".")[0]) or []
    except metadata.PackageNotFoundError:
        return ""
    for requirement in wanted:
        found = re.match(r"([\w.-]+)\s*([^;\s]*)", requirement)
        if found is not None and found[1].replace("_", "-").lower() == name.replace("_", "-").lower():
            return found[2]
    return ""
