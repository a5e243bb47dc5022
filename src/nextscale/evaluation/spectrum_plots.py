"""The plots of ``nextscale spectrum``, from its numbers alone: a stored spectrum.json can be drawn again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextscale.evaluation.plots import COLOURS, MARKERS, SEQUENTIAL, save, sheet

Result = Mapping[str, Any]
COLUMNS = 3
GREY = "#777777"
PANEL = 2.5  # inches a side, about


def write_plots(result: Result, folder: Path) -> list[str]:
    """All plots that the numbers allow, as .svg and .png; returns the names of the .svg files.

    Raises MissingDependencyError without matplotlib.
    """
    made = {
        "latent": latent_plot,
        "amplitude": amplitude_plot,
        "blur": blur_plot,
        "residual": residual_plot,
        "saturation": saturation_plot,
    }
    written = []
    for name, draw in made.items():
        draw(result, folder / f"{name}.svg")
        written.append(f"{name}.svg")
    return written


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def _band(place: Any, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> None:
    place.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _grid(step: Mapping[str, Any], key: str) -> str:
    h, w = step[key]
    return f"{h}" if h == w else f"{h}×{w}"


def latent_plot(result: Result, path: Path) -> None:
    """What each step adds to the latent, by frequency: mean and one standard deviation over pictures."""
    section = result["latent"]
    steps, bins = section["steps"], section["bins"]
    columns = min(COLUMNS, len(steps))
    lines = -(-len(steps) // columns)
    size = (PANEL * columns + 0.4, (PANEL - 0.5) * lines + 0.7)
    with sheet(lines, columns, size=size, sharex=True, sharey=True) as (figure, places):
        for place in places.flat[len(steps) :]:
            place.set_axis_off()
        for i, (place, step) in enumerate(zip(places.flat, steps, strict=False)):
            coarse = place.axvline(step["coarse_nyquist"], color="black", linestyle="--", linewidth=0.9)
            fine = place.axvline(step["fine_nyquist"], color=GREY, linestyle=":", linewidth=0.9)
            place.axhline(0, color=GREY, linewidth=0.6)
            drawn = []
            for number, curves in enumerate(section["arms"].values()):
                mean, std = curves["mean"][i], curves["std"][i]
                look = _look(number)
                drawn += place.plot(bins, mean, **look, markersize=3)
                low, high = ([m + s * d for m, d in zip(mean, std, strict=True)] for s in (-1, 1))
                _band(place, bins, low, high, look["color"])
            place.set_title(f"step {step['step'] - 1} to {step['step']}: {_sides(step)}")
        figure.supxlabel("radial frequency of the latent (cycles per side)", fontsize=9)
        figure.supylabel("change of ln magnitude", fontsize=9)
        names = [*section["arms"], "Nyquist of the step before", "Nyquist of this step"]
        figure.legend([*drawn, coarse, fine], names, loc="outside upper center", ncols=min(len(names), 4))
        save(figure, path)


def _sides(step: Mapping[str, Any]) -> str:
    return f"{_grid(step, 'coarse')} → {_grid(step, 'fine')}"


def amplitude_plot(result: Result, path: Path) -> None:
    """Radial amplitude of the pictures, divided by that of real ones and by that without SSG."""
    section, side = result["amplitude"], min(result["size"])
    first = next(iter(section["arms"]))
    against_real = {name: found for name, found in section["arms"].items() if "ratio" in found}
    panels = [("real pictures", 0, against_real), (first, 1, section["against_first"])]
    panels = [panel for panel in panels if panel[2]]
    with sheet(1, max(len(panels), 1), size=(3.7 * max(len(panels), 1), 3.2)) as (figure, places):
        for place, (name, offset, arms) in zip(places[0], panels, strict=False):
            for number, (arm, found) in enumerate(arms.items(), offset):
                look, ratio = _look(number), found["ratio"]
                place.plot(section["frequencies"], ratio["value"], **look, label=arm, markersize=3)
                _band(place, section["frequencies"], ratio["low"], ratio["high"], look["color"])
            place.axhline(1, color=GREY, linewidth=0.8)
            _octaves(place, section["frequencies"])
            place.axvspan(side / 25, side / 2.5, color="#f4f4f4", zorder=0)
            place.set_xlabel("radial frequency (cycles per side)")
            place.set_ylabel(f"amplitude / that of {name}")
            place.legend()
        if not panels:
            _nothing(places[0][0], "no reference, and nothing to compare")
        save(figure, path)


def _octaves(place: Any, frequencies: Sequence[int]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    place.set_xscale("log", base=2)
    last = int(math.log2(frequencies[-1]))
    place.set_xticks([2**k for k in range(last + 1)], [str(2**k) for k in range(last + 1)])
    place.xaxis.set_minor_locator(NullLocator())
    place.xaxis.set_minor_formatter(NullFormatter())
    place.set_xlim(0.9, frequencies[-1] * 1.1)


def _nothing(place: Any, why: str) -> None:
    place.set_axis_off()
    place.text(0.5, 0.5, why, ha="center", va="center", transform=place.transAxes)


def blur_plot(result: Result, path: Path) -> None:
    """What a blur takes away from pictures, and what it does to a metric of them."""
    detail, curve = result["detail"], result["blur"]
    with sheet(1, 2, size=(7.4, 3.2)) as (figure, (places,)):
        _detail_panel(places[0], detail)
        if curve is None:
            _nothing(places[1], result["left_out"].get("a metric of blurred pictures", ""))
        else:
            _curve_panel(places[1], curve)
        save(figure, path)


def _detail_panel(place: Any, detail: Mapping[str, Any]) -> None:
    wanted = "ratio" if detail["reference"] else "fraction"
    for number, (arm, found) in enumerate(detail["arms"].items()):
        value, low, high = (found[wanted][key] for key in ("value", "low", "high"))
        below = [v - a for v, a in zip(value, low, strict=True)]
        above = [b - v for v, b in zip(value, high, strict=True)]
        bars = {"yerr": [below, above], "capsize": 2, "elinewidth": 0.9}
        place.errorbar(detail["sigmas"], value, **bars, **_look(number), label=arm)
    title = "share of amplitude a blur removes"
    if wanted == "ratio":
        place.axhline(1, color=GREY, linewidth=0.8)
        title = f"{title}\ndivided by that of real pictures"
    place.set_xlabel("σ of the blur (pixels)")
    place.set_ylabel(title)
    place.set_xticks(detail["sigmas"])
    place.legend()


def _curve_panel(place: Any, curve: Mapping[str, Any]) -> None:
    """The metric itself, lowest points ringed; bars are of its change from the left end of each line."""
    for number, (arm, found) in enumerate(curve["arms"].items()):
        look = _look(number)
        for against, style in (("unblurred", "-"), ("blurred", "--")):
            if against not in found:
                continue
            name = arm if against == "unblurred" else f"{arm}, real ones blurred too"
            values, errors = found[against]["values"], found[against]["errors"]
            bars = {} if errors is None else {"yerr": [1.96 * e for e in errors], "elinewidth": 0.9}
            place.errorbar(curve["sigmas"], values, **bars, linestyle=style, **look, label=name)
            ring = {"markerfacecolor": "none", "markeredgecolor": "black", "markersize": 9}
            place.plot([found[against]["best"]], [min(values)], "o", **ring)
    if all(v > 0 for arm in curve["arms"].values() for found in arm.values() for v in found["values"]):
        place.set_yscale("log")
        for axis in (place.yaxis.set_major_formatter, place.yaxis.set_minor_formatter):
            axis("{x:g}")
    place.set_xlabel("σ of the blur (pixels)")
    place.set_ylabel(f"{curve['figure'].upper()} of blurred pictures")
    place.legend()


def residual_plot(result: Result, path: Path) -> None:
    """Energy of the semantic residual, how much of it is new, and entropies, step by step."""
    section = result["residual"]
    steps = [step["step"] for step in section["steps"]]
    panels = {
        "energy": "residual energy (per logit)",
        "share": "residual energy / logit energy",
        "new": "share above the Nyquist before",
        "entropy": "residual entropy (nats)",
    }
    with sheet(1, len(panels), size=(2.5 * len(panels), 2.9)) as (figure, (places,)):
        for place, (name, title) in zip(places, panels.items(), strict=True):
            for number, (arm, found) in enumerate(section["arms"].items()):
                look, values = _look(number), found[name]
                place.plot(steps, values["value"], **look, label=arm)
                _band(place, steps, values["low"], values["high"], look["color"])
            place.set_title(title, fontsize=9)
            place.set_xticks(steps)
            place.set_xlabel("step")
            place.set_ylim(0, None)
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        save(figure, path)


def saturation_plot(result: Result, path: Path) -> None:
    """Where more guidance changes nothing more: three curves against the strength, a line for every step.

    Dots are the strengths that were used.
    """
    from matplotlib import colormaps

    section = result["saturation"]
    panels = {
        "moved": "likeliest choice moved",
        "settled": "likeliest choice settled",
        "kl": "KL from unguided (nats)",
    }
    arms = section["arms"]
    size = (2.8 * len(panels) + 1.0, 2.4 * len(arms) + 0.4)
    with sheet(len(arms), len(panels), size=size, sharex=True, sharey="col") as (figure, places):
        for row, (arm, found) in zip(places, arms.items(), strict=True):
            for place, (name, title) in zip(row, panels.items(), strict=True):
                for i, step in enumerate(section["steps"]):
                    colour = colormaps[SEQUENTIAL](i / max(len(section["steps"]) - 1, 1))
                    label = f"step {step['step']}, {'×'.join(map(str, step['fine']))}"
                    place.plot(section["betas"], found[name][i], color=colour, label=label)
                    used = found["used"][name]["value"][i]
                    if found["beta"][i]:
                        place.plot([found["beta"][i]], [used], "o", color=colour, markeredgecolor="black")
                place.set_title(f"{title}, {arm}", fontsize=8.5)
                if name != "kl":
                    place.set_ylim(-0.03, 1.03)
                _strengths(place, section["betas"])
        for place in places[-1]:
            place.set_xlabel("strength β")
        figure.legend(*places[0][0].get_legend_handles_labels(), loc="outside right center")
        save(figure, path)


def _strengths(place: Any, betas: Sequence[float]) -> None:
    least = min(beta for beta in betas if beta > 0)
    place.set_xscale("symlog", base=2, linthresh=least)
    ticks = [0, *(beta for beta in betas if beta > 0)][::2]
    place.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    place.minorticks_off()
