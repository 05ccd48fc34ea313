"""Pictures of benchmarks: the one file that knows matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...runtime.errors import OptionError
from ...runtime.install import install_command
from ...runtime.storage import require_writable, write_atomically


def require_plots(out: Path | None) -> None:
    """None if plots can be drawn into `out`, or if there is no `out`; asked before anything long begins.

    Raises OptionError without matplotlib, or where `out` is a file, and CacheWriteError where it cannot be written.
    """
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is a file; it takes a folder, which may be new.")
    require_writable(out)
    try:
        import matplotlib
    except ImportError:
        raise OptionError(f"--out draws a plot, which needs matplotlib: {install_command('demo')}") from None
    matplotlib.use("Agg")


@contextmanager
def drawn(
    path: Path | io.BytesIO, size: tuple[float, float], rows: int = 1, columns: int = 1
) -> Iterator[tuple[Any, Any]]:
    """A figure of `size` inches and its array of axes (rows, columns), written to `path` as PNG at the end."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    try:
        yield figure, axes
        figure.tight_layout()
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=130)
    finally:
        pyplot.close(figure)
    if isinstance(path, Path):
        write_atomically(path, image.getvalue())
    else:
        path.write(image.getvalue())


def plot_ratios(report: dict[str, object], path: Path) -> None:
    """Bars of every contestant's speed relative to plain decoding, by prompt set."""
    sets = report["sets"]
    assert isinstance(sets, dict)
    contestants = list(next(iter(sets.values()))["times_plain"])
    with drawn(path, (8, 4)) as (_, [[axes]]):
        width = 0.8 / len(contestants)
        for i, name in enumerate(contestants):
            at = [x + i * width for x in range(len(sets))]
            axes.bar(at, [row["times_plain"][name] for row in sets.values()], width, label=name)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xticks([x + 0.4 - width / 2 for x in range(len(sets))], list(sets))
        axes.set_ylabel("tokens per second, plain = 1")
        axes.set_title(f"{report['engine']} ({report['machine']})", fontsize=9)
        axes.legend(fontsize=8)
