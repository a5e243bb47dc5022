"""Results for people and for machines: a JSON file, and the same as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nextscale.evaluation.figures import Figures
from nextscale.evaluation.files import write_json, write_text
from nextscale.evaluation.paper import Published
from nextscale.evaluation.runner import Result

Row = tuple[str, ...]
HIGHER = ("precision", "recall", "density", "coverage", "accuracy")  # and scores, by their names
LEAST = 0.1  # below, two decimals say too little

TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "kid": "KID × 1000",
    "clean_fid": "clean FID",
    "clean_sfid": "clean sFID",
    "clean_kid": "clean KID × 1000",
    "clean_inception_score": "clean Inception Score",
    "fd": "FD",
    "kd": "KD × 1000",
    "classifier_score": "classifier score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "accuracy": "recognised",
}


def write_result(
    result: Result, path: Path, *, heading: str, preset: str | None = None, published: Published | None = None
) -> None:
    """Write the result as JSON, and its table as Markdown beside it: whole files or none.

    published: figures for a column headed "paper", with where they are from.
    """
    paper = None if published is None else {"figures": published.figures, "source": published.source}
    stored = {"preset": preset, **result.to_dict(), "paper": paper}
    rows = table(result.figures, None if published is None else published.figures)
    notes = [*([f"paper: {published.source}"] if published else []), *left_out(result.figures)]
    lines = [
        f"# {heading}",
        "",
        *markdown(rows),
        "",
        *(f"- {line}" for line in [*notes, *conditions(result)]),
    ]
    write_json(path, stored)
    write_text(path.with_suffix(".md"), "\n".join(lines) + "\n")


def is_better_higher(figure: str) -> bool:
    """Whether more of a figure is better; less of a distance is."""
    return figure in HIGHER or figure.endswith("score")


def conditions(result: Result) -> list[str]:
    """What figures must not be shown without, in some lines."""
    protocol, seconds = result.protocol, result.seconds
    against = compared_with(protocol.reference)
    spent = [
        ("pictures", "images"),
        ("features", "features"),
        ("reference", "reference"),
        ("figures", "figures"),
    ]
    return [
        f"{protocol.images:,} pictures, features {protocol.features['name']}, {against}",
        "seconds: " + ", ".join(f"{title} {seconds[key]:.0f}" for title, key in spent) + f"; {result.device}",
        f"protocol {protocol.hash[:12]}, comparable with results of ruler {protocol.ruler[:12]}",
    ]


def compared_with(reference: Mapping[str, Any] | None) -> str:
    """Say what figures were computed against, from a protocol."""
    if not reference:
        return "no reference"
    rule = f", resized by the rule {reference['resize']}" if "resize" in reference else ""
    return f"against {reference['name']} ({reference['images']:,}{rule})"


def left_out(figures: Figures) -> list[str]:
    """One line for everything that could not be computed."""
    return [f"without {_title(what)}: {why}" for what, why in figures.left_out.items()]


def table(figures: Figures, paper: Mapping[str, float] | None = None) -> list[Row]:
    """Rows of a table, the first of them its head.

    paper: published figures for a column headed "paper"; those that were not measured have a row as well.
    """
    head: Row = ("", "measured")
    if paper is None:
        return [head, *((_title(name), _cell(figures, name)) for name in figures.scores)]
    names = [*figures.scores, *(name for name in paper if name not in figures.scores)]
    published = {name: _number(name, value) for name, value in paper.items()}
    rows = [(_title(name), _cell(figures, name), published.get(name, "")) for name in names]
    return [(*head, "paper"), *rows]


def _title(name: str) -> str:
    if name.endswith("_infinity"):
        return f"{_title(name.removesuffix('_infinity'))}, N → ∞"
    return TITLES.get(name, name)


def _cell(figures: Figures, name: str) -> str:
    value = figures.scores.get(name)
    if value is None:
        return ""
    if name == "accuracy":
        low, high = figures.details["accuracy_interval"]
        return f"{value:.1%} ({low:.1%} to {high:.1%})"
    error = figures.errors.get(name)
    shown = _number(name, value)
    if error is None:
        return shown
    return f"{shown} ± {error:.2f}" if abs(value) >= LEAST else f"{shown} ± {error:.2g}"


def _number(name: str, value: float) -> str:
    if name.endswith(("kid", "kd")):
        return f"{1000 * value:.3f}"
    if name in ("precision", "recall", "density", "coverage"):
        return f"{value:.3f}"
    return f"{value:.2f}" if abs(value) >= LEAST else f"{value:.2g}"


def plain(rows: Sequence[Row]) -> Iterable[str]:
    """Lines for a terminal, columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *aligned]).rstrip()


def markdown(rows: Sequence[Row]) -> Iterable[str]:
    """Lines of a Markdown table."""
    head, *body = rows
    yield f"| {' | '.join(head)} |"
    yield f"| --- |{' ---: |' * (len(head) - 1)}"
    yield from (f"| {' | '.join(row)} |" for row in body)
