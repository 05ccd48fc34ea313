"""Models by their name on the Hugging Face hub: one .gguf file of a repository, or a folder of what an engine runs.

Everything lies in the hub's own cache, which other programs share, and is found there without a network.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import inspect
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.checks import shown
from ..runtime.errors import DownloadError, ModelNotFoundError, OptionError
from ..runtime.files.optimum_folder import optimum_graph_among
from ..runtime.progress import Progress

PREFIX = "hf:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_PREFERRED = "q4_k_m"  # where a repository has several and none is named
_FOLDER = ("*.json", "*.model", "*.spm", "*.jinja", "LICENSE*", "README.md")
_RUNS = {
    "openvino_model.xml": ("openvino_model.xml", "openvino_model.bin"),
    "genai_config.json": ("*.onnx", "*.onnx.data", "*.onnx_data*"),
}
_WEIGHTS = ("*.safetensors",)  # of a folder that no engine runs as it is
_PICKLED = ("pytorch_model*.bin",)
_ANSWER_S = 10.0


def hub_model(name: str, report: Progress) -> Path:
    """The .gguf file, the first part of a split one, or the folder that a name stands for, without its prefix.

    name: "org/name", "org/name:FILE.gguf", "org/name:Q4_K_M", a part of the file's name, or "org/name:FOLDER", one that
        holds a decoder for OpenVINO or onnxruntime-genai.
    Raises OptionError for no such name or one that fits several files, ModelNotFoundError, and DownloadError.
    """
    repository, _, wanted = name.partition(":")
    if not _REPOSITORY.fullmatch(repository):
        raise OptionError(f"{shown(PREFIX + name)} is no name on the hub: it has the form {PREFIX}ORG/NAME[:FILE].")
    hub = _library(name)
    held, why = _listed(hub, repository)
    folder = wanted.strip("/") if wanted.strip("/") in runnable_folders(held) else None
    try:
        files = [] if folder else chosen_files(held, wanted, repository)
    except ModelNotFoundError:
        if why is None:
            raise
        raise _refused(f"{repository}:{wanted}", why) from why  # it may well be there, and only the cache was seen
    if not files:
        return _folder(hub, repository, folder_files(held, folder or ""), why, report) / (folder or "")
    offline = why is not None
    try:
        places = []
        fetched: Any = hub.hf_hub_download
        reports = "tqdm_class" in inspect.signature(fetched).parameters  # older releases draw bars of their own
        for file in files:
            bar: dict[str, Any] = {"tqdm_class": _bar(report, f"fetching {file}")} if reports else {}
            places.append(fetched(repository, file, local_files_only=offline, etag_timeout=_ANSWER_S, **bar))
            report(f"fetching {file}", 1.0)
        return Path(places[0])
    except Exception as error:  # its own errors and its network library's have no common class
        raise _refused(repository, why or error) from error


def is_hub_name(name: str) -> bool:
    """Whether a text has the form of a repository's name, with or without its prefix."""
    return _REPOSITORY.fullmatch(name.removeprefix(PREFIX)) is not None


def hub_folder(name: str, report: Progress) -> Path:
    """The folder of a repository without its .gguf files: what an export is made of. Raises DownloadError.

    name: as is_hub_name() takes it. Without a network, what the cache holds.
    """
    repository = name.removeprefix(PREFIX)
    hub = _library(repository)
    held, why = _listed(hub, repository)
    return _folder(hub, repository, weights_and_settings(held, "", pickled=True), why, report)


def runnable_folders(held: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The folders of a repository that hold a decoder which an engine runs as it is, and the patterns of its files;
    the repository itself is ""."""
    found = {}
    for name in held:
        folder, _, file = name.rpartition("/")
        if file in _RUNS:
            found[folder] = _RUNS[file]
    return found


def folder_files(held: Sequence[str], folder: str) -> list[str]:
    """What is fetched of a folder: a graph and its weights where an engine runs them, else safetensors; and their
    settings."""
    kinds = runnable_folders(held).get(folder)
    if kinds is not None:
        return _of_kinds(held, folder, (*_FOLDER, *kinds))
    files = weights_and_settings(held, folder)
    if folder or _of_kinds(held, folder, _WEIGHTS):
        return files
    return files + _optimum_graph(held)


def _optimum_graph(held: Sequence[str]) -> list[str]:
    """A decoder's graph as optimum lays it out, and its weights; none of an encoder-decoder, which are several."""
    graph = optimum_graph_among(held)
    if graph is None or any(fnmatch.fnmatch(name.rpartition("/")[2], "*encoder_model*.onnx") for name in held):
        return []
    return [name for name in held if name == graph or re.fullmatch(re.escape(graph) + r"[._]data.*", name)]


def weights_and_settings(held: Sequence[str], folder: str, *, pickled: bool = False) -> list[str]:
    """Safetensors without second copies of them, and their settings. pickled: where there are none, torch's files."""
    weights = _of_kinds(held, folder, _WEIGHTS)
    usual = [name for name in weights if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name.rpartition("/")[2])]
    if pickled and not weights:
        weights = _of_kinds(held, folder, _PICKLED)
    return _of_kinds(held, folder, _FOLDER) + (usual or weights)


def _of_kinds(held: Sequence[str], folder: str, kinds: Sequence[str]) -> list[str]:
    inside = [(name, name.rpartition("/")[2]) for name in held if name.rpartition("/")[0] == folder]
    return [name for name, file in inside if any(fnmatch.fnmatch(file, kind) for kind in kinds)]


def chosen_files(held: Sequence[str], wanted: str, repository: str) -> list[str]:
    """The files of a repository that are meant, all parts of a split one; none for its folder of safetensors."""
    models = sorted(name for name in held if name.endswith(".gguf") and "mmproj" not in name.lower())
    if not wanted and not models:
        return []
    fit = [name for name in models if wanted in (name, Path(name).name)] or [
        name for name in models if re.search(rf"(^|[-_./]){re.escape(wanted.lower())}([-_./]|$)", name.lower())
    ]
    if not wanted:
        fit = [name for name in models if _PREFERRED in name.lower()] or models
    sets = sorted({_PART.sub("", name) for name in fit})
    listed = ", ".join(sorted({_PART.sub(".gguf", name) for name in models}))
    if not sets:
        folders = ", ".join(sorted(filter(None, runnable_folders(held))))
        more = f" Folders that run: {folders}." if folders else ""
        raise ModelNotFoundError(f"{repository} has no .gguf file {shown(wanted)}; it has {listed or 'none'}.{more}")
    if len(sets) > 1:
        raise OptionError(
            f"{repository} has {len(sets)} files that fit; name one, {PREFIX}{repository}:FILE, of {listed}."
        )
    return fit


def _library(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        name = name.removeprefix(PREFIX)
        raise DownloadError(f"{PREFIX}{name} needs a package. Add it with: pip install huggingface_hub") from error
    return huggingface_hub


def _folder(hub: Any, repository: str, files: Sequence[str], why: Exception | None, report: Progress) -> Path:
    """A repository with these files. why: the reason that only the cache can be looked at."""
    what, names = f"fetching {repository}", [glob.escape(name) for name in files]
    fetched: Any = hub.snapshot_download
    bars: dict[str, Any] = {"tqdm_class": _bar(report, what)}
    try:
        found = fetched(
            repository, allow_patterns=names, local_files_only=why is not None, etag_timeout=_ANSWER_S, **bars
        )
        report(what, 1.0)
        return Path(found)
    except Exception as error:  # its own errors and its network library's have no common class
        raise _refused(repository, why or error) from error


def _listed(hub: Any, repository: str) -> tuple[list[str], Exception | None]:
    """The files of a repository, and why only those in the cache could be looked at."""
    try:
        info = hub.HfApi().model_info(repository, timeout=_ANSWER_S)
        return [sibling.rfilename for sibling in info.siblings or ()], None
    except Exception as error:  # no network, no such repository, a login that is needed
        with contextlib.suppress(Exception):
            folder = Path(hub.snapshot_download(repository, local_files_only=True))
            return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()], error
        raise _refused(repository, error) from error


def _bar(report: Progress, what: str) -> type[Any]:
    """A progress bar of the hub's kind that reports instead of drawing."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc,unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.total:
                report(what, min(self.n / self.total, 1.0))
            return bool(shown)

    return Bar


def _refused(repository: str, error: Exception) -> DownloadError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return DownloadError(
        f"{PREFIX}{repository} cannot be fetched, and is not in the hub's cache: {lines[0][:200].rstrip('.')}. Check "
        "the name and the network; a repository that asks for a login wants: hf auth login"
    )
