"""A decoder's description, read from a file: what the importer and the reference engine both build from.

Whatever in a file nobody has read, metadata or tensor, is a refusal: its model computes something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import ModelFileError, UnsupportedModelError
from .decoder_description import (
    INPUT_NORM,
    INPUT_PROJECTION,
    INPUT_TABLE,
    LAYER_SCALE,
    DecoderShape,
    ExpertSizes,
    LayerKind,
    LayerSizes,
    Temperature,
)
from .decoder_families import FAMILIES
from .decoder_family import Family, Windows
from .decoder_file import DecoderFile
from .gguf_numbers import Numbers, contradiction
from .layer_sizes import cache_sources, layer_sizes, near_head_dim
from .rotation import FACTORS, LONG, SHORT, Rotation, known_length, plain_rotation, read_rotation

ARCHITECTURES = ("llama", "qwen2")  # built as llama is, as far as engines with graphs of their own are concerned

_REFUSED = {  # metadata (without prefix) that changes the computation in ways not built yet
    "expert_count": "mixtures of experts",
    "attention.sliding_window": "sliding-window attention",
    "logit_scale": "scaled logits",
    "residual_scale": "scaled residuals",
    "embedding_scale": "scaled embeddings",
    "attention.scale": "a scale of attention of its own",
    "attn_logit_softcapping": "capped attention",
    "final_logit_softcapping": "capped logits",
    "pooling_type": "pooled embeddings",
    "nextn_predict_layers": "layers that predict several tokens",
}
_IDLE = {  # metadata that decoders are not computed from
    *(
        "vocab_size",
        "expert_used_count",
        "tensor_data_layout",
        "attention.layer_norm_epsilon",
        "rope.scaling.finetuned",
    ),
}
# What Ollama's files hold beside the decoder: parts that see and hear, which no text meets.
_OTHER_KEYS, _OTHER_TENSORS = ("vision.", "audio.", "mm."), ("v.", "a.", "mm.")
_MAX_EXPERTS = 1 << 10
_MAX_CONTEXT = 1 << 20  # rotary tables of so many positions are still made in seconds


def decoder_shape(file: DecoderFile) -> DecoderShape:
    """The description of the model in a file.

    Raises UnsupportedModelError for what is not built yet, naming it, and ModelFileError for what contradicts itself.
    """
    arch = file.architecture
    family = FAMILIES.get(arch)
    if family is None:
        raise UnsupportedModelError(
            f"{file.path} holds a model of the architecture {arch!r}; GGUF import knows {', '.join(FAMILIES)}."
        )
    if file.in_halves:
        family = replace(family, pairs=False)
    if "token_embd.weight" not in file.tensors:
        raise contradiction(file, f"there is no tensor {file.called('token_embd.weight')}")
    numbers = Numbers(file)
    shape = _read(numbers, family)
    _check_unread(numbers)
    if shape.context_length > _MAX_CONTEXT:
        raise UnsupportedModelError(
            f"{file.path} is made for contexts of {shape.context_length} tokens; at most {_MAX_CONTEXT} are built yet."
        )
    _check_tensors(file, shape)
    return shape


def _read(numbers: Numbers, family: Family) -> DecoderShape:
    file = numbers.file
    hidden, n_heads = numbers.need("embedding_length", int), numbers.need("attention.head_count", int)
    n_layers = numbers.need("block_count", int)
    head_dim = numbers.get("attention.key_length", hidden // n_heads)
    if n_layers > len(file.tensors):
        raise contradiction(file, f"it claims {n_layers} layers, but holds {len(file.tensors)} tensors")
    near_dim = near_head_dim(numbers, family, n_heads, head_dim)
    experts = _experts(numbers, family)
    sizes = layer_sizes(numbers, family, n_layers, n_heads, None if experts is None else experts.size)
    if not numbers.flag("attention.causal", True):
        raise UnsupportedModelError(f"{file.path} is no model that continues text: its attention is not causal.")
    layers = tuple(_layers(numbers, family, sizes, head_dim, near_dim))
    temperature, trained = _scalar(numbers, family, "attention.temperature_scale"), known_length(numbers)
    length = numbers.get("rope.scaling.original_context_length", trained)
    logits = _scalar(numbers, family, "logit_scale")
    attention_scale = _scalar(numbers, family, "attention.scale")
    if n_layers == family.wide_scale_layers:
        attention_scale = (hidden // n_heads) ** -0.5
    first = layers[0].sizes
    assert first is not None
    layers = tuple(replace(x, sizes=None) if x.sizes == first else x for x in layers)
    return DecoderShape(
        architecture=file.architecture,
        n_layers=n_layers,
        hidden_size=hidden,
        n_heads=n_heads,
        kv_heads=first.kv_heads,
        head_dim=first.head_dim,
        ffn_size=numbers.get("expert_shared_feed_forward_length", first.ffn_size) if experts else first.ffn_size,
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        context_length=trained,
        norm_epsilon=numbers.need("attention.layer_norm_rms_epsilon", float),
        layers=layers,
        family=family,
        experts=experts,
        attention_scale=family.score_scale or attention_scale,
        attention_softcap=_scalar(numbers, family, "attn_logit_softcapping"),
        temperature=None if temperature is None else Temperature(temperature, length),
        embedding_scale=hidden**0.5 if family.embedding_root else _scalar(numbers, family, "embedding_scale") or 1.0,
        residual_scale=_scalar(numbers, family, "residual_scale") or 1.0,
        logit_scale=1.0 if logits is None else 1.0 / logits,
        logit_softcap=_scalar(numbers, family, "final_logit_softcapping"),
        layer_input_size=numbers.optional("embedding_length_per_layer_input", int) if family.layer_inputs else None,
    )


def _experts(numbers: Numbers, family: Family) -> ExpertSizes | None:
    """What a mixture of experts consists of; None where the model is none."""
    mixture, path = family.mixture, numbers.file.path
    if mixture is None or (not mixture.always and not numbers.optional("expert_count", int)):
        return None
    count, used = numbers.need("expert_count", int), numbers.need("expert_used_count", int)
    if not used <= count <= _MAX_EXPERTS:
        raise ModelFileError(f"{path}: {used} of {count} experts are no choice (of at most {_MAX_EXPERTS}).")
    size = numbers.optional("expert_feed_forward_length", int)
    return ExpertSizes(count, used, size or numbers.need("feed_forward_length", int))


def _scalar(numbers: Numbers, family: Family, key: str) -> float | None:
    """A constant that this architecture may have; None where it has none, also where the file says 0."""
    if key not in family.scalars:
        return None
    found = numbers.optional(key, float)
    silent = f"{numbers.file.architecture}.{key}" not in numbers.file.metadata
    return family.scalars[key] if silent else found


def _layers(
    numbers: Numbers, family: Family, sizes: Sequence[tuple[int, int]], head_dim: int, near_dim: int
) -> Iterator[LayerKind]:
    """What each layer has of its own, its sizes always.

    sizes: key-value heads and MLP of each; head_dim, near_dim: the length of a head, and that in layers with a window.
    """
    n_layers = len(sizes)
    full: Rotation | None = read_rotation(numbers, head_dim, family.scalings)
    assert full is not None
    if family.pairs and full.rotated != head_dim:
        raise UnsupportedModelError(
            f"{numbers.file.path} rotates {full.rotated} of {head_dim} dimensions of a head: not built yet for "
            f"{numbers.file.architecture}."
        )
    window, near, sliding, own_heads = None, full, [False] * n_layers, False
    if family.windows is not None:
        own_heads = family.windows.own_heads
        window, near, sliding = _windows(numbers, family.windows, full, n_layers, near_dim)
    if not own_heads and numbers.get("rope.dimension_count_swa", full.rotated) != full.rotated:
        raise UnsupportedModelError(f"{numbers.file.path} rotates heads by different lengths: not yet.")
    sources = cache_sources(numbers, sliding) if family.shared_caches else [None] * n_layers
    full_layers = [i for i in range(n_layers) if not sliding[i] and sources[i] is None]
    keys_as_values = family.keys_as_values and not any(
        f"blk.{i}.attn_v.weight" in numbers.file.tensors for i in full_layers
    )
    if family.rotates_if_finetuned and not numbers.flag("rope.scaling.finetuned", True):
        full = None
    for i, ((kv_heads, ffn_size), source) in enumerate(zip(sizes, sources, strict=True)):
        if source is not None and sizes[source][0] != kv_heads:
            raise ModelFileError(
                f"{numbers.file.path}: layer {i} has {kv_heads} key-value heads and shares the {sizes[source][0]} of "
                f"layer {source}."
            )
        turned, seen = (near, window) if sliding[i] else (full, None)
        if family.unrotated_every is not None and (i + 1) % family.unrotated_every == 0:
            turned, seen = None, None
        own = LayerSizes(kv_heads, near_dim if sliding[i] else head_dim, ffn_size)
        yield LayerKind(turned, seen, own, source, keys_as_values and not sliding[i] and source is None)


def _windows(
    numbers: Numbers, windows: Windows, full: Rotation, n_layers: int, near_dim: int
) -> tuple[int | None, Rotation, list[bool]]:
    """The window, the rotation of the layers that have it, and which these are. near_dim: the length of their heads."""
    key = "attention.sliding_window"
    silent = f"{numbers.file.architecture}.{key}" not in numbers.file.metadata
    size = windows.size if silent else numbers.optional(key, int)
    base = numbers.get("rope.freq_base", 10000.0)
    own = numbers.get("rope.freq_base_swa", windows.base or base)
    if windows.full_every is None:
        sliding = [True] * n_layers
    else:
        sliding = numbers.flags("attention.sliding_window_pattern", n_layers, windows.full_every)
    if windows.own_heads:
        size, rotated = numbers.need(key, int), numbers.get("rope.dimension_count_swa", near_dim)
        if rotated % 2 or rotated > near_dim:
            raise ModelFileError(f"{numbers.file.path}: {rotated} of {near_dim} numbers of a head cannot be rotated.")
    else:
        rotated = full.rotated
    if size is None:
        return None, full, [False] * n_layers
    near = full if windows.base is None else plain_rotation(own, rotated)
    if windows.base is None and own != base:
        raise UnsupportedModelError(
            f"{numbers.file.path} rotates layers with a window by a base of their own (rope.freq_base_swa), which is "
            f"not built yet for {numbers.file.architecture}."
        )
    return (size if size < known_length(numbers) else None), near, sliding


def _check_unread(numbers: Numbers) -> None:
    """Refuse a file that says something that nobody has asked for."""
    file, unread = (
        numbers.file,
        [key for key in numbers.unread() if key not in _IDLE and not key.startswith(_OTHER_KEYS)],
    )
    for key in sorted(unread, key=lambda key: key not in _REFUSED):
        what = _REFUSED.get(key, "something that is not known here")
        raise UnsupportedModelError(
            f"{file.path} uses {what} ({file.architecture}.{key}), which GGUF import does not build yet."
        )


def check_shapes(file: DecoderFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelFileError unless the file has each of these tensors in its shape."""
    for name, wanted in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise contradiction(file, f"it has no tensor {file.called(name)}")
        if tensor.shape != wanted:
            raise contradiction(file, f"tensor {file.called(name)} has shape {tensor.shape}, but {wanted} was expected")


def _check_tensors(file: DecoderFile, s: DecoderShape) -> None:
    """Refuse a file that lacks a tensor, and one with a tensor that would be ignored."""
    expected = {"output_norm.weight": (s.hidden_size,), "token_embd.weight": (s.vocab_size, s.hidden_size)}
    if "output.weight" in file.tensors:
        expected["output.weight"] = (s.vocab_size, s.hidden_size)
    if s.layer_input_size is not None:
        width = s.n_layers * s.layer_input_size
        expected |= {INPUT_TABLE: (s.vocab_size, width), INPUT_PROJECTION: (width, s.hidden_size)}
        expected[INPUT_NORM] = (s.layer_input_size,)
    for i in range(s.n_layers):
        expected |= _layer_tensors(file, s, i)
    check_shapes(file, expected)
    known = {*expected, *(name for name, kind in _ROPE_TENSORS.items() if kind in s.family.scalings)}
    for i, layer in enumerate(s.layers):
        if layer.cache_of is not None:  # checkpoints have these, and nobody computes them
            known |= {f"blk.{i}.{name}.weight" for name in ("attn_k", "attn_v", "attn_k_norm")}
    unknown = sorted(name for name in file.tensors.keys() - known if not name.startswith(_OTHER_TENSORS))
    if unknown:
        raise UnsupportedModelError(
            f"{file.path} has the tensor {file.called(unknown[0])}, which a {s.architecture} model as built here would "
            "ignore."
        )


_ROPE_TENSORS = {FACTORS: "factors", SHORT: "longrope", LONG: "longrope"}


def _layer_tensors(file: DecoderFile, s: DecoderShape, i: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's tensors, of biases those that the file has."""
    at, kind, sizes = f"blk.{i}.", s.layers[i], s.sizes(i)
    queries, keys, ffn = s.n_heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.ffn_size
    matrices = {"attn_output": (s.hidden_size, queries)}
    if s.mlp_suffix is not None:
        matrices[f"ffn_down{s.mlp_suffix}"] = (s.hidden_size, ffn)
    if s.family.packed:
        rows = {"attn_qkv": queries + 2 * keys, "ffn_up": 2 * ffn}
    else:
        rows = {"attn_q": queries}
        rows |= {f"ffn_{name}{s.mlp_suffix}": ffn for name in ("gate", "up") if s.mlp_suffix is not None}
        if kind.cache_of is None:
            rows |= {"attn_k": keys} if kind.keys_as_values else {"attn_k": keys, "attn_v": keys}
    if s.layer_input_size is not None:
        matrices["proj"] = (s.hidden_size, s.layer_input_size)
        rows["inp_gate"] = s.layer_input_size
    matrices |= {name: (n, s.hidden_size) for name, n in rows.items()}
    expected: dict[str, tuple[int, ...]] = {f"{at}{name}.weight": shape for name, shape in matrices.items()}
    for name in s.family.biases:
        if f"{at}{name}.bias" in file.tensors:
            expected[f"{at}{name}.bias"] = matrices[name][:1]
    expected |= {f"{at}{name}": shape for name, shape in _mixture_tensors(s).items()}
    if s.family.sinks:
        expected[f"{at}attn_sinks.weight"] = (s.n_heads,)
    per_head = s.family.query_key_norm == "head"
    widths = {"query_norm": sizes.head_dim if per_head else queries, "key_norm": sizes.head_dim if per_head else keys}
    if s.family.layer_scale:
        expected[LAYER_SCALE.format(i)] = (1,)
    return expected | {tensor: (widths.get(what, s.hidden_size),) for what, tensor in s.norms(i).items()}


def _mixture_tensors(s: DecoderShape) -> dict[str, tuple[int, ...]]:
    """Shapes of the router and of the experts, without their layer's name."""
    experts, mixture = s.experts, s.family.mixture
    if experts is None or mixture is None:
        return {}
    n, inside, hidden = experts.count, experts.size, s.hidden_size
    found: dict[str, tuple[int, ...]] = {"ffn_gate_inp": (n, hidden), "ffn_down_exps": (n, hidden, inside)}
    found |= {f"ffn_{name}_exps": (n, inside, hidden) for name in ("gate", "up")}
    shapes = {f"{name}.weight": shape for name, shape in found.items()}
    if mixture.biased:
        shapes |= {f"{name}.bias": shape[:-1] for name, shape in found.items()}
    if mixture.shared:
        shapes["ffn_gate_inp_shexp.weight"] = (hidden,)
    return shapes
