"""The one style of all plots, and the writing of them. Matplotlib is needed here and nowhere else.

>>> with sheet(size=(4.5, 3.2)) as (figure, axes):
...     axes[0, 0].plot([0, 1], [2, 3], color=COLOURS[0], label="no SSG")
...     save(figure, Path("curve.svg"))  # and curve.png
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nextscale.errors import InvalidArgumentError, MissingDependencyError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""For lines, in this order: told apart by colour-blind readers too (Okabe and Ito)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""For the same lines, so that a copy in grey can be read."""
SEQUENTIAL, DIVERGING = "cividis", "PuOr"
"""Names of colour maps for amounts, and for differences from a middle."""
FORMATS = (".svg", ".pdf")
DPI = 160  # of the PNG

_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "image.cmap": SEQUENTIAL,
    "figure.facecolor": "white",
    "savefig.dpi": DPI,
    "svg.hashsalt": "nextscale",  # the same figure gives the same file
    "pdf.fonttype": 42,
}


def require_matplotlib() -> Any:
    """The module. Raises MissingDependencyError, naming the extra, where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise MissingDependencyError(
            "plots need matplotlib; install it with: pip install 'nextscale[eval]'"
        ) from None
    return matplotlib


@contextlib.contextmanager
def sheet(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (4.5, 3.2), **grid: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, an array ``(rows, columns)``, in the house style, which ends with the block.

    size: width and height in inches. grid: passed to ``Figure.subplots``, ``sharey=True`` for instance.
    No window is opened, and nothing global is changed.
    """
    matplotlib = require_matplotlib()
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **grid)


def save(figure: Any, path: Path) -> tuple[Path, Path]:
    """Write a figure as ``path``, an .svg or .pdf, and as .png beside it: whole files or none.

    Returns both paths. Raises InvalidArgumentError for another suffix.
    """
    if path.suffix.lower() not in FORMATS:
        raise InvalidArgumentError(
            f"plots are written as {' or '.join(FORMATS)}, with a .png beside; got {path.name!r}"
        )
    written = (path, path.with_suffix(".png"))
    for target in written:
        kind = target.suffix[1:].lower()
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        try:
            figure.savefig(partial, format=kind, metadata=undated)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return written
