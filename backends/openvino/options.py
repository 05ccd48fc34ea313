"""Settings of the OpenVINO engine alone, and the types that its cache can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...runtime.errors import OptionError

_PLAIN = ("f32", "f16", "bf16")  # of a cache; keys and values alike
QUANTIZED = ("u8", "u4")  # keys and values may differ
_DEFAULT_CACHE = {"f32": "f16", "f16": "f16", "bf16": "bf16"}  # by precision


class OpenVinoOptions(BaseModel):
    """Settings of this engine alone.

    precision: in which activations are computed; bf16 and f16 are faster where the processor has them, and not exact.
    dynamic_quantization: activations are rounded to int8 in groups of so many before they meet quantized weights;
        None is what a bundle's recipe says, else the group of the weights, the fastest; 0 is off, which is slower and
        closer to the weights as they are.
    q4_k_minima: those of Q4_K blocks in GGUF files, as they are ("f16") or rounded to multiples of the block's scale
        ("integer"), which is faster for some widths and further off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["f32", "bf16", "f16"] = "f32"
    dynamic_quantization: int | None = Field(None, ge=0, multiple_of=16, le=1 << 16)
    q4_k_minima: Literal["f16", "integer"] = "f16"


def parse_options(options: Mapping[str, object]) -> OpenVinoOptions:
    """The checked options. Raises OptionError, which lists those there are."""
    try:
        return OpenVinoOptions.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(f"{n}={field.default!r}" for n, field in OpenVinoOptions.model_fields.items())
        raise OptionError(f"the openvino engine: {name}: {first['msg']}. Its options are {known}.") from error


def cache_types(kv_dtype: str | None, precision: str) -> tuple[str, str]:
    """Types of keys and values. Raises OptionError for what the engine does not store."""
    keys, _, values = (kv_dtype or _DEFAULT_CACHE[precision]).partition("/")
    values = values or keys
    plain = keys in _PLAIN and keys == values and ("bf16" in (keys, precision)) <= (keys == precision)
    if plain or (keys in QUANTIZED and values in QUANTIZED):
        return keys, values
    raise OptionError(
        f"the openvino engine cannot store its cache in {kv_dtype!r} with precision {precision}; it has f32, f16, u8 "
        "and u4, and keys and values apart: u8/u4, u4/u8. With precision bf16 it has bf16 in place of f32 and f16."
    )
