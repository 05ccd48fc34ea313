"""The table and the plots of `pilotfish bench cache`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...runtime.sampling.finite import for_json
from ...runtime.storage import write_atomically
from ..terminal import output, show_table, show_text
from .cache_rows import FULL
from .plotting import drawn

Report = dict[str, Any]


_HEADS = ("cache", "share", "ppl", "KL", "top-1", "needles", "keys", "MiB", "tok/s", "step", "ceiling", "select")
_LEGEND = (
    "ppl: perplexity, against the exact full cache; top-1: places where both find the same token most probable; "
    "needles: digits found, mean over lengths and depths; keys: the same of several numbers in one text; MiB: "
    "allocated; tok/s: plain decoding at the end of the text, selecting included; step: its speed against a full cache "
    "of the same type; ceiling: the same against a full cache of no more entries; select: share of the prompt's time"
)


def show(report: Report) -> None:
    """The table on standard output."""
    out = output()
    show_text(out, f"{report['machine']}; {report['model']} on {report['engine']}; {report['length']} tokens of text")
    show_table(out, _HEADS, [_cells(row) for row in report["rows"]])
    show_text(out, _LEGEND)
    for name, why in report["refused"].items():
        show_text(out, f"{name}: {why}")
    if report["rows"]:
        out.print(f"one row again: {report['rows'][-1]['command']}", soft_wrap=True)


def line(row: Report) -> str:
    """One row, in words."""
    named = dict(zip(_HEADS, _cells(row), strict=True))
    head = f"{named.pop('cache')} {named.pop('share')}:"
    return " ".join([head, ", ".join(f"{name} {value}" for name, value in named.items() if value)])


def title(row: Report) -> str:
    """Policy and type of a row's cache."""
    return f"{row['policy']} {row['kv_dtype']}" if row["kv_dtype"] else str(row["policy"])


def _size(row: Report) -> str:
    """What a row's cache was given: a share of the text, or the entries of a policy that names its budget."""
    return row["share"] or f"{row['entries']} entries"


def _cells(row: Report) -> tuple[str, ...]:
    full = row["policy"] == FULL
    exact = full and row["kv_dtype"] is None
    more = row["perplexity"] / row["perplexity_exact"] - 1
    return (
        title(row),
        _size(row),
        f"{row['perplexity']:.2f}" if exact else f"{more:+.2%}" if abs(more) < 0.01 else f"{more:+.1%}",
        "" if exact else f"{row['kl']:.2g}",
        "" if exact else f"{row['agreement']:.1%}",
        _mean(row["needles"]),
        _mean(row["keys"]),
        f"{row['kv_bytes'] / 2**20:.1f}",
        f"{row['tokens_per_s']:.1f}",
        "" if full else f"{row['step_ms_full'] / row['step_ms']:.2f}",
        "" if full else f"{row['step_ms_ceiling'] / row['step_ms']:.2f}",
        "" if full else f"{row['select_s'] / row['prompt_s']:.1%}",
    )


def write_report(report: Report, folder: Path) -> list[Path]:
    """Paths of cache.json and of two plots, written."""
    paths = [folder / name for name in ("cache.json", "cache.png", "needles.png")]
    write_atomically(paths[0], json.dumps(for_json(report), indent=1).encode())
    _plot_loss(report, paths[1])
    _plot_needles(report, paths[2])
    return paths


def _mean(found: list[Any]) -> str:
    return f"{sum(share for *_, share in found) / len(found):.0%}" if found else ""


def _plot_loss(report: Report, path: Path) -> None:
    """KL by the share of the cache that stays, one line for every policy."""
    with drawn(path, (7, 4)) as (_, [[axes]]):
        rows = [row for row in report["rows"] if row["policy"] != FULL]
        for name in dict.fromkeys(map(title, rows)):
            points = sorted((row["entries"] / report["length"], row["kl"]) for row in rows if title(row) == name)
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("share of the entries that stay")
        axes.set_ylabel("KL to the full cache, nats a token")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{report['model']} on {report['engine']}, {report['length']} tokens", fontsize=9)
        if rows:
            axes.legend(fontsize=7, ncols=2)


def _plot_needles(report: Report, path: Path) -> None:
    """Depth by length, one field for every row."""
    fields = [(f"{title(row)} {_size(row)}", row["needles"]) for row in report["rows"]]
    n_columns = min(len(fields), 6)
    n_rows = -(-len(fields) // n_columns)
    size = (1.9 * n_columns, 1.7 * n_rows + 0.5)
    with drawn(path, size, n_rows, n_columns) as (figure, grid):
        for axes in grid.flat:
            axes.axis("off")
        for axes, (name, needles) in zip(grid.flat, fields, strict=False):
            lengths, depths = sorted({n for n, *_ in needles}), sorted({d for _, d, _ in needles})
            found = {(n, d): share for n, d, share in needles}
            axes.axis("on")
            axes.set_title(name, fontsize=7)
            if found:
                values = [[found[n, d] for n in lengths] for d in depths]
                axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
            axes.set_xticks(range(len(lengths)), [str(n) for n in lengths], fontsize=6)
            axes.set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths], fontsize=6)
        figure.supxlabel("tokens", fontsize=8)
        figure.supylabel("depth of the needle", fontsize=8)
