"""Draws docs/figures/dse_frequency.png: what the priors, and SSG with them, do to each spatial frequency.

Run from the repository root: python docs/figures/dse_frequency.py
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from nextscale.guidance import prior_operator

COARSE, FINE, BETA = 8, 16, 0.6
BLUE, RED, GREEN, GREY = "#1f5fa8", "#c0392b", "#2e8b57", "#888888"


def waves(size: int) -> Tensor:
    """The cosine waves of `size` cells with amplitude 1, one per column."""
    cells = torch.arange(size, dtype=torch.float64).unsqueeze(1)
    frequencies = torch.arange(size, dtype=torch.float64)
    return torch.cos(math.pi * (cells + 0.5) * frequencies / size)


def transfer(kind: str, norm: str = "forward") -> Tensor:
    """Amplitudes (frequency out, frequency in) of horizontal waves that pass through a prior."""
    matrix = prior_operator((COARSE, COARSE), (FINE, FINE), kind, norm=norm, dtype=torch.float64)
    coarse_maps = waves(COARSE).expand(COARSE, -1, -1).reshape(COARSE * COARSE, COARSE)
    rows = (
        (matrix @ coarse_maps).reshape(FINE, FINE, COARSE).mean(0)
    )  # constant over rows: the mean is each row
    return torch.linalg.solve(waves(FINE), rows)


def draw_transfer(axes: Axes, amplitudes: Tensor, title: str) -> None:
    image = axes.imshow(amplitudes.abs(), origin="lower", cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.axhline(COARSE - 0.5, color=RED, linewidth=1, linestyle="--")
    for frequency in range(COARSE):
        for row in (frequency, 2 * COARSE - frequency):
            if row < FINE and (row == frequency or amplitudes[row, frequency].abs() > 0.05):
                value = float(amplitudes[row, frequency])
                color = "white" if abs(value) > 0.6 else "black"
                axes.text(frequency, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=color)
    axes.set(title=title, xlabel="frequency in the coarse map", ylabel="frequency in the prior")
    axes.set_xticks(range(COARSE))
    axes.set_yticks(range(0, FINE, 2))
    axes.figure.colorbar(image, ax=axes, label="amplitude")


def draw_gain(axes: Axes) -> None:
    low, high = range(COARSE), range(COARSE, FINE)
    lines = [
        ("bilinear", "forward", "bilinear", GREY, ":"),
        ("dse", "forward", 'dse, "forward"', BLUE, "-"),
        ("dse", "ortho", 'dse, "ortho"', GREEN, "-"),
        ("dse", "backward", 'dse, "backward"', RED, "-"),
    ]
    for kind, norm, label, color, style in lines:
        kept = torch.diagonal(transfer(kind, norm))
        axes.plot(low, 1 + BETA - BETA * kept, style, color=color, marker="o", markersize=3, label=label)
    axes.plot(
        high, [1 + BETA] * len(high), "-", color="black", marker="o", markersize=3, label="new, all priors"
    )
    axes.axvline(COARSE - 0.5, color=RED, linewidth=1, linestyle="--")
    axes.axhline(1.0, color=GREY, linewidth=0.8)
    axes.set(
        title=f"SSG: gain per frequency, β = {BETA}",
        xlabel="frequency in the fine map",
        ylabel="gain where a step repeats the coarse map",
        ylim=(0.9, 1.0 + BETA + 0.1),
    )
    axes.set_xticks(range(0, FINE, 2))
    axes.legend(fontsize=8, loc="center right")


def main() -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    draw_transfer(left, transfer("bilinear"), f"bilinear, {COARSE}x{COARSE} → {FINE}x{FINE}")
    draw_transfer(middle, transfer("dse"), 'dse, norm "forward"')
    draw_gain(right)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
