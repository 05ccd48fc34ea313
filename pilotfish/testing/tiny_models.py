"""Tiny random models as GGUF files: whole enough for the product to run on, small enough to be made by a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MERGES = ("h e", "l l", "he ll", "hell o", "t h", "th e", "i n", "a n", "an d", "Ġ the", "Ġ and", "Ġ Ġ", "1 2")
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_F16_AT = {  # where the scales of a block lie, which must not be random bits (NaN, infinity), and their relative size
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), ((0, 1.0),)),
    **{"Q4_1": ((0, 1.0), (2, -7.5)), "Q5_1": ((0, 1.0), (2, -15.5)), "Q3_K": ((108, 1.0),), "Q6_K": ((208, 1.0),)},
    **{"Q2_K": ((80, 1.0), (82, 1.5)), "Q4_K": ((0, 1.0), (2, 7.5)), "Q5_K": ((0, 1.0), (2, 15.5))},
}
BLOCK_TYPES = tuple(_F16_AT)
_BY_HAND = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")  # what gguf.quants reads but cannot write


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a tiny decoder. Rows of K-quants need multiples of 256 columns: see K_SIZES."""

    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 128
    layers: int = 2
    context: int = 2048


K_SIZES = Sizes(hidden=256, heads=8, kv_heads=2, head_dim=32, ffn=256)


def random_blocks(type_name: str, rows: int, columns: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Random bits of a quantized type, but for scales that give values of spread 2 / sqrt(columns).

    (rows, bytes per row)
    """
    kind = GGMLQuantizationType[type_name]
    block, n_bytes = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, columns // block, n_bytes), dtype=np.uint8)
    scales = rng.uniform(0.5, 1.0, (len(_F16_AT[type_name]), rows, columns // block))

    def scaled(factor: float) -> npt.NDArray[np.uint8]:
        for (at, relative), scale in zip(_F16_AT[type_name], scales, strict=True):
            bits = (factor * relative * scale).astype("<f2").view(np.uint8)
            raw[..., at : at + 2] = bits.reshape(*scale.shape, 2)
        return raw.reshape(rows, -1)

    spread = float(dequantize(scaled(2.0**-10), kind).std()) * 2.0**10
    return scaled(2.0 / np.sqrt(columns) / spread)


def tiny_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    quant: str | Callable[[str], str] = "Q4_1",
    sizes: Sizes = Sizes(),
    tied: bool = True,
    seed: int = 0,
    metadata: dict[str, float | int | str] | None = None,
    rope_factors: npt.NDArray[np.float32] | None = None,
    extra_tensors: dict[str, npt.NDArray[np.float32]] | None = None,
    template: str = CHATML,
    tensors_per_file: int = 0,
) -> Path:
    """The path of a random model written there, with a byte-level BPE tokenizer and a ChatML template.

    architecture: "llama" (permuted q and k) or "qwen2" (biases on q, k and v).
    quant: type of the matrices, or a function from a tensor's name to its type. The embedding falls back to Q8_0
        where a type is not one that gguf.quants can write.
    tied: whether the output matrix is the embedding. metadata: more keys, without the architecture's prefix.
    tensors_per_file: splits the model into files of so many; the path is that of the first one then.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_file)
    vocab_size = add_tokenizer(writer, template)
    _add_sizes(writer, architecture, sizes, metadata or {})
    pick = quant if callable(quant) else lambda name: quant
    shapes = _shapes(sizes, vocab_size, tied)
    for name, shape in shapes.items():
        _add_matrix(writer, name, shape, pick(name), rng)
    norms = [f"blk.{i}.{kind}_norm.weight" for i in range(sizes.layers) for kind in ("attn", "ffn")]
    for name in (*norms, "output_norm.weight"):
        writer.add_tensor(name, rng.uniform(0.5, 1.5, sizes.hidden).astype(np.float32))
    if architecture == "qwen2":
        for name, shape in shapes.items():
            if name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")):
                writer.add_tensor(name.replace("weight", "bias"), rng.normal(0, 0.5, shape[0]).astype(np.float32))
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-*-of-*.gguf")) if tensors_per_file else path


def add_tokenizer(writer: gguf.GGUFWriter, template: str) -> int:
    """The number of tokens of a small vocabulary, which is added with a chat template."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [chr(byte) for byte in printable] + others + [merge.replace(" ", "") for merge in MERGES]
    types = [1] * len(tokens) + [3] * len(CONTROL)
    tokens += CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_chat_template(template)
    return len(tokens)


def _add_sizes(writer: gguf.GGUFWriter, architecture: str, s: Sizes, more: dict[str, float | int | str]) -> None:
    writer.add_name(f"tiny {architecture}")
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.hidden)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.ffn)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if s.head_dim * s.heads != s.hidden:
        writer.add_key_length(s.head_dim)
        writer.add_value_length(s.head_dim)
        writer.add_rope_dimension_count(s.head_dim)
    for key, value in more.items():
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"{architecture}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        else:
            writer.add_float32(f"{architecture}.{key}", value)


def _shapes(s: Sizes, vocab_size: int, tied: bool) -> dict[str, tuple[int, int]]:
    queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
    shapes = {"token_embd.weight": (vocab_size, s.hidden)}
    if not tied:
        shapes["output.weight"] = (vocab_size, s.hidden)
    for i in range(s.layers):
        for name, shape in {
            "attn_q": (queries, s.hidden),
            "attn_k": (keys, s.hidden),
            "attn_v": (keys, s.hidden),
            "attn_output": (s.hidden, queries),
            "ffn_gate": (s.ffn, s.hidden),
            "ffn_up": (s.ffn, s.hidden),
            "ffn_down": (s.hidden, s.ffn),
        }.items():
            shapes[f"blk.{i}.{name}.weight"] = shape
    return shapes


def _add_matrix(
    writer: gguf.GGUFWriter, name: str, shape: tuple[int, int], type_name: str, rng: np.random.Generator
) -> None:
    if type_name in _BY_HAND and name != "token_embd.weight":
        raw = random_blocks(type_name, *shape, rng)
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[type_name])
        return
    # Wide enough for the model's answers to depend on what it attends to.
    values = rng.normal(0.0, 2.0 / np.sqrt(shape[1]), shape).astype(np.float32)
    kind = GGMLQuantizationType["Q8_0" if type_name in _BY_HAND else type_name]
    writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
