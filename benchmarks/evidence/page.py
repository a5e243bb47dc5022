"""Make the tables and figures of docs/evidence.md from the files in docs/results/evidence.

    python benchmarks/evidence/page.py

The text of the page is written by hand; between ``<!-- NAME -->`` and ``<!-- end -->`` it is made.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from design import MAIN, STRENGTHS, WITHOUT

from nextscale.evaluation.comparison import Gap
from nextscale.evaluation.comparison_report import number, title, verdict
from nextscale.evaluation.files import write_text
from nextscale.evaluation.plots import save, sheet

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ("fd", "fd_infinity", "kd", "precision", "recall", "density", "coverage", "accuracy")
SETTINGS = ("temperature", "top_p", "guidance_scale")
Row = Mapping[str, Any]


def mean(row: Row, figure: str) -> float:
    values = [found[figure] for found in row["per_set"]]
    return sum(values) / len(values)


def gap_of(row: Row, figure: str) -> Gap:
    known = ("value", "per_set", "level", "method", "low", "high")
    stored = row["differences"][figure]
    return Gap(**{k: tuple(stored[k]) if k == "per_set" else stored[k] for k in known})


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------------- the tables


def arms_table(arms: Mapping[str, Row]) -> str:
    """What every arm reaches at its best settings."""
    head = ["arm", "β", "temperature, top-p, CFG", *map(title, SHOWN), "seconds for 1,000"]
    body = []
    for name, row in arms.items():
        settings = ", ".join(f"{row[s]:g}" for s in SETTINGS)
        count = len(row["per_set"]) * _images(row)
        seconds = f"{1000 * sum(row['seconds_of_pictures']) / count:.1f}"
        beta = f"{row['beta']:g}" if name != WITHOUT else ""
        body.append([name, beta, settings, *(number(f, mean(row, f)) for f in SHOWN), seconds])
    return table(head, body)


def _images(row: Row) -> int:
    return int(row["images"])


def differences_table(arms: Mapping[str, Row], figures: Sequence[str]) -> str:
    """Differences from no SSG with their 95 % intervals; bold where zero is outside."""
    body = []
    for name, row in arms.items():
        if name == WITHOUT:
            continue
        cells = []
        for figure in figures:
            gap = gap_of(row, figure)
            text = number(figure, gap.value, signed=True)
            if gap.low is not None and gap.high is not None:
                edges = [number(figure, edge, signed=True) for edge in (gap.low, gap.high)]
                text += f" [{edges[0]}, {edges[1]}]"
            cells.append(f"**{text}**" if gap.contains_zero is False and gap.same_sign else text)
        body.append([name, *cells])
    return table(["minus no SSG", *map(title, figures)], body)


def verdicts(arms: Mapping[str, Row]) -> str:
    """In words, for the main arm."""
    row = arms[MAIN]
    gaps = {figure: gap_of(row, figure) for figure in SHOWN}
    return "\n".join(f"- {title(f)}: {verdict(f, gaps, title)}." for f in SHOWN if gaps[f].low is not None)


def failures_table(rows: Sequence[Row]) -> str:
    figures = ("fd", "precision", "recall", "accuracy")
    body = []
    for row in sorted(rows, key=lambda r: (r["arm"] == "wrong grids", float(r["beta"]))):
        beta = float(row["beta"])
        name = f"β = {beta:g}" + (", wrong grids" if row["arm"] == "wrong grids" else "")
        cells = [number(f, float(row[f])) for f in figures]
        body.append([name if beta else WITHOUT, *cells])
    return table(["", *map(title, figures)], body)


def conditions(stored: Row) -> str:
    c = stored["conditions"]
    return (
        f"{c['sets']} sets of {c['images_per_set']:,} pictures an arm; float32 on a CPU with "
        f"{c['cpu_capability']}, {c['threads']} thread{'s' if c['threads'] > 1 else ''} a process; "
        f"nextscale {c['nextscale']}, torch {c['torch']}; {c['replicates']} resamples; weights "
        f"`{c['model']['sha256'][:12]}`, features `{c['features']['weights_sha256'][:12]}`, reference "
        f"`{c['reference']['sha256'][:12]}`."
    )


def settings_table(rows: Sequence[Row]) -> str:
    """The lowest distance at every temperature and CFG, without SSG and with each strength."""
    arms = {WITHOUT: 0.0, **{f"{MAIN}, β = {b:g}": b for b in STRENGTHS}}
    body = []
    for t in sorted({float(r["temperature"]) for r in rows}):
        for cfg in sorted({float(r["guidance_scale"]) for r in rows}):
            found = []
            for beta in arms.values():
                same = [
                    float(r["fd"])
                    for r in rows
                    if (float(r["temperature"]), float(r["guidance_scale"]), float(r["beta"]))
                    == (t, cfg, beta)
                ]
                found.append(f"{min(same):.2f}")
            body.append([f"{t:g}", f"{cfg:g}", *found])
    return table(["temperature", "CFG", *arms], body)


# ---------------------------------------------------------------------- the figures


def curves_figure(rows: Sequence[Row], path: Path) -> None:
    """Distance against recall, precision and recognition: every point is one setting of the grid."""
    with sheet(1, 3, size=(10.5, 3.6), sharey=True) as (figure, axes):
        for axis, name in zip(axes[0], ("recall", "precision", "accuracy"), strict=True):
            for beta, colour, marker in zip((0.0, *STRENGTHS), ("0.35", "C0", "C3"), "osD", strict=True):
                mine = [r for r in rows if float(r["beta"]) == beta]
                points = [(float(r[name]), float(r["fd"])) for r in mine]
                label = f"SSG, β = {beta:g}" if beta else WITHOUT
                axis.plot(*zip(*points, strict=True), marker, color=colour, label=label, alpha=0.75)
                edge = _frontier(points)
                axis.plot(*zip(*edge, strict=True), "-", color=colour, lw=1)
            axis.set_xlabel("recognised" if name == "accuracy" else name)
        axes[0][0].set_ylabel("Fréchet distance")
        axes[0][0].legend(fontsize=8)
        save(figure, path)


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other point beats in both: further right and lower."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


# ---------------------------------------------------------------------- the page


def fill(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """The page with every block made anew. Raises KeyError for a block that nothing makes."""

    def made(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{blocks[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n(?:(?!<!-- end -->).)*?<!-- end -->", made, text, flags=re.DOTALL)


def read(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "evidence")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "evidence.md")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    args = parser.parse_args()

    stored = json.loads((args.results / "arms.json").read_text())
    arms = stored["arms"]
    for row in arms.values():
        row["images"] = stored["conditions"]["images_per_set"]
    curves, failed = read(args.results, "curves"), read(args.results, "failures")
    blocks: dict[str, Callable[[], str]] = {
        "arms": lambda: arms_table(arms),
        "distances": lambda: differences_table(arms, ("fd", "fd_infinity", "kd")),
        "shares": lambda: differences_table(arms, ("precision", "recall", "density", "coverage", "accuracy")),
        "verdicts": lambda: verdicts(arms),
        "settings": lambda: settings_table(curves),
        "failures": lambda: failures_table(failed),
        "conditions": lambda: conditions(stored),
    }
    write_text(args.page, fill(args.page.read_text(encoding="utf-8"), blocks))
    curves_figure(curves, args.figures / "evidence-curves.svg")
    print(args.page)


if __name__ == "__main__":
    main()
