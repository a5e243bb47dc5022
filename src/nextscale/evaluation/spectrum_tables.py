"""The numbers of ``nextscale spectrum`` as CSV, a file for every plot, and in short for a terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nextscale.evaluation.report import Row, plain
from nextscale.evaluation.residual import CURVES

Values = Mapping[str, Any]
Line = tuple[Any, ...]


def csv_files(result: Mapping[str, Any]) -> dict[str, str]:
    """A table for every plot, by the name of its file, one value or curve point a line."""
    made = {
        "latent": _latent_rows,
        "amplitude": _amplitude_rows,
        "detail": _detail_rows,
        "blur": _blur_rows,
        "residual": _residual_rows,
        "saturation": _saturation_rows,
    }
    return {f"{name}.csv": _text(rows(result[name])) for name, rows in made.items() if result[name]}


def _text(lines: Iterator[Line]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _latent_rows(section: Values) -> Iterator[Line]:
    yield "arm", "step", "coarse_nyquist", "fine_nyquist", "bin", "mean", "std"
    for arm, curves in section["arms"].items():
        for step, means, stds in zip(section["steps"], curves["mean"], curves["std"], strict=True):
            about = arm, step["step"], step["coarse_nyquist"], step["fine_nyquist"]
            yield from ((*about, *point) for point in zip(section["bins"], means, stds, strict=True))


def _amplitude_rows(section: Values) -> Iterator[Line]:
    yield "arm", "against", "frequency", "ratio", "low", "high"
    first = next(iter(section["arms"]))
    against = {"reference": section["arms"], first: section["against_first"]}
    for name, arms in against.items():
        for arm, found in arms.items():
            if "ratio" in found:
                columns = (found["ratio"][key] for key in ("value", "low", "high"))
                points = zip(section["frequencies"], *columns, strict=True)
                yield from ((arm, name, *point) for point in points)


def _detail_rows(section: Values) -> Iterator[Line]:
    yield "arm", "quantity", "sigma", "value", "low", "high"
    for arm, found in section["arms"].items():
        for quantity, interval in found.items():
            columns = (interval[key] for key in ("value", "low", "high"))
            points = zip(section["sigmas"], *columns, strict=True)
            yield from ((arm, quantity, *point) for point in points)


def _blur_rows(section: Values) -> Iterator[Line]:
    yield "arm", "reference", "sigma", section["figure"], "change", "standard_error"
    for arm, curves in section["arms"].items():
        for against, curve in curves.items():
            errors = curve["errors"] or [""] * len(section["sigmas"])
            columns = (section["sigmas"], curve["values"], curve["changes"], errors)
            yield from ((arm, against, *point) for point in zip(*columns, strict=True))


def _residual_rows(section: Values) -> Iterator[Line]:
    yield "arm", "step", "statistic", "value", "low", "high"
    for arm, found in section["arms"].items():
        for name, interval in found.items():
            columns = (interval[key] for key in ("value", "low", "high"))
            numbers = [step["step"] for step in section["steps"]]
            yield from ((arm, k, name, *point) for k, *point in zip(numbers, *columns, strict=True))


def _saturation_rows(section: Values) -> Iterator[Line]:
    yield "arm", "step", "beta", "used", *CURVES
    for arm, found in section["arms"].items():
        for i, step in enumerate(section["steps"]):
            for j, beta in enumerate(section["betas"]):
                yield arm, step["step"], beta, False, *(found[name][i][j] for name in CURVES)
            used = (found["used"][name]["value"][i] for name in CURVES)
            yield arm, step["step"], found["beta"][i], True, *used


# ---------------------------------------------------------------------------- in short


def summary_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What is worth reading first, as tables of plain text."""
    names = list(result["arms"])
    yield f"{result['images']:,} pictures an arm from seed {result['seed']}, {result['level']:.0%} intervals"
    pictures = _picture_rows(result, names)
    if pictures:
        yield from plain([("pictures beside real ones", *names), *pictures])
    for section in (_latent_summary, _saturation_summary):
        yield from plain(section(result, names))
    for arm, found in result["latent"]["differences"].items():
        yield from _difference_lines(result, arm, found)
    for what, why in result["left_out"].items():
        yield f"without {what}: {why}"


def _picture_rows(result: Mapping[str, Any], names: Sequence[str]) -> list[Row]:
    amplitude, detail, blur = result["amplitude"], result["detail"], result["blur"]
    rows: list[Row] = []
    titles = {
        "distance": "mean |ln amplitude ratio|",
        "low": "ln ratio, low frequencies",
        "high": "ln ratio, high frequencies",
        "slope": "difference of slopes",
    }
    for key, title in titles.items():
        if all("summary" in amplitude["arms"][arm] for arm in names):
            found = [amplitude["arms"][arm]["summary"][key] for arm in names]
            rows.append((title, *map(_interval, found)))
    for i, sigma in enumerate(detail["sigmas"]):
        if all("ratio" in detail["arms"][arm] for arm in names):
            cells = ({k: v[i] for k, v in detail["arms"][arm]["ratio"].items()} for arm in names)
            rows.append((f"ratio of what a blur of σ {sigma:g} removes", *map(_interval, cells)))
    if blur:
        best = (blur["arms"][arm]["unblurred"]["best"] for arm in names)
        rows.append((f"blur with the lowest {blur['figure'].upper()}", *(f"σ {sigma:g}" for sigma in best)))
    return rows


def _latent_summary(result: Mapping[str, Any], names: Sequence[str]) -> list[Row]:
    section = result["latent"]
    head: Row = ("change of the latent, below / above the Nyquist before", *names)
    rows = []
    for i, step in enumerate(section["steps"]):
        found = (section["arms"][arm]["summary"] for arm in names)
        cells = (f"{s['below']['value'][i]:+.2f} / {s['above']['value'][i]:+.2f}" for s in found)
        rows.append((f"  step {step['step']}, {_grid(step)}", *cells))
    return [head, *rows]


def _saturation_summary(result: Mapping[str, Any], names: Sequence[str]) -> list[Row]:
    section = result["saturation"]
    head: Row = ("likeliest choices moved / settled, half settled at β", *names)
    rows = []
    for i, step in enumerate(section["steps"]):
        cells = []
        for arm in names:
            used, half = section["arms"][arm]["used"], section["arms"][arm]["half"]["settled"][i]
            moved, settled = (used[key]["value"][i] for key in ("moved", "settled"))
            at = f"> {section['betas'][-1]:g}" if half is None else f"{half:.2g}"
            cells.append(f"{moved:.0%} / {settled:.0%}, {at}")
        rows.append((f"  step {step['step']}, {_grid(step)}", *cells))
    return [head, *rows]


def _difference_lines(result: Mapping[str, Any], arm: str, found: Values) -> Iterator[str]:
    """What SSG changes, with zero inside of the interval said plainly."""
    first = next(iter(result["arms"]))
    for i, step in enumerate(result["latent"]["steps"]):
        one = {key: values[i] for key, values in found["contrast"].items()}
        yield f"{arm} minus {first}, step {step['step']}, above minus below: {_judged(one)}"
    for key in ("low", "high"):
        one = result["amplitude"]["against_first"][arm]["summary"][key]
        if not _missing(one):
            yield f"{arm} against {first}, ln amplitude ratio, {key} frequencies: {_judged(one)}"


def _judged(interval: Values) -> str:
    if _missing(interval):
        return "none"
    zero = "; zero is inside" if interval["low"] <= 0 <= interval["high"] else ""
    return f"{interval['value']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f}){zero}"


def _interval(interval: Values) -> str:
    if _missing(interval):
        return "none"
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _missing(interval: Values) -> bool:
    """Whether there is no value: no bin in the range, in small pictures."""
    return interval["value"] is None or math.isnan(interval["value"])


def _grid(step: Values) -> str:
    h, w = step["fine"]
    return f"{w}x{h}"
