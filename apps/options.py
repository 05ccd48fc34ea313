"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

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
Plain = Annotated[bool, typer.Option("--plain", help="No drafts.")]
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
        help="Default: 256 (chat: 512), or what there is room for. 0: until the context is full.",
    ),
]
