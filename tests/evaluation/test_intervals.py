"""Paired differences: coverage by simulation, pairing, seed sets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.intervals import paired_difference
from nextscale.evaluation.metrics import frechet_distance
from nextscale.evaluation.moments import Gaussian, Moments


def test_the_interval_contains_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for trial in range(200):
        shared = torch.randn(150, generator=generator)
        a = shared + 0.3 + 0.2 * torch.randn(150, generator=generator)
        b = shared + 0.2 * torch.randn(150, generator=generator)
        found = paired_difference(a, b, replicates=200, seed=trial)
        inside += found.low <= 0.3 <= found.high
    assert 178 <= inside <= 199  # 95 % of 200 is 190, and its standard deviation 3


def test_pairing_makes_the_interval_narrow():
    generator = torch.Generator().manual_seed(1)
    b = torch.randn(400, generator=generator)
    a = b + 0.05 + 0.01 * torch.randn(400, generator=generator)
    paired = paired_difference(a, b)
    unpaired = paired_difference(a[torch.randperm(400, generator=generator)], b)
    assert not paired.contains_zero and unpaired.contains_zero
    assert paired.value == pytest.approx(unpaired.value)
    assert (paired.high - paired.low) < 0.1 * (unpaired.high - unpaired.low)


def test_equal_arms_differ_by_nothing():
    rows = torch.rand(50, 3)
    found = paired_difference(rows, rows.clone(), replicates=20)
    assert (found.value, found.low, found.high, found.contains_zero, found.same_sign) == (
        0,
        0,
        0,
        True,
        False,
    )


def test_seed_sets_are_averaged_and_shown():
    a = [torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0, 5.0])]
    b = [torch.tensor([0.0, 1.0]), torch.tensor([4.0, 2.0, 3.0])]
    found = paired_difference(a, b, replicates=50)
    assert found.per_set == (1.0, 2.0) and found.value == 1.5 and found.same_sign
    assert found.low <= 1.5 <= found.high
    again = paired_difference(a, b, replicates=50)
    assert again == found != paired_difference(a, b, replicates=50, seed=1)


def test_frechet_distances_of_a_pair():
    generator = torch.Generator().manual_seed(2)
    reference = Gaussian(torch.zeros(6), torch.eye(6))

    def distance(rows: Tensor) -> float:
        return frechet_distance(Moments.of(rows).gaussian(), reference).value

    b = 1.1 * torch.randn(800, 6, generator=generator)
    worse = paired_difference(1.2 * b, b, distance, replicates=100)
    assert worse.low > 0 and worse.value == pytest.approx(distance(1.2 * b) - distance(b))
    same = paired_difference(
        b + 0.001 * torch.randn(800, 6, generator=generator), b, distance, replicates=100
    )
    assert same.contains_zero


def test_arms_that_do_not_belong_together():
    a = torch.zeros(5)
    for other in (torch.zeros(4), [a, a], []):
        with pytest.raises(InvalidArgumentError, match="the same seed sets with the same images"):
            paired_difference(a, other)
    with pytest.raises(InvalidArgumentError, match="level must be between 0 and 1"):
        paired_difference(a, a, level=95)
