"""The long work of an export: ask the source, write the formats, free the source, ask the engines."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from . import backends
from .cache_types import cache_hint, measure_cache_types
from .export_job import Job, Plan
from .export_manifest import ANSWERS, PLAN, TOKENIZER, Known, Made, compose
from .exporters.parity import Answers, Parity
from .exporters.writers import FORMATS, files_of_format
from .opening import Place, Progress
from .runtime.bundle import Bundle, read_json, write_json_atomically, write_manifest
from .runtime.canary import TEXT, Canary
from .runtime.errors import PilotfishError, UnsupportedModelError
from .runtime.interfaces import Floats
from .runtime.manifest import MANIFEST_NAME, GreedyAnswer, Manifest
from .runtime.storage import write_error
from .verifying import FormatReport, Report, TargetReport, format_bytes, own_threads, verify_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .exporters.model_source import ModelSource

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
_PACK_MAKERS = ("onnxruntime", "onnxruntime-qnn", "executorch", "torchao", "coremltools")


class Steps:
    """One export in a folder that is being built.

    failed: why a format could not be made; it is left out, and the others stay. left_out: why a target of the mobile
    pack that nobody named is missing.
    """

    def __init__(self, job: Job, plan: Plan, folder: Path, tell: Progress) -> None:
        self._job, self._plan, self._folder, self._tell = job, plan, folder, tell
        self._source, self._order = plan.source, plan.order
        self._made = _finished(folder, plan.source)
        self.failed: dict[str, Exception] = {}
        self.left_out = dict(plan.left_out)
        self.seconds = dict.fromkeys(plan.formats, 0.0)  # spent on writing each format
        self._canary: tuple[Canary, GreedyAnswer]
        self._answers: Answers
        self._logits: Mapping[str, Floats]
        self._rounding: Parity | None = None

    @property
    def made(self) -> dict[str, Made]:
        """What was asked for and is finished."""
        return {name: self._made[name] for name in self._plan.formats if self._is_finished(name)}

    def write(self) -> None:
        """Ask the source and write every format that a killed process has not finished before.

        The source's weights are in memory once, and gone when this returns.
        """
        (self._folder / MANIFEST_NAME).unlink(missing_ok=True)
        waiting = [name for name in self._plan.formats if not self._is_finished(name)]
        for path in self._folder.iterdir():
            if path.is_dir() and (path.name in waiting or path.name not in self._plan.formats):
                shutil.rmtree(path)
        self._remember()
        model = self._source.torch_model(progress=lambda share: self._tell("reading the source", share))
        self._ask(model)
        self._source.tokenizer.save(self._folder / TOKENIZER)  # which targets of the pack have by a second name
        begun: dict[str, dict[str, str]] = {}
        for name in waiting:
            with self._attempt(name):
                if name in FORMATS:
                    begun[name] = self._write_format(name, model)
                else:
                    self._write_target(name, model)
            gc.collect()
        del model
        gc.collect()
        for name, recipe in begun.items():
            with self._attempt(name):
                self._finish_format(name, recipe)

    def compare(self) -> tuple[Manifest, Report]:
        """The new formats on their engines, against the source's own logits; the manifest of those that passed."""
        plan, reports = self._plan, dict[str, FormatReport]()
        manifest = self._compose()
        for name in [name for name in plan.engines if name in self.made]:
            place = Place(backends.get(FORMATS[name].engine), None, own_threads())
            with self._attempt(name):
                bundle = Bundle(self._folder, manifest)
                reports[name] = verify_format(bundle, name, place, self._answers, self._logits, self._tell)
        wrong = [name for name in plan.engines if name in self.failed or (name in reports and not reports[name].ok)]
        for name in wrong:
            self._drop(name)
        if wrong and self.made:
            manifest = self._compose()
        targets = tuple(
            TargetReport(name, format_bytes(manifest, name), dict(self.made[name].report or {}))
            for name in plan.targets
            if name in self.made
        )
        report = Report(
            self._folder,
            tuple(reports.values()),
            self.left_out,
            with_source=True,
            seconds=self.seconds,
            targets=targets,
            failed={name: self._why(error) for name, error in self.failed.items()},
        )
        return manifest, report

    def measured(self, manifest: Manifest, report: Report) -> dict[str, object]:
        """Changes to the manifest once its formats were compared."""
        facts = {r.form: r.facts() | {"export_s": round(self.seconds[r.form], 1)} for r in report.formats if r.ok}
        unverified = tuple(name for name in manifest.unverified if name not in facts)
        hints = manifest.kv_hints
        if "openvino" in facts:
            hints = {k: v for k, v in hints.items() if k != "openvino"} | self._cache_hint()
        return {"unverified": unverified, "reports": {**manifest.reports, **facts}, "kv_hints": hints}

    def forget(self) -> None:
        """Remove what only an interrupted export needs."""
        (self._folder / PLAN).unlink()

    @contextlib.contextmanager
    def _attempt(self, name: str) -> Iterator[None]:
        """One format's own failure leaves that format out, whatever was raised, and not the work on the others."""
        try:
            yield
        except UnsupportedModelError as error:
            if name in self._plan.optional:
                self.left_out[name] = f"not written: {error}"
            else:
                self.failed[name] = error
            self._drop(name)
        except Exception as error:  # of torch, an engine or the disk; run() raises it where nothing else is left
            self.failed[name] = error
            self._drop(name)

    def _why(self, error: Exception) -> str:
        if isinstance(error, PilotfishError):
            return str(error)
        if isinstance(error, OSError):
            return str(write_error(self._folder.parent, error))
        return f"{type(error).__name__}: {error}"

    def _drop(self, name: str) -> None:
        self._made.pop(name, None)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _compose(self) -> Manifest:
        """The manifest before anything was compared, and what all formats share, written."""
        limits = {name: self._job.thresholds(name, self._rounding) for name in self._plan.engines if name in self.made}
        known = Known(*self._canary, self._rounding_facts())
        manifest = compose(self._source, self._folder, self.made, limits, known, self._plan.kept)
        write_manifest(self._folder, manifest)
        return manifest

    def _cache_hint(self) -> dict[str, str]:
        """The smallest KV cache of the OpenVINO format that costs next to nothing."""
        self._tell("trying smaller caches", 0.0)
        texts = [text.tokens for text in self._answers.texts.values()]
        try:
            found = cache_hint(measure_cache_types(self._folder, texts, threads=own_threads()))
        except PilotfishError:  # a model with windows of attention has one type of cache only
            found = None
        return {} if found is None else {"openvino": found}

    def _rounding_facts(self) -> dict[str, float]:
        """What rounding the weights costs by itself, for comparison."""
        found, form = self._rounding, self._order.form
        if found is None or form is None or form.layers == "fp32":
            return {}
        names = ("top1", "agreement", "kl", "relative_difference", "perplexity")
        return {f"{form.layers} rounding alone: {name}": float(getattr(found, name)) for name in names}

    def _ask(self, model: PreTrainedModel) -> None:
        from .exporters.evaluation import evaluation_of
        from .exporters.reference_logits import judge_answers, judge_canary, judge_of, rounding_alone

        what, judge, source = "asking the source", judge_of(self._source, model), self._source
        self._tell(what, 0.0)
        self._canary = judge_canary(judge, source.tokenizer.encode(TEXT), source.context_length)
        self._answers, self._logits = judge_answers(judge, evaluation_of(source), lambda share: self._tell(what, share))
        self._answers.save(self._folder / ANSWERS)
        form = self._order.form
        rounds = form is not None and {"int8", "int4"} & {form.layers, form.embedding_form, form.output_form}
        if form is not None and rounds and self._plan.engines:
            self._tell("rounding the source", 0.0)
            self._rounding = rounding_alone(judge, self._answers, self._logits, form)

    def _write_format(self, name: str, model: PreTrainedModel) -> dict[str, str]:
        what, began = f"writing {name}", time.perf_counter()
        self._tell(what, 0.0)
        folder = self._folder / name
        folder.mkdir()
        given = model if self._order.form is not None else None
        made = FORMATS[name].write(self._source, self._order, given, folder, lambda share: self._tell(what, share))
        self._tell(what, 1.0)
        self.seconds[name] += time.perf_counter() - began
        return made

    def _finish_format(self, name: str, recipe: dict[str, str]) -> None:
        what, began = f"finishing {name}", time.perf_counter()
        more = FORMATS[name].finish(
            self._source, self._order, self._folder / name, lambda share: self._tell(what, share)
        )
        self._keep(name, Made(files_of_format(name, self._source)[0], recipe | more))
        self.seconds[name] += time.perf_counter() - began

    def _write_target(self, name: str, model: PreTrainedModel) -> None:
        """One target of the mobile pack, run against the source as far as that can be done here."""
        from .exporters.mobile import export_mobile

        what, began, graph = f"writing {name}", time.perf_counter(), self._folder / FORMATS["onnx"].file
        self._tell(what, 0.0)
        result = export_mobile(
            self._source,
            self._folder,
            form=self._order.form,
            model=model,
            onnx=graph if graph.exists() else None,
            targets=(name,),
            activations=self._order.activations,
            context=self._order.context,
            progress=lambda share, _: self._tell(what, share),
        )
        self._keep(name, Made(result.formats[name], result.recipe[name], result.reports.get(name, {})))
        self.seconds[name] += time.perf_counter() - began

    def _keep(self, name: str, made: Made) -> None:
        recipe = {**made.recipe, "fingerprint": self._fingerprint(name)}
        self._made[name] = Made(made.file, recipe, made.report)
        self._remember()

    def _is_finished(self, name: str) -> bool:
        return name in self._made and self._made[name].recipe.get("fingerprint") == self._fingerprint(name)

    def _fingerprint(self, name: str) -> str:
        """Of everything that decides what a format becomes."""
        order = asdict(self._order) | {"samples": [tokens.tolist() for tokens in self._order.samples]}
        makers = _MAKERS if name in FORMATS else (*_MAKERS, *_PACK_MAKERS)
        facts = [self._source.sha256, name, order, [_version(package) for package in makers]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def _remember(self) -> None:
        finished = {name: asdict(made) for name, made in self._made.items()}
        write_json_atomically(self._folder / PLAN, {"source": self._source.sha256, "finished": finished})


def is_of(folder: Path, source: ModelSource) -> bool:
    """Whether a killed process was exporting this source there."""
    plan = read_json(folder / PLAN)
    return isinstance(plan, dict) and plan.get("source") == source.sha256


def _finished(folder: Path, source: ModelSource) -> dict[str, Made]:
    plan = read_json(folder / PLAN)
    if not is_of(folder, source) or not isinstance(plan, dict) or not isinstance(plan.get("finished"), dict):
        return {}
    try:
        return {str(name): Made(**made) for name, made in plan["finished"].items()}
    except TypeError:  # written by another version
        return {}


@functools.cache
def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package
