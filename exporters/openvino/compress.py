"""Weight compression of a decoder IR with NNCF, as a WeightForm says, and a check that it was done.

Data-aware methods change int4 layers only: "awq" (activation-aware scaling), "scale" (scale estimation) and "gptq"; any
of them go together. Embedding and output are compressed without data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ...runtime.errors import EngineError, EngineMissingError, OptionError
from ...runtime.interfaces import Tokens
from ...runtime.progress import Share
from ...runtime.telemetry import without_telemetry
from ..quantize.weight_form import WeightForm
from ..quiet import quiet
from ..sources.model_source import EXPORT_EXTRA
from .matrices import Matrices, Model, separate, store_as_bytes, store_as_half, store_on_own_grid

ON_OWN_GRID = "of them on a grid of their own"  # what compress() counts beside the forms
DataAware: TypeAlias = Literal["awq", "scale", "gptq"]
Find: TypeAlias = Callable[[Model], Matrices]

_WEIGHTED = {"MatMul", "Gather", "Convolution"}  # what NNCF would compress


@dataclass(frozen=True, slots=True)
class Compression:
    """How weights are compressed. Raises OptionError for what contradicts itself, before anything is read.

    methods: of DataAware, in any order. samples: tokens they look at.
    ratio: share of the layers' weights that become int4; the others, those that int4 would hurt most, become int8.
    """

    form: WeightForm
    methods: frozenset[DataAware] = frozenset()
    samples: tuple[Tokens, ...] = ()
    ratio: float = 1.0

    def __post_init__(self) -> None:
        unknown = self.methods - set(get_args(DataAware))
        if unknown:
            raise OptionError(
                f"{sorted(unknown)[0]!r} is no data-aware method; there are {', '.join(get_args(DataAware))}."
            )
        if not 0.0 <= self.ratio <= 1.0:
            raise OptionError(f"ratio is {self.ratio}, but it is a share of the layers' weights: 0 to 1.")
        if self.form.layers != "int4" and (self.methods or self.ratio != 1.0):
            what = ", ".join(sorted(self.methods)) or f"ratio={self.ratio}"
            raise OptionError(
                f"{what} is for int4 layers only, not for {self.form.layers}; leave it out, or choose int4."
            )
        if self.methods and not self.samples:
            raise OptionError(
                f"{', '.join(sorted(self.methods))} needs text to look at, and none was given; give samples, for "
                "example calibration_samples(tokenizer), or leave the method out."
            )

    def check_columns(self, part: str, columns: int, name: str) -> None:
        """Raise OptionError where the block does not divide the columns of a matrix that becomes int8 or int4.

        part: "layers", "embedding" or "output".
        """
        if self.forms[part] in ("int8", "int4") and columns % self.form.block:
            fits = max((block for block in (16, 32, 64, 128) if columns % block == 0), default=None)
            raise OptionError(
                f"blocks of {self.form.block} do not divide the {columns} columns of {name}; choose "
                f"{f'block={fits}' if fits else 'fp16'}."
            )

    @property
    def may_keep_grid(self) -> bool:
        """Whether a matrix that is on a grid of 16 levels already may stay on it, whatever its zero points."""
        return not (self.form.symmetric or self.methods or self.ratio < 1.0)

    @property
    def forms(self) -> dict[str, str]:
        """What each part becomes."""
        return {"embedding": self.form.embedding_form, "output": self.form.output_form, "layers": self.form.layers}


def compress(model: Model, find: Find, wanted: Compression, progress: Share) -> dict[str, int]:
    """Compress a model in place; how many matrices there are in each form, {"layers int4": 210}.

    find: where the matrices of such a model are.

    Raises EngineError where a matrix is not what was asked for: NNCF may skip one without a word.
    """
    form = wanted.form
    if find(model).tied and form.embedding_form != form.output_form:
        separate(find(model))
    forms, kept = wanted.forms, 0
    parts = find(model).parts  # the layers last: what data-aware methods look at then holds the others' error
    for part, group in parts.items():
        if forms[part] == "fp16":
            store_as_half(group)
        elif forms[part] == "int8":
            store_as_bytes(group, form.block, form.symmetric)
        elif forms[part] == "int4":
            left = store_on_own_grid(group, form.block) if wanted.may_keep_grid else group
            kept += len(group) - len(left)
            if left:
                names = {matrix.name for matrix in left}
                others = [n.get_friendly_name() for n in model.get_ops() if n.get_type_name() in _WEIGHTED]
                others = [name for name in others if name not in names]
                _compress_with_nncf(model, wanted, part, others, progress)
    stored = {(part, m.constant.get_friendly_name()): m.stored for part, ms in find(model).parts.items() for m in ms}
    found = Counter((part, kind) for (part, _), kind in stored.items())
    for part, kind in found:
        if kind != forms[part] and not (part == "layers" and kind == "int8" and wanted.ratio < 1.0):
            raise EngineError(
                f"NNCF left {found[part, kind]} of the matrices of {part} as {kind} where {forms[part]} was asked "
                "for. Choose another form of the weights, or install nncf 3.4."
            )
    progress(1.0)
    own = {ON_OWN_GRID: kept} if kept else {}
    return {f"{part} {kind}": n for (part, kind), n in sorted(found.items())} | own


def _compress_with_nncf(model: Model, wanted: Compression, part: str, others: list[str], progress: Share) -> None:
    """Compress the matrices of one part to int4: all in the graph but `others`."""
    nncf = _nncf()
    form, data_aware = wanted.form, part == "layers" and wanted.methods
    sign = "SYM" if form.symmetric else "ASYM"
    settings: dict[str, Any] = {
        "ignored_scope": nncf.IgnoredScope(names=others, validate=False),
        "group_size": form.block,
        "all_layers": True,
        "ratio": wanted.ratio if part == "layers" else 1.0,
        "backup_mode": nncf.BackupMode[f"INT8_{sign}"],
    }
    if data_aware:
        seen = _Samples(model, wanted.samples, progress)
        settings |= {"dataset": nncf.Dataset(seen), "subset_size": len(wanted.samples)}
        settings |= {
            "awq": "awq" in data_aware,
            "scale_estimation": "scale" in data_aware,
            "gptq": "gptq" in data_aware,
        }
    mode = nncf.CompressWeightsMode[f"INT4_{sign}"]
    with quiet("nncf"):
        try:
            nncf.compress_weights(model, mode=mode, **settings)
        except Exception as error:  # NNCF has many classes of errors, and passes on those of OpenVINO
            raise EngineError(f"NNCF could not compress the {part}: {error}. Choose another form.") from error


class _Samples:
    """What NNCF runs the model on, as inputs of the graph; every sample seen is told."""

    def __init__(self, model: Model, samples: Sequence[Tokens], progress: Share) -> None:
        self._names = {port.any_name for port in model.inputs}
        self._samples, self._progress = samples, progress

    def __iter__(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        for i, tokens in enumerate(self._samples):
            self._progress(i / len(self._samples))
            n = len(tokens)
            given: dict[str, np.ndarray[Any, Any]] = {
                "input_ids": tokens.reshape(1, n),
                "attention_mask": np.ones((1, n), dtype=np.int64),
                "position_ids": np.arange(n, dtype=np.int64).reshape(1, n),
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
            yield {name: value for name, value in given.items() if name in self._names}


def _nncf() -> Any:
    try:
        with without_telemetry():
            import nncf
    except ImportError as error:
        raise EngineMissingError(f"exporting to OpenVINO needs the package {error.name}. {EXPORT_EXTRA}") from error
    return nncf
