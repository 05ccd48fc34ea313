"""Drafts made of the target itself: without some of its layers, or with fewer bits a weight."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import backends
from ..loading.load import load
from ..loading.opening import resolve
from ..loading.options import Wish, refuse_impossible
from ..runtime.checks import shown, whole
from ..runtime.errors import OptionError, UnsupportedModelError
from ..runtime.files.bundle import Bundle
from ..runtime.files.gguf_file import read_gguf
from ..runtime.files.open_model import bundle_of, decoder_of, gguf_of
from ..runtime.files.staging import refuse_foreign
from ..runtime.progress import Progress
from ..runtime.storage import require_writable, write_error
from .check import DraftCheck, answer, check_draft
from .forecast import Costs, expected_speed_up, target_costs
from .prompts import MAKE

if TYPE_CHECKING:
    from ..exporters.onnx.layer_search import Candidate

_FEWEST = 4  # blocks that stay
_N_TOKENS = 24  # of each answer that candidates are compared on
_OUTPUT = "Q4_0"  # as llama.cpp has it, in 6 or 8 bits, it is a third of a small draft's step
_MORE_BITS = 1.5  # than those asked for are no longer what was asked for


@dataclass(frozen=True, slots=True)
class Option:
    """A number of blocks to leave out, with the best set found."""

    n_dropped: int
    agreement: float  # with the whole model, on the texts of the search
    cost: float  # of a draft token, in parts of the whole model's
    expected: float  # speed-up at the best draft length


@dataclass(frozen=True, slots=True)
class MadeDraft:
    """A draft, and what it was found to bring; options: what else the search saw."""

    folder: str
    what: str  # "without attention 3, mlp 7", "weights as Q4_0"
    options: tuple[Option, ...]
    check: DraftCheck

    def as_dict(self) -> dict[str, object]:
        """Everything, for JSON."""
        rows = [asdict(option) for option in self.options]
        return {"folder": self.folder, "what": self.what, "options": rows, "check": self.check.as_dict()}


def drop_layers(
    target: str | os.PathLike[str],
    out: Path,
    *,
    n_dropped: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> MadeDraft:
    """A draft at `out` that leaves out blocks of the target, attention or MLP, and shares its weights on disk.

    The target answers prompts of ours; the search looks for the blocks without which it would answer the same. Then
    the draft is written, and checked on other prompts. n_dropped: blocks to leave out; None is the number that
    promises most speed here.

    Needs the onnx engine, for the search runs on it. Raises what load() raises, UnsupportedModelError for graphs
    that are not attention and MLP in turn, OptionError for a number of blocks that cannot be left out.
    """
    if n_dropped is not None:
        whole("blocks to drop", n_dropped, 1)
    wish = Wish(engine="onnx", threads=threads)
    refuse_impossible(wish)
    refuse_foreign(out)
    report = progress or (lambda what, share: None)
    bundle = onnx_bundle(target, report)
    graph = bundle.file(bundle.manifest.formats["onnx"])
    from ..exporters.onnx.dropped_bundle import write_dropped
    from ..exporters.onnx.layer_drop import blocks_of
    from ..exporters.onnx.layer_search import Scorer, search, step_shares

    n_blocks = len(blocks_of(graph))
    if n_blocks <= _FEWEST:
        raise OptionError(f"no block can be left out: this model has {n_blocks}, and {_FEWEST} have to stay.")
    if n_dropped is not None and n_dropped > n_blocks - _FEWEST:
        raise OptionError(
            f"{shown(n_dropped)} blocks cannot be left out: of {n_blocks}, 1 to {n_blocks - _FEWEST} can."
        )

    with load(
        bundle, "onnx", draft=None, threads=threads, max_context=min(1024, bundle.context_length), progress=report
    ) as model:
        answers = [answer(model, prompt, _N_TOKENS) for prompt in MAKE]
        costs, n_threads = target_costs(model), model.info.threads
    window = bundle.manifest.recipe_of("onnx").get("sliding_window")
    scorer = Scorer(graph, answers, n_threads, int(window) if window else None)
    price = _Price(step_shares(graph, n_threads, int(window) if window else None), costs)
    what = "looking for layers that can be left out"
    path = search(
        scorer,
        price.value,
        n_dropped or n_blocks // 2,
        whole=n_dropped is not None,
        progress=lambda share: report(what, share),
    )
    chosen = path[min(n_dropped, len(path) - 1)] if n_dropped else max(path[1:], key=lambda c: c.value)
    dropped = ", ".join(str(scorer.blocks[i]) for i in sorted(chosen.skipped))
    del scorer
    write_dropped(bundle, out, chosen.skipped)
    check = check_draft(bundle, out, engine="onnx", threads=n_threads, progress=report)
    return MadeDraft(str(out), f"without {dropped}", tuple(price.option(c) for c in path[1:]), check)


def lower_bits(
    target: str | os.PathLike[str],
    out: Path,
    kind: str | None = None,
    *,
    bits: int | None = None,
    draft: str | os.PathLike[str] | None = None,
    engine: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> MadeDraft:
    """A draft in the folder `out` with the target's layers, its weights stored as a smaller type, and its check.

    target: a .gguf file, or a bundle that holds one. kind: such as "Q4_0"; exporters.gguf_quantize.KINDS has them.
    bits: a weight, instead of a kind. draft: a smaller model that is stored anew instead of the target: where its file
    has types without fast kernels, another type is a faster draft. engine: of the check; None is llamacpp, whose types
    these are, where it is installed.
    Raises what load() and quantize_gguf() raise, and UnsupportedModelError where there is no GGUF file.
    """
    if (kind is None) == (bits is None):
        raise OptionError("give a kind of GGUF file or a number of bits, and not both.")
    from ..exporters.gguf.quantize import BITS, bits_per_weight, check_types, kind_of_bits, quantize_gguf

    if bits is not None:
        whole("bits a weight", bits, min(BITS), max(BITS))
    if kind is not None:
        check_types(kind, None, None)
    Wish(threads=threads)  # checks the number
    if engine is not None:
        backends.installed(engine)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out} exists and is not an empty folder; choose another.")
    require_writable(out)
    report = progress or (lambda what, share: None)
    found = resolve(target, report)
    source = gguf_of(found if draft is None else resolve(draft, report))
    before = source.file
    kind = kind or kind_of_bits(bits or 0, before)
    made = out / f"{source.path.stem}-{kind}.gguf"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out.parent, error) from error
    what = f"storing weights as {kind}"
    quantize_gguf(
        source.path,
        made,
        kind,
        output=_OUTPUT if kind.startswith(("Q2", "Q3", "Q4")) else None,
        allow_requantize=True,
        threads=threads or 0,
        progress=lambda share: report(what, share),
    )
    n_bits = bits_per_weight(read_gguf(made))
    said = f"weights as {kind}: {n_bits:.1f} bits a weight where {source.path.name} has {bits_per_weight(before):.1f}"
    if bits is not None and n_bits > bits + _MORE_BITS:
        said += f", not {bits}, because rows of it do not consist of such a type's blocks"
    if engine is None and backends.usable(backends.get("llamacpp")):
        engine = "llamacpp"
    check = check_draft(found, made, engine=engine, threads=threads, progress=report)
    return MadeDraft(str(made), said, (), check)


class _Price:
    """What a draft without some blocks is expected to bring. shares: of a step's time, block by block."""

    def __init__(self, shares: tuple[float, ...], costs: Costs) -> None:
        self._shares, self._costs = shares, costs

    def cost(self, skipped: frozenset[int]) -> float:
        return 1.0 - sum(self._shares[i] for i in skipped)

    def value(self, agreement: float, skipped: frozenset[int]) -> float:
        return expected_speed_up(agreement, self.cost(skipped), self._costs)

    def option(self, found: Candidate) -> Option:
        return Option(len(found.skipped), found.agreement, self.cost(found.skipped), found.value)


def onnx_bundle(target: str | os.PathLike[str], report: Progress) -> Bundle:
    """The bundle with an ONNX graph that a target is, or is imported into."""
    found = resolve(target, report)
    if "onnx" in found.formats:
        return bundle_of(found)
    if "onnx" not in found.imported_formats:
        raise UnsupportedModelError(
            f"{found} has no ONNX graph, and layers can be left out of one only. Export the model to onnx."
        )
    from ..exporters.onnx.import_model import import_model

    name = found.path.name
    return import_model(decoder_of(found), progress=lambda what, share: report(f"preparing {name}: {what}", share))
