"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..runtime.checks import shown
from ..runtime.errors import OptionError

# What an argument is stands in the help of its command: click from 8.5 on loses what typer is told of it.
ModelArgument = Annotated[str, typer.Argument(show_default=False)]
Engine = Annotated[
    str | None,
    typer.Option(help="onnx, openvino, llamacpp or reference; default: the fastest here, which is measured once."),
]
Device = Annotated[str | None, typer.Option(help="cpu, or another that `pilotfish doctor` lists.")]
Threads = Annotated[int | None, typer.Option(help="Processor threads; default: measured.")]
MaxContext = Annotated[int | None, typer.Option(help="Tokens that the cache may hold; default: the model's context.")]
Cache = Annotated[
    str | None, typer.Option(help="What stays of a full KV cache: sinks, snapkv:budget=512, ...; default: everything.")
]
DraftOption = Annotated[
    str | None,
    typer.Option(help="A smaller model that drafts; or self, self:POLICY: the model itself over a smaller cache."),
]
Thinking = Annotated[
    bool | None,
    typer.Option("--thinking/--no-thinking", help="Whether a model that can thinks first; default: as it is made."),
]
DraftEngine = Annotated[str | None, typer.Option(help="Engine of the draft model; default: the target's.")]
Exact = Annotated[
    bool, typer.Option("--exact/--no-exact", help="Drafts cannot change a bit of the answer; or lift that for speed.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", "-t", help="0: always the most probable token; above: drawn at random.")
]
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


_MAY_BE_EMPTY = {  # that says something, or the command has a better message
    "option": frozenset({"system", "needle_lengths", "times", "stop", "job"}),
    "argument": frozenset({"model", "target", "source", "prompt"}),
}


class Command(TyperCommand):
    """A command whose options and arguments are there or not: an empty one is a mistake, such as a variable of a shell
    that is not set, and would be read as the folder one is in, or as nothing at all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest: list[str] = super().parse_args(ctx, args)
        for parameter in self.params:
            kind, given = parameter.param_type_name, ctx.params.get(parameter.name)
            if parameter.name in _MAY_BE_EMPTY[kind]:
                continue
            if given == "" or (isinstance(given, (list, tuple)) and "" in given):
                name = parameter.opts[0] if kind == "option" else parameter.make_metavar(ctx)
                raise OptionError(f"{name} is empty; give a value{'' if parameter.required else ', or leave it out'}.")
        return rest


def whole_text(text: str) -> int | None:
    """The number that a text of digits stands for; None for any other text, and for what nothing has so many of."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def numbers_of(option: str, text: str, least: int) -> tuple[int, ...]:
    """Numbers with commas between; an empty text has none. Raises OptionError for anything else, or a smaller one."""
    numbers = [whole_text(part.strip()) for part in text.split(",") if part]
    if any(number is None or number < least for number in numbers):
        raise OptionError(f"{option} is {shown(text)}, but must be numbers of {least} or more, with commas between.")
    return tuple(number for number in numbers if number is not None)
