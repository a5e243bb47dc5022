"""The bootstrap over images of statistics that are functions of means over images.

Every figure of a spectrum is one: a ring's amplitude is a mean over images, a ratio or a slope a function of
such means. So only the means have to be resampled, all of them with the same images, which keeps what is
paired paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.moments import Gaussian
from nextscale.evaluation.rows import check_finite

BLOCK = 1 << 24  # numbers of the table of counts that are in memory at once


@dataclass(frozen=True)
class Interval:
    """Values with their pivotal intervals, all of one shape."""

    value: Tensor
    low: Tensor
    high: Tensor

    def apply(self, function: Callable[[Tensor], Tensor]) -> Interval:
        """Of an increasing function of the values."""
        return Interval(function(self.value), function(self.low), function(self.high))

    def to_dict(self) -> dict[str, Any]:
        """``value``, ``low`` and ``high`` as numbers or nested lists."""
        return {name: getattr(self, name).tolist() for name in ("value", "low", "high")}


def resampled_means(rows: Tensor, replicates: int = 1000, *, seed: int = 0) -> Tensor:
    """Means of ``replicates`` resamples with replacement of the rows ``(N, ...)``: float64 ``(R, ...)``.

    Every entry of a row goes where its row goes, so columns from arms with the same seeds stay paired.
    The resamples depend on N and the seed alone. Raises InvalidArgumentError for fewer than 2 rows, and for
    rows that are NaN or infinite.
    """
    if len(rows) < 2 or replicates < 1:
        raise InvalidArgumentError(
            f"a bootstrap needs at least 2 rows and 1 replicate, got {len(rows)} and {replicates}"
        )
    check_finite(rows, "the rows")
    count, flat = len(rows), rows.flatten(1) if rows.ndim > 1 else rows[:, None]
    flat = flat.double()
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(replicates, flat.shape[1], dtype=torch.float64)
    step = max(1, BLOCK // count)
    for start in range(0, replicates, step):
        drawn = torch.randint(count, (min(step, replicates - start), count), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        means[start : start + len(drawn)] = times @ flat / count
    return means.view(replicates, *rows.shape[1:])


def gaussian_means(gaussian: Gaussian, replicates: int = 1000, *, seed: int = 0) -> Tensor:
    """The same from mean and covariance of the rows, where the rows themselves are not at hand: ``(R, d)``.

    The mean of many images is Gaussian with the covariance divided by their number, whatever one image is.
    """
    if gaussian.count is None:
        raise InvalidArgumentError("how many images a mean is of must be known for its interval")
    noise = torch.randn(
        replicates,
        len(gaussian.mean),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    return gaussian.mean + noise @ gaussian.root / math.sqrt(gaussian.count)


@dataclass(frozen=True)
class Profiles:
    """One row of statistics per picture, or mean and covariance of such rows where they are not at hand."""

    rows: Tensor | None = None
    gaussian: Gaussian | None = None

    @property
    def mean(self) -> Tensor:
        """float64 ``(d,)``."""
        return self.rows.double().mean(0) if self.rows is not None else self._gaussian.mean

    @property
    def count(self) -> int:
        return len(self.rows) if self.rows is not None else int(self._gaussian.count or 0)

    def means(self, replicates: int, seed: int) -> Tensor:
        """Resampled means, ``(R, d)``."""
        if self.rows is not None:
            return resampled_means(self.rows, replicates, seed=seed)
        return gaussian_means(self._gaussian, replicates, seed=seed)

    @property
    def _gaussian(self) -> Gaussian:
        if self.gaussian is None:
            raise InvalidArgumentError("profiles are rows, or mean and covariance of rows; these are neither")
        return self.gaussian


def pivotal(value: Tensor, resampled: Tensor, level: float = 0.95) -> Interval:
    """``[2 value - q_high, 2 value - q_low]`` with the quantiles of ``resampled`` ``(R, ...)``."""
    if not 0 < level < 1:
        raise InvalidArgumentError(f"level must be between 0 and 1, got {level}")
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    below, above = resampled.double().quantile(edges, dim=0)
    value = value.double()
    return Interval(value, 2 * value - above, 2 * value - below)
