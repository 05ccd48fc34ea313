"""How llama.cpp is asked to load a file: where its layers lie, and which types its cache has."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...runtime.errors import ModelFileError, OptionError, UnsupportedModelError
from ...runtime.leaving import in_engine
from .context import Handle
from .library import KV_TYPES, block_elements, gpus, library, listen

GPU_BUILD = 'CMAKE_ARGS="-DGGML_CUDA=ON" (or -DGGML_VULKAN=ON, -DGGML_METAL=ON) pip install llama-cpp-python'


class LlamaCppOptions(BaseModel):
    """Settings of this engine alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flash_attention: Literal["auto", "on", "off"] = "auto"  # "off" lets attention be observed
    n_gpu_layers: int | None = Field(None, ge=0)  # layers on the GPU; None: all
    tensor_split: tuple[float, ...] | None = None  # share of the layers for each GPU, in the order of devices()
    main_gpu: int | None = Field(None, ge=0)  # with tensor_split: the GPU for what is not split
    pair_rows: bool = True  # a single row that would get bits of its own is computed as two: see pairs_rows()
    use_extra_bufts: bool | None = None  # weights repacked for faster kernels; None: where this build survives it
    use_mmap: bool = True  # the file is mapped and not copied


def parse_options(given: object) -> LlamaCppOptions:
    """The checked options. Raises OptionError, which lists those there are."""
    try:
        return LlamaCppOptions.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise OptionError(
            f"options of the llamacpp engine: {problems}. There are {', '.join(LlamaCppOptions.model_fields)}."
        ) from None


def without_flash(options: LlamaCppOptions) -> LlamaCppOptions:
    """The options of a model that adds distances to its scores, which flash attention does not. Raises OptionError."""
    if options.flash_attention == "on":
        raise OptionError(
            "flash_attention='on': T5 adds a number for each distance to what attention compares, and llama.cpp's "
            "flash attention does not. Leave the option out."
        )
    return options.model_copy(update={"flash_attention": "off"})


def named_types(kv_dtype: str | None) -> tuple[str, str]:
    """Types of keys and values by name, whatever the model's heads. Raises OptionError for names there are not."""
    keys, _, values = (kv_dtype or "f16").partition("/")
    values = values or keys
    for kind in (keys, values):
        if kind not in KV_TYPES:
            raise OptionError(
                f"kv_dtype={kv_dtype!r}: the llamacpp engine stores keys and values as {', '.join(KV_TYPES)}, "
                'or apart as in "q8_0/f16".'
            )
    return keys, values


def cache_types(kv_dtype: str | None, head_dim: int, flash_attention: str) -> tuple[str, str]:
    """Types of keys and values for a kv_dtype such as "f16" or "q8_0/f16"; None is f16. Raises OptionError."""
    keys, values = named_types(kv_dtype)
    for kind in (keys, values):
        if head_dim % block_elements(kind):
            raise OptionError(
                f"kv_dtype={kv_dtype!r}: {kind} has blocks of {block_elements(kind)} numbers, which do not fit the "
                f"{head_dim} of a head of this model. Use f16, bf16 or f32."
            )
    if block_elements(values) > 1 and (flash_attention == "off" or keys == "f32"):
        raise OptionError(
            f"kv_dtype={kv_dtype!r}: values stored as {values} need flash attention, which is off (always for T5): "
            "attention can only be observed without it. "
            f"Use kv_dtype='{keys}/f16', or flash_attention='on' with a decoder."
        )
    return keys, values


def uses_flash(wanted: str, keys: str, values: str) -> bool | None:
    """Whether flash attention computes; None: whatever the device does well. Raises OptionError for an f32 cache."""
    if "f32" not in (keys, values):
        return None if wanted == "auto" else wanted == "on"
    if wanted == "on":
        raise OptionError(
            f"kv_dtype='{keys}/{values}': llama.cpp's flash attention rounds an f32 cache to f16 in every step. "
            "Use kv_dtype='f16', or flash_attention='off'."
        )
    return False


class Placement:
    """Which devices hold the layers."""

    def __init__(self, device: str, options: LlamaCppOptions) -> None:
        """Raises OptionError for devices that are not there and options that need one."""
        self._gpus = gpus()
        self._split, self._main = options.tensor_split, options.main_gpu
        self.device = next(iter(self._gpus), "gpu") if device == "gpu" else device
        self.offload = self.device != "cpu"
        if self.offload and self.device not in self._gpus:
            raise OptionError(
                f"the llamacpp engine has no device {device!r} here; it has {', '.join(('cpu', *self._gpus))}. "
                f"A build that uses GPUs: {GPU_BUILD}"
            )
        wants = [k for k in ("n_gpu_layers", "tensor_split", "main_gpu") if getattr(options, k) is not None]
        if wants and not self.offload:
            way = f"choose one of the devices {', '.join(self._gpus)}" if self._gpus else f"build it anew: {GPU_BUILD}"
            raise OptionError(f"{', '.join(wants)} need a GPU, but the device is the cpu; {way}")
        if self._main is not None and (self._split is None or self._main >= len(self._gpus)):
            raise OptionError(f"main_gpu goes with tensor_split and lies in 0..{len(self._gpus) - 1}.")
        if self._split is not None and (
            len(self._split) != len(self._gpus) or not all(x >= 0 for x in self._split) or not sum(self._split) > 0
        ):
            raise OptionError(
                f"tensor_split={self._split} must give a share to each of {len(self._gpus)} GPUs: "
                f"{', '.join(self._gpus)}."
            )
        self._layers = options.n_gpu_layers

    def described(self) -> str:
        """What of it changes bits or speed; empty where all lies on one device."""
        parts = [] if self._layers is None else [f"{self._layers} layers on the GPU"]
        if self._split is not None:
            parts.append(f"split {self._split} main {self._main or 0}")
        return " ".join(parts)

    def apply(self, lib: Any, params: Any) -> list[Any]:
        """Write it into llama_model_params; what is returned must live until the model is loaded."""
        names = list(self._gpus) if self._split is not None else [self.device] if self.offload else []
        devices = (ctypes.c_void_p * (len(names) + 1))(*(self._gpus[name] for name in names))  # ends with NULL
        params.devices = ctypes.cast(devices, ctypes.c_void_p)
        params.n_gpu_layers = 0 if not self.offload else -1 if self._layers is None else self._layers
        params.split_mode = lib.LLAMA_SPLIT_MODE_LAYER if self._split is not None else lib.LLAMA_SPLIT_MODE_NONE
        params.main_gpu = self._main or 0
        if self._split is None:
            return [devices]
        shares = (ctypes.c_float * max(lib.llama_max_devices(), len(self._split)))(*self._split)
        params.tensor_split = shares
        return [devices, shares]


def load_model(
    path: Path, architecture: str, vocab_size: int, placement: Placement, use_mmap: bool, extra_buffers: bool
) -> Handle:
    """The loaded model, without its vocabulary.

    The file must have been checked, or loaded by another process: llama.cpp trusts much of it. Raises ModelFileError.
    """
    lib = library()
    params = lib.llama_model_default_params()
    alive = placement.apply(lib, params)
    overrides = (lib.llama_model_kv_override * 3)()  # the last one ends the list
    overrides[0].key, overrides[0].tag = b"tokenizer.ggml.model", lib.LLAMA_KV_OVERRIDE_TYPE_STR
    overrides[0].value.val_str = b"no_vocab"
    overrides[1].key, overrides[1].tag = f"{architecture}.vocab_size".encode(), lib.LLAMA_KV_OVERRIDE_TYPE_INT
    overrides[1].value.val_i64 = vocab_size
    params.kv_overrides = overrides
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if use_mmap else lib.LLAMA_LOAD_MODE_NONE
    params.use_extra_bufts = extra_buffers
    with listen() as said, in_engine:
        pointer = lib.llama_model_load_from_file(str(path).encode(), params)
    del alive
    if not pointer:
        raise ModelFileError(f"llama.cpp cannot load {path}: {said.reason}.")
    return Handle(pointer, lib.llama_model_free)


def load_vocabulary(path: Path) -> Handle:
    """The vocabulary of a file alone. The same holds of the file, and the same is raised."""
    lib = library()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    with listen() as said, in_engine:
        pointer = lib.llama_model_load_from_file(str(path).encode(), params)
    if not pointer:
        raise ModelFileError(f"llama.cpp cannot read the vocabulary of {path}: {said.reason}.")
    return Handle(pointer, lib.llama_model_free)


def keeps_state(model: Handle) -> bool:
    """Whether a model sums its text up in a state, in all layers or in some."""
    lib = library()
    return bool(lib.llama_model_is_recurrent(model.pointer) or lib.llama_model_is_hybrid(model.pointer))


def require_text(model: Handle, path: Path) -> None:
    """Raise UnsupportedModelError for a model that does not continue a text from left to right."""
    lib = library()
    diffuses = lib.llama_model_is_diffusion(model.pointer)
    if diffuses or lib.llama_model_has_encoder(model.pointer) or not lib.llama_model_has_decoder(model.pointer):
        raise UnsupportedModelError(
            f"{path} is no model that continues text: llama.cpp "
            + ("writes its answers in any order." if diffuses else "has an encoder for it.")
        )
