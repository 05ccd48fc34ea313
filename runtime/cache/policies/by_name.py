"""Policies by the name that a command line can hold: "snapkv", "snapkv:budget=512,every=128", "chunk-keydiff"."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...checks import shown
from ...errors import OptionError
from .chunk_kv import ChunkKV
from .critical_kv import CriticalKV
from .expected_attention import ExpectedAttention
from .heavy_hitters import H2O
from .key_diff import KeyDiff
from .key_norm import Knorm
from .kv_crush import KVCrush
from .kvzip import KVzip
from .lag_kv import LagKV
from .policy import CachePolicy
from .r_kv import RKV
from .sinks_and_window import SinksAndWindow
from .snapkv import SnapKV
from .surprise import SirLLM
from .threshold import ThresholdBudget
from .token_select import TokenSelect
from .tova import Tova

SCORERS = {kind.name: kind for kind in (Knorm, KeyDiff, LagKV, Tova, H2O, SnapKV, RKV, ExpectedAttention, KVzip)}
POLICIES = {kind.name: kind for kind in (SinksAndWindow, SirLLM)} | SCORERS
SELECTING = {kind.name: kind for kind in (TokenSelect,)}  # evict nothing
WRAPPERS = {kind.prefix: kind for kind in (ChunkKV, KVCrush, CriticalKV, ThresholdBudget)}
_RECTANGLE = "an engine's cache is one rectangle, as long for every head and layer, so nothing would be saved"
_IMPOSSIBLE = {
    "ada-": f"AdaKV gives heads unequal budgets; {_RECTANGLE}",
    "pyramid-": f"PyramidKV gives layers unequal budgets; {_RECTANGLE}",
    "lm-infinite": "LM-Infinite's distance clamp acts beyond the trained length, where a context ends here; "
    "up to there it is sinks",
}
_TYPES: dict[Any, type] = {"int": int, "float": float, "bool": bool, "str": str}
_SWITCH = {"true": True, "false": False}


def policy_by_name(text: str) -> CachePolicy:
    """The policy that a text describes: a name, then perhaps a colon and settings NAME=VALUE with commas between.

    Before a scorer's name wrappers may stand, the outermost first: "chunk-critical-snapkv"; settings of all of them
    follow the colon. Raises OptionError for unknown names, impossible settings and what cannot be wrapped.
    """
    name, _, given = text.partition(":")
    wrappers, bare = _unwrapped(name)
    kind: Any = (SCORERS if wrappers else POLICIES | SELECTING).get(bare)
    if kind is None:
        for prefix, reason in _IMPOSSIBLE.items():
            if name.startswith(prefix):
                raise OptionError(f"there is no cache policy {name!r}: {reason} (docs/kv-cache.md).")
        wrapped = f"; before {', '.join(SCORERS)} there may stand {', '.join(WRAPPERS)}"
        raise OptionError(f"there is no cache policy {name!r}; there are {', '.join(POLICIES | SELECTING)}{wrapped}.")
    kinds = [kind, *reversed(wrappers)]
    types = {setting: of for each in kinds for setting, of in _settings(each).items()}
    pairs = [_setting(pair, types, name) for pair in given.split(",") if given]
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise OptionError(f"{text!r} gives a setting twice; leave one of the two out.")
    made: Any = None
    for each in kinds:
        own = {setting: settings[setting] for setting in _settings(each) if setting in settings}
        missing = _required(each) - own.keys()
        if missing:
            raise OptionError(f"{name} has no {', '.join(missing)}; write {name}:{missing.pop()}=VALUE.")
        made = each(**own) if made is None else each(scorer=made, **own)
    return made  # type: ignore[no-any-return]


def _unwrapped(name: str) -> tuple[list[Any], str]:
    """The wrappers before a name, the outermost first, and the name behind them."""
    wrappers: list[Any] = []
    while True:
        prefix = next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None)
        if prefix is None:
            return wrappers, name
        wrappers.append(WRAPPERS[prefix])
        name = name.removeprefix(prefix)


def _settings(kind: Any) -> dict[str, type]:
    return {field.name: _TYPES[field.type] for field in dataclasses.fields(kind) if field.type in _TYPES}


def _required(kind: Any) -> set[str]:
    fields = dataclasses.fields(kind)
    return {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}


def _setting(pair: str, types: dict[str, type], policy: str) -> tuple[str, Any]:
    name, equals, value = pair.partition("=")
    if not equals or name not in types:
        raise OptionError(f"{pair!r} is no setting of {policy}, NAME=VALUE; its settings are {', '.join(types)}.")
    try:
        return name, _SWITCH[value] if types[name] is bool else types[name](value)
    except (KeyError, ValueError):
        wanted = "true or false" if types[name] is bool else f"a number ({types[name].__name__})"
        raise OptionError(f"{name} of {policy} is {shown(value)}, but must be {wanted}.") from None
