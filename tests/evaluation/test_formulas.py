"""Formulas of intervals and errors, against their definitions written out again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextscale.evaluation.intervals import paired_difference
from nextscale.evaluation.metrics import frechet_distance, frechet_error
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.resampling import pivotal
from nextscale.evaluation.spectra import nyquist


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def growth(rows: Tensor) -> float:
    """A statistic whose resamples lean to the right."""
    return math.exp(4 * float(rows.double().mean()))


@pytest.mark.parametrize("seed", range(5))
def test_intervals_are_pivotal(seed: int):
    """Resamples reach further up than down, so the truth may be further down than up."""
    a, b = normal(30, seed=seed), torch.zeros(30)
    found = paired_difference(a, b, growth, replicates=400, seed=seed)
    down, up = found.value - found.low, found.high - found.value
    assert down > 1.3 * up > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_written_out(seed: int, level: float):
    sets = [(normal(20, seed=seed + 10 * i), normal(20, seed=seed + 10 * i + 5)) for i in range(2)]
    found = paired_difference(
        [a for a, _ in sets], [b for _, b in sets], growth, replicates=100, level=level, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    resampled = []
    for _ in range(100):
        total = 0.0
        for a, b in sets:
            rows = torch.randint(20, (20,), generator=generator)
            total += growth(a[rows]) - growth(b[rows])
        resampled.append(total / 2)
    resampled.sort()

    def quantile(share: float) -> float:
        place = share * 99
        below = math.floor(place)
        return resampled[below] + (place - below) * (resampled[min(below + 1, 99)] - resampled[below])

    value = sum(growth(a) - growth(b) for a, b in sets) / 2
    assert found.value == pytest.approx(value)
    assert found.low == pytest.approx(2 * value - quantile((1 + level) / 2))
    assert found.high == pytest.approx(2 * value - quantile((1 - level) / 2))


def test_the_other_pivotal_interval():
    value, resampled = torch.tensor([1.0]), torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    found = pivotal(value, resampled, 0.5)  # quartiles 1 and 3
    assert (found.low.item(), found.high.item()) == (-1.0, 1.0)


@pytest.mark.parametrize("groups", [2, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_the_jackknife_written_out(groups: int, seed: int):
    """``sqrt((G - 1) / G * sum (d_i - mean d)^2)`` of the distances without each group."""
    reference = Gaussian(torch.zeros(4), torch.eye(4))
    parts = normal(60, 4, seed=seed).mul(1.1).tensor_split(groups)
    without = []
    for i in range(groups):
        rest = torch.cat([p for j, p in enumerate(parts) if j != i])
        without.append(frechet_distance(Moments.of(rest).gaussian(), reference).value)
    mean = sum(without) / groups
    wanted = math.sqrt((groups - 1) / groups * sum((d - mean) ** 2 for d in without))
    assert frechet_error([Moments.of(p) for p in parts], reference) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("grid", "final", "wanted"),
    [
        ((8, 8), (16, 16), 4.0),
        ((16, 16), (16, 16), 8.0),
        ((4, 16), (16, 16), 2.0),  # held along one axis alone
        ((2, 6), (8, 12), 1.0),
        ((6, 2), (12, 8), 1.0),
        ((3, 8), (4, 12), 2 * 2 / 3),
    ],
)
def test_what_a_grid_can_hold(grid: tuple[int, int], final: tuple[int, int], wanted: float):
    """Of both axes the one that holds less, in cycles of the shorter side of the final grid."""
    assert nyquist(grid, final) == pytest.approx(wanted)
    assert nyquist(grid[::-1], final[::-1]) == pytest.approx(wanted)
