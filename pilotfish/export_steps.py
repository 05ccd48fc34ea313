"""The long work of an export: ask the source, write the formats, free the source, ask the engines."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from . import backends
from .cache_types import cache_hint, measure_cache_types
from .export_job import Job, format_of
from .exporters.parity import Answers, Parity
from .exporters.writers import FORMATS, Order
from .opening import Place, Progress
from .runtime.bundle import Bundle, Source, describe_files, read_json, write_json_atomically
from .runtime.canary import TEXT, Canary
from .runtime.errors import PilotfishError
from .runtime.interfaces import Floats
from .runtime.manifest import MANIFEST_NAME, FileFact, GreedyAnswer, Manifest
from .verifying import FormatReport, Report, own_threads, verify_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .exporters.model_source import ModelSource

ANSWERS = "source_answers.npz"
_PLAN = ".export.json"  # in a folder being built: which source it is for, and which formats are finished
_MAKERS = (
    "pilotfish",
    "torch",
    "transformers",
    "onnx",
    "openvino",
    "optimum-intel",
    "nncf",
    "gguf",
    "llama-cpp-python",
)


class Steps:
    """One export in a folder that is being built."""

    def __init__(self, job: Job, source: ModelSource, order: Order, folder: Path, tell: Progress) -> None:
        self._job, self._source, self._order, self._folder, self._tell = job, source, order, folder, tell
        self._recipes: dict[str, dict[str, str]] = _finished(folder, source)
        self.seconds = dict.fromkeys(job.to, 0.0)  # spent on writing each format
        self._canary: tuple[Canary, GreedyAnswer]
        self._answers: Answers
        self._logits: Mapping[str, Floats]
        self._rounding: Parity | None = None

    def write(self) -> None:
        """Ask the source and write every format that a killed process has not finished before.

        The source's weights are in memory once, and gone when this returns.
        """
        (self._folder / MANIFEST_NAME).unlink(missing_ok=True)
        for path in self._folder.iterdir():
            if path.is_dir() and not self._is_finished(path.name):
                shutil.rmtree(path)
        self._remember()
        model = self._source.torch_model(progress=lambda share: self._tell("reading the source", share))
        self._ask(model)
        waiting = [name for name in self._job.to if not self._is_finished(name)]
        made = {name: self._write_format(name, model) for name in waiting}
        del model
        gc.collect()
        for name in waiting:
            self._finish_format(name, made[name])

    def manifest(self, kept: Bundle | None) -> Manifest:
        """What the bundle says before its formats were compared: that they were not. Writes what all formats share."""
        source, job = self._source, self._job
        old = None if kept is None else kept.manifest
        stays = [name for name in (old.formats if old else {}) if name not in job.to]
        if kept is not None:
            _keep(kept, self._folder, job.to)
        source.tokenizer.save(self._folder / "tokenizer.json")
        canary, greedy = self._canary
        recipe = {k: v for name in stays if old for k, v in _prefixed(name, old.recipe_of(name)).items()}
        for name in job.to:
            recipe |= _prefixed(name, self._recipes[name] | {"fingerprint": self._fingerprint(name)})
        return Manifest(
            model_id=source.model_id,
            license=source.license,
            license_file=_copy_license(source.path, self._folder),
            architecture=source.architecture,
            context_length=source.context_length,
            source=Source(name=source.path.name, sha256=source.sha256, format=source.format),
            files=self.files(),
            formats={name: old.formats[name] for name in stays if old} | {n: FORMATS[n].file for n in job.to},
            tokenizer="tokenizer.json",
            chat_template=source.chat_template,
            bos_id=source.bos_id,
            add_bos=source.add_bos,
            eos_ids=source.eos_ids,
            recipe=recipe,
            canary=canary,
            greedy=greedy,
            answers=ANSWERS,
            report=(old.report if old else {}) | self._rounding_facts(),
            reports={name: old.reports[name] for name in stays if old and name in old.reports},
            thresholds={name: old.thresholds[name] for name in stays if old and name in old.thresholds}
            | {name: job.thresholds(name, self._rounding).facts() for name in job.to},
            unverified=(*(n for n in stays if old and n in old.unverified), *job.to),
            kv_hints=old.kv_hints if old else {},
            draft=old.draft if old else None,
        )

    def verify(self, bundle: Bundle) -> Report:
        """The new formats on their engines, against the source's own logits."""
        reports: list[FormatReport] = []
        for name in self._job.to:
            place = Place(backends.get(FORMATS[name].engine), None, own_threads())
            reports.append(verify_format(bundle, name, place, self._answers, self._logits, self._tell))
        return Report(bundle.folder, tuple(reports), {}, with_source=True)

    def files(self) -> dict[str, FileFact]:
        """Every file of the bundle as it is now."""
        return {name: fact for name, fact in describe_files(self._folder).items() if name != _PLAN}

    def measured(self, manifest: Manifest, report: Report) -> dict[str, object]:
        """Changes to the manifest once its formats were compared."""
        facts = {r.form: r.facts() | {"export_s": round(self.seconds[r.form], 1)} for r in report.formats}
        unverified = tuple(name for name in manifest.unverified if name not in facts)
        hints = manifest.kv_hints
        if "openvino" in facts:
            hints = {k: v for k, v in hints.items() if k != "openvino"} | self._cache_hint()
        return {"unverified": unverified, "reports": {**manifest.reports, **facts}, "kv_hints": hints}

    def _cache_hint(self) -> dict[str, str]:
        """The smallest KV cache of the OpenVINO format that costs next to nothing."""
        self._tell("trying smaller caches", 0.0)
        texts = [text.tokens for text in self._answers.texts.values()]
        try:
            found = cache_hint(measure_cache_types(self._folder, texts, threads=own_threads()))
        except PilotfishError:  # a model with windows of attention has one type of cache only
            found = None
        return {} if found is None else {"openvino": found}

    def forget(self) -> None:
        """Remove what only an interrupted export needs."""
        (self._folder / _PLAN).unlink()

    def _rounding_facts(self) -> dict[str, float]:
        """What rounding the weights costs by itself, for comparison."""
        found, form = self._rounding, self._order.form
        if found is None or form is None or form.layers == "fp32":
            return {}
        names = ("top1", "agreement", "kl", "relative_difference", "perplexity")
        return {f"{form.layers} rounding alone: {name}": float(getattr(found, name)) for name in names}

    def _ask(self, model: PreTrainedModel) -> None:
        from .exporters.evaluation import evaluation_of
        from .exporters.reference_logits import SourceJudge, judge_answers, judge_canary, rounding_alone

        what, judge, source = "asking the source", SourceJudge(model), self._source
        self._tell(what, 0.0)
        self._canary = judge_canary(judge, source.tokenizer.encode(TEXT), source.context_length)
        self._answers, self._logits = judge_answers(judge, evaluation_of(source), lambda share: self._tell(what, share))
        self._answers.save(self._folder / ANSWERS)
        form = self._order.form
        if form is not None and {"int8", "int4"} & {form.layers, form.embedding_form, form.output_form}:
            self._tell("rounding the source", 0.0)
            self._rounding = rounding_alone(judge, self._answers, self._logits, form)

    def _write_format(self, name: str, model: PreTrainedModel) -> dict[str, str]:
        what, began = f"writing {name}", time.perf_counter()
        self._tell(what, 0.0)
        folder = self._folder / name
        folder.mkdir()
        given = model if self._order.form is not None else None
        made = FORMATS[name].write(self._source, self._order, given, folder, lambda share: self._tell(what, share))
        gc.collect()
        self._tell(what, 1.0)
        self.seconds[name] += time.perf_counter() - began
        return made

    def _finish_format(self, name: str, made: dict[str, str]) -> None:
        what, began = f"finishing {name}", time.perf_counter()
        more = FORMATS[name].finish(
            self._source, self._order, self._folder / name, lambda share: self._tell(what, share)
        )
        self._recipes[name] = made | more | {"fingerprint": self._fingerprint(name)}
        self._remember()
        self.seconds[name] += time.perf_counter() - began

    def _is_finished(self, name: str) -> bool:
        return self._recipes.get(name, {}).get("fingerprint") == self._fingerprint(name)

    def _fingerprint(self, name: str) -> str:
        """Of everything that decides what a format becomes."""
        order = asdict(self._order) | {"samples": [tokens.tolist() for tokens in self._order.samples]}
        facts = [self._source.sha256, name, order, [_version(package) for package in _MAKERS]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def _remember(self) -> None:
        write_json_atomically(self._folder / _PLAN, {"source": self._source.sha256, "finished": {**self._recipes}})


def is_of(folder: Path, source: ModelSource) -> bool:
    """Whether a killed process was exporting this source there."""
    plan = read_json(folder / _PLAN)
    return isinstance(plan, dict) and plan.get("source") == source.sha256


def _finished(folder: Path, source: ModelSource) -> dict[str, dict[str, str]]:
    plan = read_json(folder / _PLAN)
    if not is_of(folder, source) or not isinstance(plan, dict) or not isinstance(plan.get("finished"), dict):
        return {}
    return {str(k): {str(a): str(b) for a, b in v.items()} for k, v in plan["finished"].items() if isinstance(v, dict)}


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package


def _prefixed(name: str, recipe: Mapping[str, str]) -> dict[str, str]:
    """Recipe entries of one format; the ONNX engine reads its own without a prefix."""
    return dict(recipe) if name == "onnx" else {f"{name}.{key}": value for key, value in recipe.items()}


def _keep(bundle: Bundle, folder: Path, replaced: tuple[str, ...]) -> None:
    """Take over the files of the formats that stay, and of a draft; by a second name where the disk has that."""
    for name in bundle.manifest.files:
        if format_of(name) in replaced or "/" not in name:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(bundle.folder / name, target)
        except OSError:
            shutil.copyfile(bundle.folder / name, target)


def _copy_license(source: Path, folder: Path) -> str | None:
    """The source's license text, where it has one."""
    found = sorted(p for p in source.glob("*") if p.stem.upper() in ("LICENSE", "LICENCE")) if source.is_dir() else []
    if not found:
        return None
    shutil.copyfile(found[0], folder / found[0].name)
    return found[0].name
