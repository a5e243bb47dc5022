"""The outcome of a sweep as tables: a row per cell and set of pictures, and their means."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextscale.errors import MissingDependencyError
from nextscale.evaluation.files import write_text
from nextscale.evaluation.sweep import Measurement, Results
from nextscale.evaluation.sweep_file import PARTS, Cell, label

Row = dict[str, Any]
LEVEL = 0.95
# Student's t, two-sided 95 %, for 1, 2, … degrees of freedom; more of them use the last, which is too wide.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

# ---------------------------------------------------------------------------- a row per measurement


def rows(measurements: Sequence[Measurement], results: Results) -> list[Row]:
    """What was measured so far: settings, figures with their standard errors, seconds and hashes."""
    found = ((m, results.get(m.protocol)) for m in measurements)
    return [_row(m, stored, results) for m, stored in found if stored is not None]


def _row(measurement: Measurement, stored: Mapping[str, Any], results: Results) -> Row:
    protocol = measurement.protocol
    errors = {f"{name}_standard_error": value for name, value in stored["standard_errors"].items()}
    seconds = {f"seconds_{name}": value for name, value in stored["seconds"].items()}
    return {
        "cell": measurement.cell.name,
        "model": protocol.model["name"],
        **_settings(measurement),
        "seed": protocol.seed,
        "images": protocol.images,
        **stored["scores"],
        **errors,
        **seconds,
        "images_per_second": stored["images_per_second"],
        "device": stored["device"],
        "nextscale": stored["versions"]["nextscale"],
        "protocol_hash": protocol.hash,
        "ruler_hash": protocol.ruler,
        "model_sha256": protocol.model["sha256"],
        "file": results.path(protocol).name,
    }


def _settings(measurement: Measurement) -> Row:
    """Settings as they were used; those of SSG are empty where it is off, but for what an axis says."""
    sampling = measurement.protocol.sampling or {}
    plain = {k: v for k, v in sampling.items() if k not in ("guidance_scale", "ssg")}
    ssg = sampling.get("ssg")
    asked = {k: v for k, v in measurement.cell.labels.items() if k in PARTS}
    used = {"beta": 0.0} if ssg is None else {name: ssg[name] for name in PARTS}
    settings = {
        "guidance_scale": sampling["guidance_scale"]["scale"],
        **plain,
        "ssg": "off" if ssg is None else "on",
        **{name: used.get(name, asked.get(name)) for name in PARTS},
    }
    return {name: label(v) if isinstance(v, (list, tuple)) else v for name, v in settings.items()}


# ---------------------------------------------------------------------------- a mean per cell


@dataclass(frozen=True)
class Gain:
    """A figure minus that without SSG, from the same seeds and otherwise the same settings.

    low, high: 95 % interval by Student's t over the sets; ``None`` for a single set.
    """

    value: float
    low: float | None
    high: float | None


@dataclass
class CellMean:
    """One cell over its sets of pictures, as far as they are measured.

    mean, spread: of every figure, and its standard deviation over the sets, ``None`` for a single one.
    gains: against the same cell without SSG, where there is one.
    """

    cell: Cell
    seeds: list[int] = field(default_factory=list)
    mean: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float | None] = field(default_factory=dict)
    gains: dict[str, Gain] = field(default_factory=dict)

    def to_row(self) -> Row:
        """For a table."""
        row: Row = {"cell": self.cell.name, "sets": len(self.seeds)}
        for name, value in self.cell.settings.items():
            row[name] = value if isinstance(value, (int, float, str)) else label(value)
        for name, value in self.mean.items():
            row |= {name: value, f"{name}_spread": self.spread[name]}
        for name, gain in self.gains.items():
            key = f"{name}_minus_off"
            row |= {key: gain.value, f"{key}_low": gain.low, f"{key}_high": gain.high}
        return row


def means(measurements: Sequence[Measurement], results: Results) -> list[CellMean]:
    """Every cell that has been measured at least once."""
    scores: dict[str, Mapping[str, float]] = {}
    for m in measurements:
        stored = results.get(m.protocol)
        if stored is not None:
            scores[m.protocol.hash] = stored["scores"]
    off = {_without_ssg(m): scores[m.protocol.hash] for m in measurements if _off(m) and _known(m, scores)}
    cells: dict[int, tuple[Cell, list[Measurement]]] = {}
    for m in measurements:
        if _known(m, scores):
            cells.setdefault(id(m.cell), (m.cell, []))[1].append(m)
    return [_mean(cell, sets, scores, off) for cell, sets in cells.values()]


def _known(measurement: Measurement, scores: Mapping[str, Any]) -> bool:
    return measurement.protocol.hash in scores


def _off(measurement: Measurement) -> bool:
    return (measurement.protocol.sampling or {}).get("ssg") is None


def _without_ssg(measurement: Measurement) -> str:
    """Equal for measurements that differ in SSG alone."""
    sampling = {**(measurement.protocol.sampling or {}), "ssg": None}
    return json.dumps([sampling, measurement.protocol.seed], sort_keys=True)


def _mean(
    cell: Cell,
    sets: Sequence[Measurement],
    scores: Mapping[str, Mapping[str, float]],
    off: Mapping[str, Mapping[str, float]],
) -> CellMean:
    found = [scores[m.protocol.hash] for m in sets]
    mean = CellMean(cell, [m.protocol.seed for m in sets])
    for name in (name for name in found[0] if all(name in f and f[name] is not None for f in found)):
        values = [f[name] for f in found]
        mean.mean[name], mean.spread[name] = _average(values), _deviation(values)
        others = [off.get(_without_ssg(m), {}).get(name) for m in sets]
        if not _off(sets[0]) and all(o is not None for o in others):
            mean.gains[name] = gain([v - o for v, o in zip(values, others, strict=True) if o is not None])
    return mean


def gain(differences: Sequence[float]) -> Gain:
    """The mean of differences, one per set, with its interval."""
    value, spread = _average(differences), _deviation(differences)
    if spread is None:
        return Gain(value, None, None)
    t = _T[min(len(differences) - 1, len(_T)) - 1]
    half = t * spread / math.sqrt(len(differences))
    return Gain(value, value - half, value + half)


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    centre = _average(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))


# ---------------------------------------------------------------------------- files


def write_csv(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows with all their columns, empty where a row has none: a whole file or none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(table), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(path, text.getvalue())


def write_parquet(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The same as parquet. Raises MissingDependencyError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError(
            "parquet needs pyarrow; install it with: pip install 'nextscale[eval]'"
        ) from None
    columns = {name: _uniform([row.get(name) for row in table]) for name in _columns(table)}
    partial = path.with_name(path.name + ".partial")
    try:
        parquet.write_table(pyarrow.table(columns), partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _columns(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """All columns; one that only later rows have follows those that stand before it there."""
    names: list[str] = []
    for row in table:
        place = 0
        for name in row:
            if name in names:
                place = names.index(name) + 1
            else:
                names.insert(place, name)
                place += 1
    return names


def _uniform(values: list[Any]) -> list[Any]:
    """Numbers as they are; numbers and texts together as texts, since a column of parquet has one type."""
    kinds = {type(v) for v in values if v is not None}
    if str in kinds and len(kinds) > 1:
        return [None if v is None else str(v) for v in values]
    return [float(v) if float in kinds and v is not None else v for v in values]
