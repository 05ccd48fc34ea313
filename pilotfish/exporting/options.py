"""Options of an export that would change nothing are refused: none is ignored without a word."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ..exporters.formats import FORMATS, readers_of
from ..exporters.quantize.weight_form import WeightForm, as_they_come
from ..runtime.errors import OptionError

if TYPE_CHECKING:
    from ..exporters.export_spec import DataAware
    from .job import Job

OF_FORM = ("embedding", "output", "block", "symmetric")  # options that the weights' form holds
OF_JOB = ("activations", "data_aware", "ratio", "gguf_kind", "draft", "min_agreement", "context")
_FLAGS = {"embedding": "embeddings", "output": "head"}  # where the command line has another name


def refuse_unused(job: Job, formats: tuple[str, ...]) -> None:
    """Raise OptionError for an option that none of the formats looks at, or that another option leaves without sense.

    formats: all that were asked for, targets of the mobile pack by name.
    """
    _refuse_unread(job, formats)
    if job.calibration is not None and not job.data_aware and job.activations != "static":
        raise OptionError(
            "--calibration is a text for --data-aware methods and --activations static; choose one, or leave it out."
        )
    if job.activations == "static" and "onnx" not in formats:
        raise OptionError("--activations static is of the format onnx; add it to --to, or choose int8 or f32.")
    if job.data_aware and not _read_methods(job, formats):
        raise OptionError(
            f"--data-aware {','.join(job.data_aware)} is for openvino, and of the methods onnx has gptq; choose that, "
            "add openvino to --to, or leave it out."
        )
    form = job.form
    if form is None:
        if job.gguf_kind is not None:
            raise OptionError("--weights source keeps the file's own types; --gguf-kind has no place beside it.")
        return
    if form.layers != "int4" and (job.data_aware or job.ratio != 1.0):
        name = "data-aware" if job.data_aware else "ratio"
        raise OptionError(
            f"--{name} is for int4 layers, not for {form.layers}; choose --weights int4, or leave it out."
        )
    if not {"int8", "int4"} & {form.layers, form.embedding_form, form.output_form}:
        for name in _changed(form):
            if name in ("block", "symmetric"):
                raise OptionError(
                    f"--{name} is about int8 and int4 weights, and these are {form.layers}; leave it out."
                )
    if form.symmetric and job.gguf_kind is not None and job.gguf_kind not in ("Q4_0", "Q8_0"):
        raise OptionError(
            f"--gguf-kind {job.gguf_kind} is no symmetric kind of file; choose Q4_0 or Q8_0, or drop --symmetric."
        )


def only_for(job: Job, formats: tuple[str, ...]) -> Job:
    """The same export to fewer formats: what none of them looks at is as by default."""
    form, changes = job.form, {name: _default(job, name) for name in _unread(job, formats) if name in OF_JOB}
    if form is not None:
        plain = WeightForm(form.layers)
        form = replace(form, **{name: getattr(plain, name) for name in _unread(job, formats) if name in OF_FORM})
    changes["data_aware"] = _read_methods(job, formats)
    if "onnx" not in formats:
        changes["activations"] = as_they_come(changes.get("activations", job.activations))
    read = changes["data_aware"] or changes.get("activations", job.activations) == "static"
    calibration = job.calibration if read else None
    return replace(job, to=formats, form=form, calibration=calibration, **changes)


def _read_methods(job: Job, formats: tuple[str, ...]) -> tuple[DataAware, ...]:
    """The data-aware methods that some of the formats has."""
    had = {method for name in formats if name in FORMATS for method in FORMATS[name].methods}
    return tuple(method for method in job.data_aware if method in had)


def _refuse_unread(job: Job, formats: tuple[str, ...]) -> None:
    for name in _unread(job, formats):
        flag = _FLAGS.get(name, name).replace("_", "-")
        readers = ", ".join(readers_of(name))
        raise OptionError(
            f"--{flag} is for the formats {readers}, and none of them is exported; add one of them to "
            f"--to, or leave --{flag} out."
        )


def _unread(job: Job, formats: tuple[str, ...]) -> list[str]:
    """Options that were given and that none of the formats looks at."""
    given = [name for name in OF_JOB if getattr(job, name) != _default(job, name)]
    if job.form is not None:
        given += _changed(job.form)
    return [name for name in given if set(readers_of(name)).isdisjoint(formats)]


def _default(job: Job, name: str) -> Any:
    return next(one.default for one in fields(job) if one.name == name)


def _changed(form: WeightForm) -> list[str]:
    """What differs from the default of such weights."""
    plain = WeightForm(form.layers)
    return [name for name in OF_FORM if getattr(form, name) != getattr(plain, name)]
