"""A model as a GGUF file: metadata, tokenizer, and its tensors one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gguf
import numpy as np
import numpy.typing as npt

from ...runtime.errors import ModelFileError, OptionError, UnsupportedModelError
from ...runtime.progress import Share
from ...runtime.storage import disk_is_full, temporary_name, write_error
from ..sources.model_source import ModelSource
from .entries import add_entry, general_metadata
from .layout import LAYOUTS, Layout
from .metadata import metadata_of, rope_divisors
from .t5 import FAMILIES, T5Layout, t5_metadata
from .tokenizer import check_with_llama_cpp, tokenizer_metadata

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_F16_MAX = 65504.0


def write_gguf(
    source: ModelSource,
    model: PreTrainedModel,
    path: Path,
    *,
    stored: Literal["f32", "f16"] = "f16",
    progress: Share | None = None,
) -> None:
    """Write the model, with the tokenizer, template and license of its source, for llama.cpp and whoever reads GGUF.

    stored: what matrices become; vectors stay f32. Memory: the model and one tensor.
    Raises UnsupportedModelError for what the format has no place for, before anything is written; OptionError where
    a weight is too large for f16; CacheWriteError. Nothing half-written stays.
    """
    config = model.config
    layout = T5Layout() if config.model_type in FAMILIES else LAYOUTS.get(config.model_type)
    if layout is None:
        raise UnsupportedModelError(
            f"a model of the family {config.model_type!r} cannot be written as GGUF: not yet, because its layout is "
            f"not known here. Families that are: {', '.join((*LAYOUTS, *FAMILIES))}."
        )
    tensors = dict(_named(model, layout))
    own = t5_metadata(source, config) if isinstance(layout, T5Layout) else metadata_of(source, config)
    metadata = general_metadata(source) | own | tokenizer_metadata(source, config.vocab_size)
    temporary = temporary_name(path)
    try:
        writer = gguf.GGUFWriter(temporary, layout.architecture)
        for key, value in metadata.items():
            add_entry(writer, key, value)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32 if stored == "f32" else gguf.LlamaFileType.MOSTLY_F16)
        try:
            _write_tensors(writer, config, layout, tensors, stored, progress or (lambda share: None))
        finally:
            writer.close()
        check_with_llama_cpp(temporary, source.tokenizer, source.chat_template)
        temporary.replace(path)
    except OSError as error:
        if disk_is_full(error, path.parent) or not path.parent.is_dir():
            raise write_error(path.parent, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _named(model: PreTrainedModel, layout: Layout | T5Layout) -> Iterator[tuple[str, tuple[str, torch.Tensor]]]:
    """GGUF name, transformers' name and values of each tensor; matrices that are tied come once."""
    for name, values in model.named_parameters():
        found = layout.gguf_name(name)
        if found is None:
            raise UnsupportedModelError(f"the tensor {name} has no place in a GGUF file of a {layout.architecture}.")
        yield found, (name, values)


def _write_tensors(
    writer: gguf.GGUFWriter,
    config: PretrainedConfig,
    layout: Layout | T5Layout,
    tensors: dict[str, tuple[str, torch.Tensor]],
    stored: str,
    progress: Share,
) -> None:
    types = {
        name: np.dtype(np.float16 if stored == "f16" and t.dim() > 1 and not layout.keeps_f32(own) else np.float32)
        for name, (own, t) in tensors.items()
    }
    divisors = None if isinstance(layout, T5Layout) else rope_divisors(config)
    if divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", divisors.shape, divisors.dtype, divisors.nbytes)
    for name, (_, values) in tensors.items():
        writer.add_tensor_info(name, tuple(values.shape), types[name], values.numel() * types[name].itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for done, (name, (hf_name, values)) in enumerate(tensors.items()):
        writer.write_tensor_data(_arranged(hf_name, values, config, layout, types[name]))
        progress((done + 1) / len(tensors))


def _arranged(
    name: str, tensor: torch.Tensor, config: PretrainedConfig, layout: Layout | T5Layout, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """The values of a tensor as the file has them."""
    values = layout.arranged(name, tensor.detach().float().numpy(), config)
    if not np.isfinite(values).all():
        raise ModelFileError(f"the tensor {name} holds values that are not numbers. Fetch or copy the model again.")
    if dtype == np.float16 and np.abs(values).max() > _F16_MAX:
        raise OptionError(f"the tensor {name} holds values beyond f16's {_F16_MAX:.0f}. Store it as f32.")
    return np.ascontiguousarray(values, dtype=dtype)
