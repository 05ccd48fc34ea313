"""What to type for more packages, for every way in which Pilotfish can have been installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from pilotfish import backends
from pilotfish.runtime import install
from pilotfish.runtime.install import install_command


@pytest.fixture(autouse=True)
def looked_up_anew() -> Iterator[None]:
    install._origin.cache_clear()
    yield
    install._origin.cache_clear()


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'pilotfish[onnx,demo]'"),
        ({"url": "file:///src/my%20fish", "dir_info": {"editable": True}}, "pip install -e '/src/my fish[onnx,demo]'"),
        ({"url": "file:///src/fish", "dir_info": {}}, "pip install '/src/fish[onnx,demo]'"),
        (
            {"url": "file:///w/pilotfish-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'pilotfish[onnx,demo] @ file:///w/pilotfish-0.1.0-py3-none-any.whl'",
        ),
        (
            {"url": "https://host/fish", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'pilotfish[onnx,demo] @ git+https://host/fish@abc'",
        ),
    ],
    ids=["index", "editable", "folder", "wheel", "git"],
)
def test_the_command_is_that_of_this_installation(
    origin: dict[str, object] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    monkeypatch.setattr(install, "__file__", "/elsewhere/pilotfish/runtime/install.py")
    assert install_command("onnx", "demo") == command
    assert backends.get("onnx").install == command.replace(",demo", "")


def test_a_checkout_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", none)
    root = Path(__file__).parents[2]
    assert install_command("onnx") == f"pip install -e '{root}[onnx]'"
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda name: None))
    install._origin.cache_clear()  # as where Python is started in the checkout, beside what setuptools left there
    assert install_command("onnx") == f"pip install -e '{root}[onnx]'"
    monkeypatch.setattr(metadata, "distribution", none)
    monkeypatch.setattr(install, "__file__", "/elsewhere/pilotfish/runtime/install.py")
    install._origin.cache_clear()
    assert install_command("onnx") == "pip install 'pilotfish[onnx]'" and install_command() == "pip install pilotfish"
