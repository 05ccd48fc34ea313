"""What an exported bundle says about itself, and what it takes over from the bundle that was there before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..exporters.formats import FORMATS, files_of_format
from ..runtime.files.bundle import Bundle, Manifest, Source, describe_files
from ..runtime.files.manifest import FileFact, GreedyAnswer
from ..runtime.profiling.canary import Canary
from .job import format_of

if TYPE_CHECKING:
    from ..exporters.parity.thresholds import Thresholds
    from ..exporters.sources.model_source import ModelSource

TOKENIZER = "tokenizer.json"
ANSWERS = "source_answers.npz"
PLAN = ".export.json"  # in a folder being built: which source it is for, and which formats are finished


@dataclass(frozen=True, slots=True)
class Made:
    """One format that is finished.

    file: the one that is opened. report: what a target of the mobile pack measured when it was run where it was
    written; None for a format that its engine is asked about, empty where it could not be run.
    """

    file: str
    recipe: Mapping[str, str]
    report: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the source answered, for the manifest. rounding: what rounding its weights costs by itself, in words."""

    canary: Canary
    greedy: GreedyAnswer
    rounding: Mapping[str, float]


def compose(
    source: ModelSource,
    folder: Path,
    made: Mapping[str, Made],
    thresholds: Mapping[str, Thresholds],
    known: Known,
    kept: Bundle | None,
) -> Manifest:
    """What the bundle in `folder` says before its formats were compared; a tokenizer and the answers lie there already.

    kept: a bundle of the same source, whose other formats are taken over.
    """
    old = None if kept is None else kept.manifest
    stays = [name for name in (old.formats if old else {}) if name not in made]
    if kept is not None:
        _take_over(kept, folder, set(made))
    recipe = {k: v for name in stays if old for k, v in _prefixed(name, old.recipe_of(name)).items()}
    for name, one in made.items():
        recipe |= _prefixed(name, one.recipe)
    encoder_decoder = source.encoder_decoder
    encoders = {name: file for name in made if name in FORMATS and (file := files_of_format(name, source)[1])}
    ran = {name: dict(one.report) for name, one in made.items() if one.report}
    return Manifest(
        model_id=source.model_id,
        license=source.license,
        license_file=_copy_license(source.path, folder),
        architecture=source.architecture,
        context_length=source.context_length,
        source=Source(name=source.path.name, sha256=source.sha256, format=source.format),
        files=files_of(folder),
        formats={name: old.formats[name] for name in stays if old} | {n: one.file for n, one in made.items()},
        encoders={**({n: old.encoders[n] for n in stays if old and n in old.encoders}), **encoders},
        decoder_start=() if encoder_decoder is None else encoder_decoder.decoder_start,
        source_limit=None if encoder_decoder is None else encoder_decoder.source_limit,
        source_kind="text" if encoder_decoder is None else encoder_decoder.source_kind,
        suppress_tokens=source.generating.suppress_tokens,
        begin_suppress_tokens=source.generating.begin_suppress_tokens,
        generation=source.generating.generation,
        tokenizer=TOKENIZER,
        chat_template=source.chat_template,
        bos_id=source.bos_id,
        add_bos=source.add_bos,
        eos_ids=source.eos_ids,
        recipe=recipe,
        canary=known.canary,
        greedy=known.greedy,
        answers=ANSWERS,
        report={**(old.report if old else {}), **known.rounding},
        reports={name: old.reports[name] for name in stays if old and name in old.reports} | ran,
        thresholds={name: old.thresholds[name] for name in stays if old and name in old.thresholds}
        | {name: limits.facts() for name, limits in thresholds.items()},
        unverified=(*(n for n in stays if old and n in old.unverified), *(n for n in made if n not in ran)),
        kv_hints=old.kv_hints if old else {},
        draft=old.draft if old else None,
    )


def files_of(folder: Path) -> dict[str, FileFact]:
    """Every file of a bundle being built as it is now."""
    return {name: fact for name, fact in describe_files(folder).items() if name != PLAN}


def _prefixed(name: str, recipe: Mapping[str, str]) -> dict[str, str]:
    """Recipe entries of one format; the ONNX engine reads its own without a prefix."""
    return dict(recipe) if name == "onnx" else {f"{name}.{key}": value for key, value in recipe.items()}


def _take_over(bundle: Bundle, folder: Path, replaced: set[str]) -> None:
    """Take over the files of the formats that stay, and of a draft; by a second name where the disk has that."""
    for name in bundle.manifest.files:
        target = folder / name
        if format_of(name) in replaced or "/" not in name or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(bundle.path / name, target)
        except OSError:
            shutil.copyfile(bundle.path / name, target)


def _copy_license(source: Path, folder: Path) -> str | None:
    """The source's license text, where it has one."""
    found = sorted(p for p in source.glob("*") if p.stem.upper() in ("LICENSE", "LICENCE")) if source.is_dir() else []
    if not found:
        return None
    shutil.copyfile(found[0], folder / found[0].name)
    return found[0].name
