"""The long work of an export: ask the source, write the formats, free the source, ask the engines."""

from __future__ import annotations

import contextlib
import gc
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .. import backends
from ..exporters.formats import FORMATS, files_of_format
from ..exporters.parity.parity import Answers, Parity
from ..exporters.quantize.weight_form import as_they_come
from ..loading.opening import Place
from ..runtime.errors import PilotfishError, UnsupportedModelError
from ..runtime.files.bundle import Bundle, open_bundle, write_manifest
from ..runtime.files.manifest import MANIFEST_NAME, GreedyAnswer, Manifest
from ..runtime.interfaces import Floats
from ..runtime.profiling.canary import TEXT, Canary
from ..runtime.progress import Progress
from ..runtime.storage import write_error
from ..verifying.cache_types import cache_hint, measure_cache_types
from ..verifying.report import FormatReport, Report, TargetReport
from ..verifying.verify import format_bytes, own_threads, verify_format
from .checkpoint import Checkpoint
from .job import Job, Plan
from .manifest import ANSWERS, TOKENIZER, Known, Made, compose

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Steps:
    """One export in a folder that is being built.

    failed: why a format could not be made; it is left out, and the others stay. left_out: why a target of the mobile
    pack that nobody named is missing.
    """

    def __init__(self, job: Job, plan: Plan, folder: Path, tell: Progress) -> None:
        self._job, self._plan, self._folder, self._tell = job, plan, folder, tell
        self._source, self._spec = plan.source, plan.spec
        self._checkpoint = Checkpoint(folder, plan.source, plan.spec)
        self.failed: dict[str, Exception] = {}
        self.left_out = dict(plan.left_out)
        self.seconds = dict.fromkeys(plan.formats, 0.0)  # spent on writing each format
        self._canary: tuple[Canary, GreedyAnswer]
        self._answers: Answers
        self._logits: Mapping[str, Floats]
        self._rounding: Parity | None = None
        self._model: PreTrainedModel | None = None
        self._reports: dict[str, FormatReport] = {}

    @property
    def made(self) -> dict[str, Made]:
        """What was asked for and is finished."""
        return self._checkpoint.finished(self._plan.formats)

    def write(self) -> None:
        """Ask the source, and write every format that an engine opens and that a killed process has not finished.

        The source's weights are in memory once, and gone before the formats are finished.
        """
        (self._folder / MANIFEST_NAME).unlink(missing_ok=True)
        waiting = [name for name in self._plan.formats if name not in self.made]
        for path in self._folder.iterdir():
            if path.is_dir() and (path.name in waiting or path.name not in self._plan.formats):
                shutil.rmtree(path)
        self._checkpoint.remember()
        self._ask(self._source_model())
        self._source.tokenizer.save(self._folder / TOKENIZER)  # which targets of the pack have by a second name
        begun: dict[str, dict[str, str]] = {}
        for name in [name for name in waiting if name in FORMATS]:
            with self._attempt(name):
                begun[name] = self._write_format(name)
            gc.collect()
        if self._plan.engines:
            self._forget_model()
        for name, recipe in begun.items():
            with self._attempt(name):
                self._finish_format(name, recipe)

    def compare(self) -> None:
        """The formats on their engines, against the source's own logits; those that are too far from it are dropped."""
        manifest: Manifest | None = None
        for name in [name for name in self._plan.engines if name in self.made]:
            manifest = manifest or self._compose()
            bundle = Bundle(self._folder, manifest)
            place = Place(backends.get(FORMATS[name].engine), None, own_threads())
            with self._attempt(name):
                self._reports[name] = verify_format(bundle, name, place, self._answers, self._logits, self._tell)
            if name in self.failed or not self._reports[name].ok:
                self._drop(name)
                manifest = None  # it names files that are gone
        self._logits = {}

    def write_targets(self) -> None:
        """The targets of the mobile pack, each run against the source as far as that can be done here.

        They come last, because some take long: an export that is killed here has finished its formats.
        """
        for name in self._plan.targets:
            if name not in self.made:
                with self._attempt(name):
                    self._write_target(name, self._source_model())
                gc.collect()
        self._forget_model()

    def result(self) -> tuple[Manifest, Report]:
        """The manifest of what was made and passed, and how everything compares."""
        manifest = self._compose()
        targets = tuple(
            TargetReport(name, format_bytes(manifest, name), dict(self.made[name].report or {}))
            for name in self._plan.targets
            if name in self.made
        )
        report = Report(
            self._folder,
            tuple(self._reports.values()),
            self.left_out,
            with_source=True,
            seconds=self.seconds,
            targets=targets,
            failed={name: self._why(error) for name, error in self.failed.items()},
            rounding=self._rounding if self._rounds() else None,
        )
        return manifest, report

    def measured(self, manifest: Manifest, report: Report) -> dict[str, object]:
        """Changes to the manifest once its formats were compared."""
        facts = {r.form: r.facts() | {"export_s": round(self.seconds[r.form], 1)} for r in report.formats if r.ok}
        unverified = tuple(name for name in manifest.unverified if name not in facts)
        hints = manifest.kv_hints
        if "openvino" in facts and self._source.encoder_decoder is None:
            hints = {k: v for k, v in hints.items() if k != "openvino"} | self._cache_hint()
        return {"unverified": unverified, "reports": {**manifest.reports, **facts}, "kv_hints": hints}

    def forget(self) -> None:
        """Remove what only an interrupted export needs."""
        self._checkpoint.forget()

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
        self._checkpoint.drop(name)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _compose(self) -> Manifest:
        """The manifest before anything was compared, and what all formats share, written."""
        limits = {
            name: self._job.thresholds(name, self._rounding, kept=self._keeps(name, made.recipe))
            for name, made in self._checkpoint.finished(self._plan.engines).items()
        }
        known = Known(*self._canary, self._rounding_facts())
        manifest = compose(self._source, self._folder, self.made, limits, known, self._plan.kept)
        write_manifest(self._folder, manifest)
        return manifest

    def _rounds(self) -> bool:
        """Whether weights of some format were rounded."""
        finished = self._checkpoint.finished(self._plan.engines)
        return any(not self._keeps(name, made.recipe) for name, made in finished.items())

    def _keeps(self, name: str, recipe: Mapping[str, str]) -> bool:
        return FORMATS[name].keeps(self._source, self._spec, recipe)

    def _cache_hint(self) -> dict[str, str]:
        """The smallest KV cache of the OpenVINO format that costs next to nothing."""
        self._tell("trying smaller caches", 0.0)
        texts = [text.tokens for text in self._answers.texts.values()]
        try:
            found = cache_hint(measure_cache_types(open_bundle(self._folder), texts, threads=own_threads()))
        except PilotfishError:  # a model with windows of attention has one type of cache only
            found = None
        return {} if found is None else {"openvino": found}

    def _rounding_facts(self) -> dict[str, float]:
        """What rounding the weights costs by itself, for comparison."""
        found, form = self._rounding, self._spec.form
        if found is None or form is None or not self._rounds():
            return {}
        names = ("top1", "agreement", "kl", "relative_difference", "perplexity")
        return {f"{form.layers} rounding alone: {name}": float(getattr(found, name)) for name in names}

    def _ask(self, model: PreTrainedModel) -> None:
        from ..exporters.parity.evaluation import evaluation_of
        from ..exporters.parity.reference_logits import judge_answers, judge_canary, judge_of, rounding_alone

        what, judge, source = "asking the source", judge_of(self._source, model), self._source
        self._tell(what, 0.0)
        self._canary = judge_canary(judge, source.tokenizer.encode(TEXT), source.context_length)
        self._answers, self._logits = judge_answers(judge, evaluation_of(source), lambda share: self._tell(what, share))
        self._answers.save(self._folder / ANSWERS)
        form = self._spec.form
        rounds = form is not None and {"int8", "int4"} & {form.layers, form.embedding_form, form.output_form}
        if form is not None and rounds and self._plan.engines:
            self._tell("rounding the source", 0.0)
            self._rounding = rounding_alone(judge, self._answers, self._logits, form)

    def _source_model(self) -> PreTrainedModel:
        if self._model is None:
            self._model = self._source.torch_model(progress=lambda share: self._tell("reading the source", share))
        return self._model

    def _forget_model(self) -> None:
        self._model = None
        gc.collect()

    def _write_format(self, name: str) -> dict[str, str]:
        what, began = f"writing {name}", time.perf_counter()
        self._tell(what, 0.0)
        folder = self._folder / name
        folder.mkdir()
        given = self._source_model() if self._spec.form is not None else None
        made = FORMATS[name].write(self._source, self._spec, given, folder, lambda share: self._tell(what, share))
        self._tell(what, 1.0)
        self.seconds[name] += time.perf_counter() - began
        return made

    def _finish_format(self, name: str, recipe: dict[str, str]) -> None:
        what, began = f"finishing {name}", time.perf_counter()
        more = FORMATS[name].finish(
            self._source, self._spec, self._folder / name, lambda share: self._tell(what, share)
        )
        self._checkpoint.keep(name, Made(files_of_format(name, self._source)[0], recipe | more))
        self.seconds[name] += time.perf_counter() - began

    def _write_target(self, name: str, model: PreTrainedModel) -> None:
        from ..exporters.mobile.export import export_mobile

        what, began, graph = f"writing {name}", time.perf_counter(), self._folder / FORMATS["onnx"].file
        written = (
            "onnx" in self.made and self._spec.activations != "static"
        )  # what a kept bundle left has other options
        self._tell(what, 0.0)
        result = export_mobile(
            self._source,
            self._folder,
            form=self._spec.form,
            model=model,
            onnx=graph if written else None,
            targets=(name,),
            activations=as_they_come(self._spec.activations),
            context=self._spec.context,
            progress=lambda _, share: self._tell(what, share),
        )
        self._checkpoint.keep(name, Made(result.formats[name], result.recipe[name], result.reports.get(name, {})))
        self.seconds[name] += time.perf_counter() - began
