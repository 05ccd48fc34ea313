"""A jinja2 environment for templates that nobody has read: no access to Python, and an end to time and memory.

A template can only spend time by looping or calling, and only grow text by a handful of operations. All of them are
metered here, in the thread that renders, so that the limits hold on every platform and off the main thread, too. The
rest is as Hugging Face renders chat templates (transformers, chat_template_utils.py).
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 1.0  # of processor time
MAX_CHARS = 32_000_000  # of text made on the way, the result included
MAX_NUMBER = 1_000_000  # as a width, a count or a repetition
MAX_BITS = 10_000
_REMOVED_FILTERS = ("urlize", "striptags", "wordwrap", "pprint", "random")  # slow on hostile text, or not repeatable

_WIDTH = re.compile(r"(?:[%:)] ?|[.<>^=+\-#_,*])(\d{1,12})")  # in a format: what may be the width of a field


class Meter:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self._end = time.thread_time() + MAX_SECONDS
        self._chars = MAX_CHARS

    def tick(self) -> None:
        """One step of a loop, one call. Raises SecurityError once the time is up."""
        if time.thread_time() > self._end:
            raise SecurityError(f"it ran for more than {MAX_SECONDS:g} s")

    def charge(self, n_chars: int) -> None:
        """Text (or a list) of this length is about to be made. Raises SecurityError once there was too much of it."""
        self._chars -= n_chars
        if self._chars < 0:
            raise SecurityError(f"it made more than {MAX_CHARS // 1_000_000} million characters")


_meter: ContextVar[Meter] = ContextVar("meter")


def render(environment: Sandbox, template: jinja2.Template, variables: Mapping[str, object]) -> str:
    """The text of a template. Raises jinja2's errors, and whatever the template's expressions raise."""
    token = _meter.set(Meter())
    try:
        return environment.concat(template.generate(**variables))
    finally:
        _meter.reset(token)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment chat templates are written for, metered."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed before a meter runs
            extensions=[jinja2.ext.loopcontrols, _Generation],
            cache_size=0,
        )
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.filters["tojson"] = _tojson
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        self.filters = {name: _metered_filter(name, function) for name, function in self.filters.items()}

    def compiled(self, source: str) -> jinja2.Template:
        """The template, with a meter in each of its loops."""
        tree = _Metered().visit(self.parse(source))
        tree.set_environment(self)
        return self.from_string(tree)

    def tick(self) -> str:
        _meter.get().tick()
        return ""

    def concatenate(self, *values: object) -> str:
        return self.concat(str(value) for value in values)

    @staticmethod
    def concat(pieces: Any) -> str:  # jinja2 joins the output of macros and blocks with it
        found = []
        meter = _meter.get()
        for piece in pieces:
            meter.charge(len(piece))
            found.append(piece)
        return "".join(found)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _meter.get()
        meter.tick()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _charge_text_method(meter, method.__name__, owner, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        meter.charge(_length(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _meter.get()
        meter.tick()
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise SecurityError("it computed an enormous number")
        elif operator == "*":
            meter.charge(_length(left) * max(right, 0) if isinstance(right, int) else _length(right) * max(left, 0))
        elif operator == "+":
            meter.charge(_length(left) + _length(right))
        elif operator == "%" and isinstance(left, str):
            _charge_text_method(meter, "format", left, right if isinstance(right, tuple) else (right,), {})
        result = super().call_binop(context, operator, left, right)
        meter.charge(_length(result))
        return result


def _length(value: object) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _charge_text_method(meter: Meter, name: str, text: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Charge what a method of str (or the filter of that name) is about to make."""
    values = [*args, *named.values()]
    values += [inner for value in values if isinstance(value, Mapping) for inner in value.values()]
    number = max((value for value in values if isinstance(value, int)), default=0)
    if number > MAX_NUMBER:
        raise SecurityError(f"it gave {name} a number above {MAX_NUMBER}")
    n_chars = _length(text) + max(number, 0)
    if name in ("format", "format_map"):
        longest = max((_length(value) for value in values), default=0)
        n_chars += (text.count("{") + text.count("%")) * max(longest, number)
        n_chars += sum(int(width) for width in _WIDTH.findall(text))
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        n_chars += text.count(args[0]) * len(args[1])
    if name == "join" and args and isinstance(args[0], (list, tuple)):
        n_chars += len(args[0]) * len(text)
    meter.charge(n_chars)


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, metered. Attributes stay, for jinja2 marks with one what a filter wants as its first argument."""

    @functools.wraps(function)
    def metered(*args: Any, **named: Any) -> Any:
        meter = _meter.get()
        meter.tick()
        values = args[1:] if hasattr(function, "jinja_pass_arg") else args
        if name == "join" and values:
            separator = values[1] if len(values) > 1 else named.get("d", "")
            meter.charge(_length(values[0]) * _length(separator))
        elif values:
            text = values[0] if isinstance(values[0], str) else ""
            _charge_text_method(meter, name, text, values[1:], named)
        result = function(*args, **named)
        meter.charge(_length(result))
        return result

    return metered


class _Metered(NodeTransformer):
    """Puts a tick at the start of each loop's body, and lets `~` be counted."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 (jinja2 names it)
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return nodes.Call(
            nodes.EnvironmentAttribute("concatenate"), list(node.nodes), [], None, None, lineno=node.lineno
        )


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's words for training; here it only passes them on."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
