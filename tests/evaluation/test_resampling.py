"""Resampled means: pairing, coverage, and the same from mean and covariance alone."""

from __future__ import annotations

import math

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation import resampling
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.resampling import Interval, Profiles, gaussian_means, pivotal, resampled_means


def test_columns_are_resampled_together(monkeypatch: pytest.MonkeyPatch):
    rows = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0))
    means = resampled_means(rows, 60)
    assert means.shape == (60, 2, 3) and means.dtype == torch.float64
    torch.testing.assert_close(resampled_means(3 * rows, 60), 3 * means)
    torch.testing.assert_close(resampled_means(rows[:, 1, 2], 60), means[:, 1, 2])
    assert not torch.equal(means, resampled_means(rows, 60, seed=1))
    monkeypatch.setattr(resampling, "BLOCK", 400)  # ten replicates at once
    torch.testing.assert_close(resampled_means(rows, 60), means)


def test_their_spread_is_that_of_a_mean():
    rows = torch.randn(500, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    means = resampled_means(rows, 2000)
    assert float(means.std()) == pytest.approx(float(rows.std()) / math.sqrt(500), rel=0.07)
    assert float(means.mean()) == pytest.approx(float(rows.mean()), abs=0.005)


def test_mean_and_covariance_are_enough():
    mixing = torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = torch.rand(400, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) @ mixing
    known = Profiles(rows)
    told = Profiles(gaussian=Moments.of(rows).gaussian())
    assert known.count == told.count == 400
    torch.testing.assert_close(known.mean, told.mean)
    a, b = (p.means(4000, seed=0).T for p in (known, told))
    # The covariance of 4000 draws errs by 3 % of the variances; entries between columns may be near 0.
    torch.testing.assert_close(a.cov(), b.cov(), rtol=0, atol=0.1 * float(a.var(1).max()))


def test_the_pivotal_interval_contains_the_truth():
    generator = torch.Generator().manual_seed(4)
    inside = torch.zeros(2)
    for trial in range(150):
        rows = torch.stack([torch.rand(50, generator=generator), torch.randn(50, generator=generator)], 1)
        found = pivotal(rows.mean(0), resampled_means(rows, 200, seed=trial))
        inside += (found.low <= torch.tensor([0.5, 0.0])) & (torch.tensor([0.5, 0.0]) <= found.high)
    assert ((inside >= 132) & (inside <= 149)).all()  # 95 % of 150 is 142.5, and its standard deviation 2.7


def test_intervals_in_other_units():
    found = Interval(torch.zeros(1), torch.tensor([-1.0]), torch.tensor([2.0])).apply(torch.exp)
    assert found.to_dict()["value"] == [1.0] and found.to_dict()["high"] == pytest.approx([math.e**2])


def test_what_cannot_be_resampled():
    with pytest.raises(InvalidArgumentError, match="at least 2 rows"):
        resampled_means(torch.zeros(1, 3))
    with pytest.raises(InvalidArgumentError, match="how many images"):
        gaussian_means(Gaussian(torch.zeros(2), torch.eye(2)))
    with pytest.raises(InvalidArgumentError, match="level must be between 0 and 1"):
        pivotal(torch.zeros(1), torch.zeros(10, 1), level=95)
    with pytest.raises(InvalidArgumentError, match="these are neither"):
        _ = Profiles().mean
