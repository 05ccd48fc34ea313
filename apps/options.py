"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from ..runtime.checks import shown
from ..runtime.errors import OptionError

ModelArgument = Annotated[str, typer.Argument(help="Catalogue name, .gguf file or bundle folder.", show_default=False)]
Engine = Annotated[
    str | None,
    typer.Option(help="onnx, openvino, llamacpp or reference; default: the fastest here, which is measured once."),
]
Device = Annotated[str | None, typer.Option(help="cpu, or an engine's own name for a device.")]
Threads = Annotated[int | None, typer.Option(help="Threads; default: measured.")]
MaxContext = Annotated[int | None, typer.Option(help="Entries the cache may hold; default: the model's context.")]
Cache = Annotated[
    str | None, typer.Option(help="What stays of a full KV cache: sinks, snapkv:budget=512, ...; default: everything.")
]
Quality = Annotated[
    str | None,
    typer.Option(help="Drop the full cache once --cache is known to agree with it so often: 0.98, or auto."),
]
KvDtype = Annotated[
    str | None, typer.Option(help="Cache type: int8, f16, or keys/values apart: u8/u4; default: exact.")
]
EngineOption = Annotated[
    list[str] | None, typer.Option("--option", help="A setting of the engine, NAME=VALUE; may be given several times.")
]
DraftEngine = Annotated[str | None, typer.Option(help="Engine of the draft model; default: the target's.")]
DraftCache = Annotated[
    str | None, typer.Option(help="What stays of the draft model's own cache, as --cache; the answer is the same.")
]
DraftOption = Annotated[
    str | None,
    typer.Option(help="A smaller model that drafts; or self, self:POLICY: the model itself over a smaller cache."),
]
Plain = Annotated[bool, typer.Option("--plain", help="No speculation.")]
Exact = Annotated[
    bool, typer.Option("--exact/--no-exact", help="Stay in one row class, so that drafts cannot change a bit.")
]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "-n",
        min=0,
        help="Default: 256 (chat: 512), or what there is room for. 0: until the context is full.",
    ),
]
NewTokens = Annotated[int, typer.Option("--tokens", min=1, help="New tokens per prompt.")]
Repeats = Annotated[int, typer.Option(min=1, max=1000, help="Interleaved passes over every prompt.")]


def whole_text(text: str) -> int | None:
    """The number that a text of digits stands for; None for any other text, and for what nothing has so many of."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def numbers_of(option: str, text: str, least: int) -> tuple[int, ...]:
    """Numbers with commas between; an empty text has none. Raises OptionError for anything else, or a smaller one."""
    numbers = [whole_text(part.strip()) for part in text.split(",") if part]
    if any(number is None or number < least for number in numbers):
        raise OptionError(f"{option} is {shown(text)}, but must be numbers of {least} or more, with commas between.")
    return tuple(number for number in numbers if number is not None)
