"""Quantizes GGUF files: K-quants through llama.cpp, the plain types also without it."""

from __future__ import annotations

import errno
import importlib.util
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType

from ...runtime.errors import EngineError, EngineMissingError, OptionError
from ...runtime.files.gguf_file import GgufFile, read_gguf
from ...runtime.install import install_command
from ...runtime.progress import Share
from ...runtime.storage import disk_is_full, temporary_name, write_error
from ..quantize.weight_form import Stored, WeightForm
from .llama_tokenize import process_environment
from .requantize import requantize

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KINDS: Mapping[str, int] = MappingProxyType(  # llama.cpp's numbers of file types
    {
        **{"F32": 0, "F16": 1, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17},
        **{"Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2},
        **{"Q3_K_M": 12, "Q3_K_S": 11, "Q2_K": 10},
    }
)
BITS = (2, 3, 4)  # a weight, that kind_of_bits() knows a kind for
_PLAIN = ("F32", "F16", "Q4_0", "Q4_1", "Q8_0")  # what the gguf package quantizes to
_K_BLOCK = 256  # columns of a block of K-quants
_TABLE_TYPES: Mapping[Stored, str] = MappingProxyType({"fp32": "F32", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_0"})
_LAST_LINES = 5


def kind_for(form: WeightForm, config: PretrainedConfig | None = None) -> str:
    """The kind of file that stores layers as this form says.

    config: of the model. K-quants have blocks of 256 columns; a model with rows that do not consist of such blocks
    gets Q4_1, because what llama.cpp falls back on (Q5_0) has no fast kernels.
    """
    if form.layers != "int4":
        return {"fp32": "F32", "fp16": "F16", "int8": "Q8_0"}[form.layers]
    if form.symmetric:
        return "Q4_0"
    if config is None:
        return "Q4_K_M"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inner = config.d_ff if hasattr(config, "d_ff") else config.intermediate_size
    columns = (config.hidden_size, inner, config.num_attention_heads * head_dim)
    return "Q4_1" if any(n % _K_BLOCK for n in columns) else "Q4_K_M"


def kind_of_bits(bits: int, file: GgufFile) -> str:
    """The kind of file whose layers have so many bits a weight, one of BITS; what fits no blocks of it has more.

    For 4 bits the one with the fastest kernels: a file with rows that do not consist of blocks of 256 gets Q4_0.
    """
    if bits not in BITS:
        raise OptionError(f"{bits} bits a weight: there are kinds for {', '.join(map(str, BITS))}.")
    whole = all(tensor.shape[-1] % _K_BLOCK == 0 for tensor in file.tensors.values() if len(tensor.shape) > 1)
    return {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M" if whole else "Q4_0"}[bits]


def table_types(form: WeightForm) -> dict[str, str]:
    """quantize_gguf's `embedding` and `output` for this form."""
    return {"embedding": _TABLE_TYPES[form.embedding_form], "output": _TABLE_TYPES[form.output_form]}


def quantize_gguf(
    source: Path,
    out: Path,
    kind: str,
    *,
    embedding: str | None = None,
    output: str | None = None,
    allow_requantize: bool = False,
    threads: int = 0,
    progress: Share | None = None,
) -> dict[str, int]:
    """Write a quantized copy; what comes back is the number of weights of each type that is in it.

    kind: one of KINDS. Where a matrix has rows that do not fit its blocks, another type is taken; the result says so.
    embedding, output: types of the token table and the output matrix, such as "Q8_0"; None is what llama.cpp takes.
    allow_requantize: the source may hold quantized weights, whose loss the new loss is added to.
    threads: 0 is all.
    Raises OptionError, ModelFileError, CacheWriteError, EngineMissingError where llama-cpp-python is needed, and
    EngineError where llama.cpp fails. Nothing half-written stays.
    """
    check_types(kind, embedding, output)
    file = read_gguf(source)
    before = weights_by_type(file)
    if not allow_requantize and before.keys() - {"F32", "F16", "BF16"}:
        raise OptionError(
            f"{source} is quantized already ({', '.join(before)}); quantizing it again adds to its loss. Give the "
            "model that it was made from, or allow_requantize=True."
        )
    if not out.parent.is_dir():
        raise write_error(out.parent, FileNotFoundError(errno.ENOENT, "there is no such folder"))
    report = progress or (lambda share: None)
    temporary = temporary_name(out)
    try:
        if importlib.util.find_spec("llama_cpp") is not None:
            _with_llama_cpp(source, temporary, kind, embedding, output, threads, report)
        elif kind in _PLAIN:
            requantize(file, temporary, kind, embedding or _table_type(kind), output or _table_type(kind), report)
        else:
            raise EngineMissingError(
                f"quantizing to {kind} needs llama.cpp. Add it with: {install_command('llamacpp')}   Without it "
                f"there are {', '.join(_PLAIN)}."
            )
        made = weights_by_type(read_gguf(temporary))
        temporary.replace(out)
    except OSError as error:
        raise write_error(out.parent, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return made


def weights_by_type(file: GgufFile) -> dict[str, int]:
    """How many weights of matrices there are of each type, the most frequent first; vectors are left out."""
    count: Counter[str] = Counter()
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            count[tensor.type_name] += tensor.shape[0] * tensor.shape[1]
    return dict(count.most_common())


def bits_per_weight(file: GgufFile) -> float:
    """Mean bits of a weight of the matrices, scales included."""
    matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) > 1]
    return 8 * sum(tensor.data.nbytes for tensor in matrices) / sum(math.prod(tensor.shape) for tensor in matrices)


def check_types(kind: str, embedding: str | None, output: str | None) -> None:
    if kind not in KINDS:
        raise OptionError(f"there is no kind {kind!r} of GGUF file here; there are {', '.join(KINDS)}.")
    for name, chosen in (("embedding", embedding), ("output", output)):
        if chosen is not None and chosen not in _TABLE_TYPES.values():
            raise OptionError(f"{name} cannot be {chosen!r}; choose one of {', '.join(_TABLE_TYPES.values())}.")


def _table_type(kind: str) -> str:
    return "Q8_0" if kind.startswith("Q4") else kind


def _with_llama_cpp(
    source: Path, out: Path, kind: str, embedding: str | None, output: str | None, threads: int, progress: Share
) -> None:
    numbers = [-1 if name is None else int(GGMLQuantizationType[name]) for name in (embedding, output)]
    arguments = [str(source.resolve()), str(out.resolve()), str(KINDS[kind]), *map(str, numbers), str(threads)]
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.llama_quantize", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=process_environment(),
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                text = line.decode("utf-8", "replace").rstrip()
                said = [*said[-_LAST_LINES:], text] if text else said
                step = re.match(r"\[\s*(\d+)/\s*(\d+)\]", text)
                if step:
                    progress(int(step[1]) / int(step[2]))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        if disk_is_full(OSError(), out.parent):
            raise write_error(out.parent, OSError(errno.ENOSPC, "the disk is full"))
        how = f"died of signal {-process.returncode}" if process.returncode < 0 else "failed"
        raise EngineError(f"llama.cpp {how} while it quantized {source} to {kind}. Its last words: {' / '.join(said)}")
