"""Options that belong together, as one value each: what says how a model is loaded, and how an answer is drawn."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..runtime.errors import OptionError
from .options import Cache, Device, DraftEngine, DraftOption, Engine, Exact, MaxContext, Temperature, Threads
from .terminal import LoadProgress

if TYPE_CHECKING:  # imported when it is needed: `--help` should not wait for it
    from ..runtime.model.model import Model
    from ..runtime.sampling.sampling import Sampling


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads one: a parameter that is a dataclass of options becomes an option for each field."""
    hints = get_type_hints(command, include_extras=True)
    shown: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            of_fields = get_type_hints(kind, include_extras=True)
            shown += [_parameter(field.name, field.default, of_fields[field.name]) for field in fields(kind)]
        else:
            shown.append(_parameter(parameter.name, parameter.default, kind))

    def called(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    called.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return called


def _parameter(name: str, default: object, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFlags:
    """How a model is loaded, as the command line says it. Raises OptionError for options that contradict each other."""

    engine: Engine = None
    device: Device = None
    draft: DraftOption = None
    draft_engine: DraftEngine = None
    draft_cache: Annotated[
        str | None, typer.Option(help="What stays of the draft model's own cache, as --cache; the answer is the same.")
    ] = None
    plain: Annotated[bool, typer.Option("--plain", help="No drafts.")] = False
    max_context: MaxContext = None
    threads: Threads = None
    cache: Cache = None
    quality: Annotated[
        str | None,
        typer.Option(help="Drop the full cache once --cache is known to agree with it so often: 0.98, or auto."),
    ] = None
    kv_dtype: Annotated[
        str | None, typer.Option(help="Cache type: int8, f16, or keys/values apart: u8/u4; default: exact.")
    ] = None
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="A setting of the engine, NAME=VALUE; may be given several times."),
    ] = None
    exact: Exact = True
    narrow: Annotated[
        bool | None,
        typer.Option(
            "--narrow/--no-narrow",
            help="One row and no draft where the text repeats nothing; default: where that is clearly cheaper.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.plain and self.draft is not None:
            raise OptionError("--plain and --draft contradict each other; drop one of the two.")

    def load(self, model: str, *, speculate: bool = True) -> Model:
        """The model, with its progress shown. speculate: False for what never drafts. Raises what load() raises."""
        from ..loading.load import load_with
        from ..loading.load_options import LoadOptions, NamedDraft, draft_of, policy_of, quality_of

        told = LoadOptions(
            engine=self.engine,
            device=self.device,
            draft=NamedDraft() if self.draft is None else draft_of(self.draft),
            speculate=speculate and not self.plain,
            draft_engine=self.draft_engine,
            draft_cache=policy_of(self.draft_cache),
            max_context=self.max_context,
            threads=self.threads,
            cache=policy_of(self.cache),
            quality=quality_of(self.quality),
            kv_dtype=self.kv_dtype,
            options=engine_options(self.option),
            exact=self.exact,
            narrow=self.narrow,
        )
        with LoadProgress() as progress:
            return load_with(model, told, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFlags:
    """How an answer is drawn. Raises OptionError for choices that a greedy answer does not have."""

    temperature: Temperature = 0.0
    top_k: Annotated[int | None, typer.Option(help="Keep the k most probable tokens.")] = None
    top_p: Annotated[
        float | None, typer.Option(help="Keep the most probable tokens that make up this share, 0 to 1.")
    ] = None
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens at least this share as probable as the best, 0 to 1.")
    ] = None
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens seen before become less likely.")] = 1.0
    presence_penalty: Annotated[float, typer.Option(help="Subtracted from tokens generated before.")] = 0.0
    frequency_penalty: Annotated[float, typer.Option(help="The same, for every time that they were.")] = 0.0
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None

    def __post_init__(self) -> None:
        if self.temperature == 0 and any(x is not None for x in (self.top_k, self.top_p, self.min_p, self.seed)):
            raise OptionError("--top-k, --top-p, --min-p and --seed need --temperature above 0; greedy has no choice.")

    def sampling(self) -> Sampling:
        """The same for an answer. Raises OptionError for numbers out of range."""
        from ..runtime.sampling.sampling import Sampling

        return Sampling(**{f.name: getattr(self, f.name) for f in fields(self) if f.name != "seed"})


def engine_options(given: list[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs. Raises OptionError for anything else."""
    pairs = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise OptionError(f"--option {text!r} must be NAME=VALUE.")
        if name in pairs:
            raise OptionError(f"--option {name} is given twice; leave one of the two out.")
        pairs[name] = value
    return pairs
