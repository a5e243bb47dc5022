"""Mean and covariance of features, in one pass and without keeping them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.rows import check_rows

ASYMMETRY = 1e-5  # of a covariance, as a share of the largest variance, that rounding explains


@dataclass(frozen=True)
class Gaussian:
    """What a Fréchet distance needs to know of a set of features.

    mean: float64 ``(d,)``. covariance: float64 ``(d, d)``, denominator ``count - 1``, symmetric up to
    rounding.
    count: how many rows they are from; ``None`` where a file does not say.

    Raises InvalidArgumentError for other shapes, and numbers that are no mean and covariance: NaN, infinite,
    not symmetric, or with negative variances. That no other direction has a negative variance is found out by
    :attr:`root`.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != (len(self.mean),) * 2:
            raise InvalidArgumentError(
                f"a mean (d,) and a covariance (d, d) are needed, got {tuple(self.mean.shape)} and "
                f"{tuple(self.covariance.shape)}"
            )
        object.__setattr__(self, "mean", self.mean.double())
        object.__setattr__(self, "covariance", self.covariance.double())
        for name, values in (("mean", self.mean), ("covariance", self.covariance)):
            bad = int(values.isfinite().logical_not().sum())
            if bad:
                raise InvalidArgumentError(f"the {name} has {bad} numbers that are NaN or infinite")
        self._check_symmetry()
        _check_variances(self.covariance.diagonal())

    def _check_symmetry(self) -> None:
        covariance, block = self.covariance, 1024  # rows at once, to need no second matrix
        least = ASYMMETRY * float(covariance.diagonal().abs().amax()) if len(covariance) else 0.0
        for start in range(0, len(covariance), block):
            rows = slice(start, start + block)
            apart = (covariance[rows] - covariance[:, rows].T).abs()
            if float(apart.max()) > least:
                i, j = divmod(int(apart.argmax()), len(covariance))
                i += start
                raise InvalidArgumentError(
                    f"the covariance is not symmetric: ({i}, {j}) is {float(covariance[i, j]):g} and "
                    f"({j}, {i}) is {float(covariance[j, i]):g}"
                )

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance; eigenvalues that rounding made negative count as 0.

        Raises InvalidArgumentError for eigenvalues that are negative beyond that.
        """
        values, vectors = torch.linalg.eigh(self.covariance)
        _check_variances(values)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _check_variances(values: Tensor) -> None:
    """Raises InvalidArgumentError if variances ``(d,)`` are more negative than rounding makes them.

    Rounding in float32, in which many programs compute: d times its epsilon times the largest value.
    """
    if len(values) == 0:
        return
    least, most = float(values.min()), float(values.abs().max())
    if least < -len(values) * torch.finfo(torch.float32).eps * most:
        raise InvalidArgumentError(
            f"the covariance is none: it has the negative variance {least:g}, where the largest is {most:g}"
        )


class Moments:
    """Running count, mean and scatter ``sum (x - mean)(x - mean)^T``, in float64.

    Parts can be merged in any order; the outcome differs by rounding alone (Chan, Golub and LeVeque 1979).
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.scatter = torch.zeros(size, size, dtype=torch.float64)

    @classmethod
    def of(cls, rows: Tensor, *, block: int = 4096) -> Moments:
        """Compute moments of all rows of ``(N, d)``; at most ``block`` of them are in float64 at once.

        Raises InvalidArgumentError for tensors of other shapes, and for NaN or infinite features.
        """
        check_rows(rows)
        moments = cls(rows.shape[1])
        for part in rows.split(block):
            moments.update(part)
        return moments

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """The moments of all parts together; there must be at least one."""
        first, *others = parts
        total = cls(len(first.mean))
        for part in (first, *others):
            total.merge(part)
        return total

    def update(self, rows: Tensor) -> None:
        """Add rows ``(B, d)`` of any float type. Raises what :meth:`of` raises."""
        if rows.ndim and len(rows) == 0:
            return
        check_rows(rows)
        rows = rows.double().cpu()
        part = Moments(0)
        part.count, part.mean = len(rows), rows.mean(0)
        centred = rows - part.mean
        part.scatter = centred.T @ centred
        self.merge(part)

    def merge(self, other: Moments) -> None:
        """Add what another one has seen."""
        if other.mean.shape != self.mean.shape:
            raise InvalidArgumentError(
                f"features of {len(other.mean)} and {len(self.mean)} dimensions cannot be merged"
            )
        if other.count == 0:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter.addr_(delta, delta, alpha=self.count * other.count / total)
        self.mean += delta * (other.count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Raises InvalidArgumentError for fewer than two rows."""
        if self.count < 2:
            raise InvalidArgumentError(f"a covariance needs at least 2 images, got {self.count}")
        return Gaussian(self.mean.clone(), self.scatter / (self.count - 1), self.count)
