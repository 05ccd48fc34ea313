"""The command lines of `pilotfish export` and `pilotfish verify`; what they do is imported when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ..exporters.quantize.weight_form import Stored, WeightForm, weight_form
from ..runtime.errors import OptionError

Json = Annotated[bool, typer.Option("--json", help="Print the comparison as one JSON object.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the engines that answer; default: one per core.")]


def export(
    source: Annotated[str, typer.Argument(show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            help="Formats, comma-separated: onnx, openvino, gguf; mobile: for phones, as far as they can be made here, "
            "or some of it: ort, onnx-static, qnn, pte, coreml."
        ),
    ] = "onnx",
    weights: Annotated[
        str, typer.Option(help="fp32, fp16, int8, int4; source: a GGUF file's own quantization.")
    ] = "int4",
    embeddings: Annotated[str | None, typer.Option(help="Token table; default: as weights, but int8 for int4.")] = None,
    head: Annotated[str | None, typer.Option(help="Output layer; default: as weights, but int8 for int4.")] = None,
    block: Annotated[int, typer.Option(help="Weights that share a scale.")] = 32,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="No zero points: smaller, less exact.")] = False,
    activations: Annotated[
        str, typer.Option(help="Of ONNX and OpenVINO: int8, or f32: closer, slower; of ONNX: static.")
    ] = "int8",
    draft: Annotated[str | None, typer.Option(help="A smaller model that drafts; exported in the same way.")] = None,
    data_aware: Annotated[
        str | None, typer.Option(help="For int4 layers, comma-separated: awq, scale, gptq; ONNX has gptq.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Text for them; default: one of our own.")] = None,
    ratio: Annotated[float, typer.Option(help="Share of OpenVINO's layers that become int4, the rest int8.")] = 1.0,
    gguf_kind: Annotated[str | None, typer.Option(help="Q4_K_M, Q8_0 and so on; default: by --weights.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens that the mobile programs pte and coreml hold; default: 1024.")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Accept an export that agrees with its source this often; it is written down.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle of another model.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as a bundle for the engines, compared with its source; what is too far from it is not kept.

    SOURCE: a Hugging Face folder or hub id, or a .gguf file.
    """
    from ..exporting.job import Job
    from .export import run_export

    job = Job(
        source=source,
        out=out.expanduser(),
        to=listed(to),
        form=_form(weights, embeddings, head, block, symmetric),
        activations=_one_of("--activations", activations, ("int8", "static", "f32")),
        data_aware=tuple(_one_of("--data-aware", name, ("awq", "scale", "gptq")) for name in listed(data_aware or "")),
        calibration=calibration,
        ratio=ratio,
        gguf_kind=gguf_kind,
        min_agreement=min_agreement,
        force=force,
        draft=draft,
        context=context,
    )
    run_export(job, as_json)


def verify(
    folder: Annotated[Path, typer.Argument(show_default=False)],
    source: Annotated[
        str | None, typer.Option(help="The model it was made from; default: the answers stored in the bundle.")
    ] = None,
    formats: Annotated[str | None, typer.Option(help="Some of its formats, comma-separated; default: all.")] = None,
    device: Annotated[str | None, typer.Option(help="An engine's own name for a device; default: its default.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare a bundle with its source on this machine's engines. Exit code 1 where a format is refused.

    FOLDER: a bundle that was exported.
    """
    from .export import run_verify

    run_verify(folder, source, None if formats is None else listed(formats), device, threads, as_json)


def listed(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated option, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _form(weights: str, embeddings: str | None, head: str | None, block: int, symmetric: bool) -> WeightForm | None:
    stored = get_args(Stored)
    return weight_form(
        _one_of("--weights", weights, (*stored, "source")),
        None if embeddings is None else _one_of("--embeddings", embeddings, stored),
        None if head is None else _one_of("--head", head, stored),
        block,
        symmetric,
    )


def _one_of(option: str, value: str, known: tuple[str, ...]) -> Any:
    """The value, as one of a Literal's."""
    if value not in known:
        raise OptionError(f"{option} is {value!r}, but must be one of {', '.join(known)}.")
    return value
