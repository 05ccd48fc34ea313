"""What layers of a decoder may differ in: heads, MLP, and whose keys and values they attend to."""

from __future__ import annotations

from ..errors import UnsupportedModelError
from .decoder_family import Family
from .gguf_numbers import Numbers, contradiction

_LENGTHS = {"attention.value_length": "values"}
_NEAR_LENGTHS = {
    "attention.key_length_swa": "keys in layers with a window",
    "attention.value_length_swa": "values in layers with a window",
}
_LONGEST_HEAD = 1 << 16


def near_head_dim(numbers: Numbers, family: Family, n_heads: int, head_dim: int) -> int:
    """The length of a head in layers with a window, all lengths checked."""
    path, near_dim = numbers.file.path, head_dim
    near = dict.fromkeys(_NEAR_LENGTHS, head_dim)
    if family.windows is not None and family.windows.own_heads:
        near_dim = numbers.get("attention.key_length_swa", head_dim)
        near = dict.fromkeys(_NEAR_LENGTHS, near_dim)
    for length in (head_dim, near_dim):
        if not 2 <= length <= _LONGEST_HEAD:
            raise contradiction(numbers.file, f"{n_heads} heads of {length} numbers are no heads")
    for key, expected in {**dict.fromkeys(_LENGTHS, head_dim), **near}.items():
        length, what = numbers.get(key, expected), {**_LENGTHS, **_NEAR_LENGTHS}[key]
        if length != expected:
            raise UnsupportedModelError(
                f"{path} has {what} of {length} numbers and keys of {expected} ({key}): not yet."
            )
    return near_dim


def layer_sizes(
    numbers: Numbers, family: Family, n_layers: int, n_heads: int, expert_size: int | None
) -> list[tuple[int, int]]:
    """The key-value heads of each layer, and the size of its MLP. expert_size: of a mixture that names no other."""
    file = numbers.file
    kv_heads = numbers.each("attention.head_count_kv", n_layers, n_heads)
    ffn_sizes = numbers.each("feed_forward_length", n_layers, expert_size)
    for n in set(kv_heads):
        if n_heads % n:
            raise contradiction(file, f"{n_heads} heads cannot share {n} key-value heads evenly")
    if not family.uneven and (len(set(kv_heads)) > 1 or len(set(ffn_sizes)) > 1):
        raise UnsupportedModelError(
            f"{file.path} has layers of different sizes (attention.head_count_kv, feed_forward_length), which is not "
            f"built yet for {file.architecture}."
        )
    return list(zip(kv_heads, ffn_sizes, strict=True))


def cache_sources(numbers: Numbers, sliding: list[bool]) -> list[int | None]:
    """For each layer the earlier one whose keys and values it attends to: the last of its kind that has its own."""
    key, n_layers = "attention.shared_kv_layers", len(sliding)
    first = n_layers - (numbers.optional(key, int) or 0)
    if first < 1:
        raise contradiction(numbers.file, f"all {n_layers} layers share keys and values ({key})")
    found: list[int | None] = [None] * first
    for i in range(first, n_layers):
        source = next((j for j in reversed(range(first)) if sliding[j] == sliding[i]), None)
        if source is None or source != first - (2 if sliding[i] else 1):  # where llama.cpp takes them from
            raise UnsupportedModelError(
                f"{numbers.file.path} has layers that share keys and values ({key}) and do not follow a layer with a "
                "window and one without: not yet."
            )
        found.append(source)
    return found
