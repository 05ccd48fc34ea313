"""`pilotfish bench peers` on a terminal, and as one HTML page."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from ...terminal import output, show_table, show_text
from ..plotting import drawn
from .contestants import OURS

_MIB = 1 << 20
_HEADS = ("", "tok/s", "x", "low", "means", "ceil", "step", "same", "first")
_NOTES = (
    "x: speed over the fastest plain decoding of another runtime, or ours where there is none, median of the prompts; "
    "low: the lowest; means: ratio of mean tokens/s, prompt included, as Spec-Bench has it; ceil: x if these steps "
    "took what T(n) says and nothing else took time; step: tokens for each pass of the large model; same: prompts with "
    "the text of its own plain decoding; first: seconds until the first token"
)
_ENERGY = "; J: joules per token of the whole processor"


def show(report: dict[str, Any]) -> None:
    """Tables: who took part, and one for each set."""
    out = output()
    show_text(out, _heading(report))
    show_table(out, ("peer", "version or why not", "load s", "MiB"), _peers(report))
    for name, group in report["sets"].items():
        if group["rows"]:
            show_table(out, *_table(report, group), title=f"\n{_title(name, group)}")
    show_text(out, f"\n{_notes(report)}")


def _heading(report: dict[str, Any]) -> str:
    drawn_how = (
        "greedy" if not report["temperature"] else f"temperature {report['temperature']:g}, seed {report['seed']}"
    )
    return (
        f"{report['machine']} ({', '.join(report['instruction_sets']) or 'instruction sets unknown'}); "
        f"{report['model']}; {report['threads']} threads; {report['new_tokens']} tokens, {report['repeats']} passes; "
        f"{drawn_how}"
    )


def _title(name: str, group: dict[str, Any]) -> str:
    return f"{name}: {group['prompts']} prompts; 1 is {group['fastest_plain']}"


def _notes(report: dict[str, Any]) -> str:
    return _NOTES + (_ENERGY if _has_energy(report) else "; joules: this machine does not show them")


def _peers(report: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            row["version"] if row["state"] == "ran" else row["state"],
            f"{row['load_s']:.1f}" if row["state"] == "ran" else "",
            f"{row['peak_bytes'] / _MIB:.0f}" if row["peak_bytes"] else "",
        )
        for name, row in report["peers"].items()
    ]


def _table(report: dict[str, Any], group: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    energy = _has_energy(report)
    rows = []
    for name, row in group["rows"].items():
        same = f"{row['same_text']}/{group['prompts']}" if "same_text" in row else ""
        cells = [_number(row, "tokens_per_s", 1)]
        for key in (
            "times_fastest",
            "lowest_times_fastest",
            "ratio_of_means",
            "ceiling_times_fastest",
            "tokens_per_step",
        ):
            cells.append(_number(row, key, 2))
        cells += [same, _number(row, "first_s", 2), *([_number(row, "joules_per_token", 2)] * energy)]
        rows.append((name, *cells))
    return (*_HEADS, *(["J"] * energy)), rows


def _has_energy(report: dict[str, Any]) -> bool:
    return any("joules_per_token" in row for group in report["sets"].values() for row in group["rows"].values())


def _number(row: dict[str, Any], key: str, digits: int) -> str:
    value = row.get(key)
    return "" if value is None else f"{value:.{digits}f}"


def page(report: dict[str, Any]) -> str:
    """One HTML file that needs no other."""
    parts = [f"<p>{html.escape(_heading(report))}</p>"]
    parts.append(_html_table(("peer", "version or why not", "load s", "MiB"), _peers(report)))
    shown = {name: group for name, group in report["sets"].items() if group["rows"]}
    if shown:
        picture = base64.b64encode(_plots(shown)).decode()
        parts.append(f'<img alt="speed of every peer by prompt set" src="data:image/png;base64,{picture}">')
    for name, group in shown.items():
        parts += [f"<h2>{html.escape(_title(name, group))}</h2>", _html_table(*_table(report, group))]
    parts.append(f"<p>{html.escape(_notes(report))}</p>")
    style = "body{font:15px sans-serif;max-width:70em;margin:2em auto}td,th{padding:2px 10px;text-align:right}"
    style += "td:first-child,td:nth-child(2){text-align:left}img{max-width:100%}"
    title = f"Pilotfish beside other runtimes, {report['date']}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>\n'
        f"<h1>{title}</h1>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _html_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["".join(f"<th>{html.escape(head)}</th>" for head in heads)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"


def _plots(sets: dict[str, Any]) -> bytes:
    """Bars of every row's x, a picture a set; the line is the fastest other runtime's plain decoding."""
    image = io.BytesIO()
    columns = min(len(sets), 2)
    n_lines = -(-len(sets) // columns)
    tallest = max(len(group["rows"]) for group in sets.values())
    with drawn(image, (6.0 * columns, (0.25 * tallest + 0.9) * n_lines), n_lines, columns) as (_, grid):
        places = [axes for line in grid for axes in line]
        for axes, (name, group) in zip(places, sets.items(), strict=False):
            names = list(group["rows"])[::-1]
            lengths = [group["rows"][each].get("times_fastest") or 0.0 for each in names]
            colors = ["tab:blue" if each.startswith(OURS) else "tab:gray" for each in names]
            axes.barh(names, lengths, color=colors)
            for i, each in enumerate(names):
                ceiling = group["rows"][each].get("ceiling_times_fastest")
                if ceiling is not None:
                    axes.plot([ceiling], [i], "k|", markersize=9)
            axes.axvline(1.0, color="black", linewidth=0.8)
            axes.set_title(name, fontsize=9)
            axes.tick_params(labelsize=7)
        for axes in places[len(sets) :]:
            axes.axis("off")
    return image.getvalue()
