"""A decoder graph made elsewhere: how its attention keeps the past, and what that leaves free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import EngineMissingError, ModelFileError
from ...runtime.install import install_command

_SHARED = "GroupQueryAttention"  # appends to its past in place, where there is room


@dataclass(frozen=True, slots=True)
class Attention:
    """in_place: all layers write new entries behind the old ones, in the same memory. rotates: keys are rotated by
    their place in the cache, so that no entry can move. window: of the last entries that some layers see, where the
    operators say it; None: they know of none. n_heads: of queries, where the operators say it."""

    in_place: bool = False
    rotates: bool = False
    window: int | None = None
    n_heads: int | None = None


def attention_of(path: Path, n_layers: int) -> Attention:
    """What the operators of a graph say. Raises ModelFileError and EngineMissingError."""
    try:
        import onnx
    except ImportError as error:
        raise EngineMissingError(
            f"a graph made elsewhere is looked at with the package {error.name}. Add it with: {install_command('onnx')}"
        ) from error
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own errors have no common class
        raise ModelFileError(f"{path} is no ONNX graph: {error}. Fetch or copy it again.") from error
    found = [_attributes(node) for node in _nodes(graph) if node.op_type == _SHARED]
    if len(found) < n_layers:
        return Attention()
    windows = [node["local_window_size"] for node in found if node.get("local_window_size", -1) > 0]
    return Attention(
        in_place=True,
        rotates=any(node.get("do_rotary") == 1 for node in found),
        window=max(windows, default=None),
        n_heads=found[0].get("num_heads"),
    )


def _nodes(graph: Any) -> Iterator[Any]:
    """Of a graph and of the branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner)


def _attributes(node: Any) -> dict[str, int]:
    return {attribute.name: int(attribute.i) for attribute in node.attribute}
