"""Intervals for the difference of two arms drawn from the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.rows import check_finite

Statistic = Callable[[Tensor], float]


@dataclass(frozen=True)
class Difference:
    """A figure of arm A minus that of arm B.

    value: the mean over the seed sets. per_set: of each seed set alone.
    low, high: the interval at ``level``, from ``replicates`` resamples.
    """

    value: float
    low: float
    high: float
    level: float
    replicates: int
    per_set: tuple[float, ...]

    @property
    def contains_zero(self) -> bool:
        """Whether no difference at all is within the interval."""
        return self.low <= 0 <= self.high

    @property
    def same_sign(self) -> bool:
        """Whether all seed sets agree on which arm is larger."""
        return all(d > 0 for d in self.per_set) or all(d < 0 for d in self.per_set)


def mean(rows: Tensor) -> float:
    """The mean of all values: the statistic of accuracy, precision, recall, density and coverage."""
    return float(rows.double().mean())


def paired_difference(
    a: Tensor | Sequence[Tensor],
    b: Tensor | Sequence[Tensor],
    statistic: Statistic = mean,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """``statistic(a) - statistic(b)`` with a pivotal bootstrap interval over the pairs.

    a, b: values or features ``(N, ...)``, row i of both from the same class and seed; or a list of such
        tensors, one per seed set.
    statistic: rows to a number; called twice per replicate and seed set.

    Pairs are resampled together, within each seed set, and the interval is ``[2 D - q_high, 2 D - q_low]``.
    For Fréchet distances the bias of resampling cancels only in part in the difference, so a small one is
    evidence only if the extrapolated distance or the kernel distance agrees, in all of at least three sets.

    Raises InvalidArgumentError for arms that do not belong together, and where rows, or what the statistic
    makes of them, are NaN or infinite.
    """
    arms = [[x] if isinstance(x, Tensor) else list(x) for x in (a, b)]
    lengths = [[len(x) for x in arm] for arm in arms]
    if lengths[0] != lengths[1] or not lengths[0] or min(lengths[0]) < 2:
        raise InvalidArgumentError(
            f"the arms need the same seed sets with the same images, at least 2 each; got {lengths[0]} and "
            f"{lengths[1]}"
        )
    if not 0 < level < 1 or replicates < 10:
        raise InvalidArgumentError(
            f"level must be between 0 and 1 and replicates at least 10, got {level} and {replicates}"
        )
    for name, arm in zip("ab", arms, strict=True):
        for rows in arm:
            check_finite(rows, f"the rows of arm {name}")
    pairs = list(zip(*arms, strict=True))
    per_set = tuple(statistic(x) - statistic(y) for x, y in pairs)
    value = sum(per_set) / len(per_set)
    generator = torch.Generator().manual_seed(seed)
    resampled = torch.tensor(
        [_resampled(pairs, statistic, generator) for _ in range(replicates)], dtype=torch.float64
    )
    check_finite(torch.tensor(per_set, dtype=torch.float64), "differences of the statistic")
    check_finite(resampled, "differences of the statistic in resamples")
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    below, above = resampled.quantile(edges).tolist()
    return Difference(value, 2 * value - above, 2 * value - below, level, replicates, per_set)


def _resampled(
    pairs: Sequence[tuple[Tensor, Tensor]], statistic: Statistic, generator: torch.Generator
) -> float:
    total = 0.0
    for x, y in pairs:
        rows = torch.randint(len(x), (len(x),), generator=generator)
        total += statistic(x[rows]) - statistic(y[rows])
    return total / len(pairs)
