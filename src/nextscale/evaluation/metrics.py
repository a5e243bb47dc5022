"""Figures from features: Fréchet distance, kernel distance, Inception Score.

Features are tensors ``(N, d)`` of any float type; everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.rows import check_rows

ADM_BLOCK = 5000  # rows per block of the Inception Score in the ADM evaluator


@dataclass(frozen=True)
class FrechetDistance:
    """The distance and its two parts: ``|mu1 - mu2|^2`` and ``tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)``."""

    mean_term: float
    covariance_term: float

    @property
    def value(self) -> float:
        """Not clipped: equal sets give about -1e-12, and that says how exact the figure is."""
        return self.mean_term + self.covariance_term


def frechet_distance(generated: Gaussian, reference: Gaussian) -> FrechetDistance:
    """Fréchet distance of two Gaussians (Heusel et al. 2017): FID, sFID or FD, depending on the features.

    The trace of the root is the sum of the roots of the eigenvalues of ``R S2 R`` with ``R = S1^(1/2)``, a
    symmetric problem: no complex numbers, and no trouble with fewer images than dimensions. ``R`` is kept
    with the reference.

    Raises InvalidArgumentError for Gaussians of different spaces, and covariances that are none.
    """
    if generated.mean.shape != reference.mean.shape:
        raise InvalidArgumentError(
            f"the features have {len(generated.mean)} and {len(reference.mean)} dimensions; both sets must "
            f"come from the same feature space"
        )
    if generated.count is None:  # not of counted pictures, whose covariance could not be wrong
        _ = generated.root
    product = reference.root @ generated.covariance @ reference.root
    values = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0)
    traces = generated.covariance.trace() + reference.covariance.trace()
    return FrechetDistance(
        mean_term=float((generated.mean - reference.mean).square().sum()),
        covariance_term=float(traces - 2 * values.sqrt().sum()),
    )


def frechet_error(groups: Sequence[Moments], reference: Gaussian) -> float:
    """Standard error of a Fréchet distance by the delete-a-group jackknife.

    groups: moments of disjoint random groups of the generated images. (A bootstrap would be biased: every
    resample behaves like a smaller set.)
    """
    if len(groups) < 2:
        raise InvalidArgumentError(f"a jackknife needs at least 2 groups, got {len(groups)}")
    without = [
        frechet_distance(Moments.merged([*groups[:i], *groups[i + 1 :]]).gaussian(), reference).value
        for i in range(len(groups))
    ]
    return math.sqrt((len(groups) - 1) * float(np.var(without)))


@dataclass(frozen=True)
class Extrapolation:
    """A straight line through figures against ``1 / N``: its value at infinite N, and its slope."""

    intercept: float
    slope: float
    sizes: tuple[int, ...]
    values: tuple[float, ...]


def frechet_infinity(
    features: Tensor, reference: Gaussian, sizes: Sequence[int], permutation: Tensor
) -> Extrapolation:
    """The Fréchet distance that infinitely many images would have (Chong and Forsyth 2020).

    sizes: increasing; for each, the distance of the first so many permuted rows is computed.
    permutation: int64 ``(N,)``.
    """
    check_rows(features)
    ordered = list(sizes)
    if (
        len(set(ordered)) < 2
        or ordered != sorted(ordered)
        or not 2 <= ordered[0] <= ordered[-1] <= len(features)
    ):
        raise InvalidArgumentError(
            f"sizes must be increasing, from 2 to the {len(features)} images there are; got {ordered}"
        )
    moments, values, done = Moments(features.shape[1]), [], 0
    for size in ordered:
        moments.update(features[permutation[done:size]])
        values.append(frechet_distance(moments.gaussian(), reference).value)
        done = size
    slope, intercept = np.polyfit(1 / np.asarray(ordered, dtype=np.float64), values, 1)
    return Extrapolation(float(intercept), float(slope), tuple(ordered), tuple(values))


# ---------------------------------------------------------------------------- kernel distance (KID)


def kernel_distance(generated: Tensor, reference: Tensor, *, block: int = 2048) -> float:
    """KID (Binkowski et al. 2018): the unbiased squared MMD under ``(x . y / d + 1)^3``, from all pairs.

    It can be slightly negative. It depends on the scale of the features: the kernel is made for entries of
    the order of one. Kernel values are summed in blocks of ``block`` rows.
    """
    _check_pair(generated, reference, 2)
    within = [
        _kernel_sum(x, x, block, diagonal=False) / (len(x) * (len(x) - 1)) for x in (generated, reference)
    ]
    between = _kernel_sum(generated, reference, block) / (len(generated) * len(reference))
    value = sum(within) - 2 * between
    if not math.isfinite(value):
        raise InvalidArgumentError(
            "the features are so large that their kernel is beyond float64; scale them"
        )
    return value


def kernel_distance_subsets(
    generated: Tensor, reference: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> Tensor:
    """KID of random subsets, float64 ``(subsets,)``; what is usually published is their mean.

    The subsets are those of torch-fidelity: numpy's ``RandomState(seed)``, for each first ``size`` rows of
    the generated images without replacement, then of the reference. They overlap, so their standard deviation
    is not the standard error of the mean.
    """
    _check_pair(generated, reference, 2)
    if subsets < 1 or not 2 <= size <= min(len(generated), len(reference)):
        raise InvalidArgumentError(
            f"{subsets} subsets of {size} images cannot be drawn from {len(generated)} generated and "
            f"{len(reference)} reference images"
        )
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        rows = [torch.from_numpy(random.choice(len(x), size, replace=False)) for x in (generated, reference)]
        values.append(kernel_distance(generated[rows[0]], reference[rows[1]]))
    return torch.tensor(values, dtype=torch.float64)


def _kernel_sum(x: Tensor, y: Tensor, block: int, *, diagonal: bool = True) -> float:
    total = 0.0
    for i, a in enumerate(x.split(block)):
        for j, b in enumerate(y.split(block)):
            kernel = (a.double() @ b.double().T / x.shape[1] + 1) ** 3  # (block, block)
            total += float(kernel.sum())
            if not diagonal and i == j:
                total -= float(kernel.trace())
    return total


def _check_pair(generated: Tensor, reference: Tensor, least: int) -> None:
    check_rows(generated, "generated features")
    check_rows(reference, "reference features")
    shapes = f"{tuple(generated.shape)} and {tuple(reference.shape)}"
    if generated.shape[1] != reference.shape[1]:
        raise InvalidArgumentError(f"features must be (N, d) and (M, d) with the same d, got {shapes}")
    if min(len(generated), len(reference)) < least:
        raise InvalidArgumentError(f"at least {least} images a side are needed, got {shapes}")


# ---------------------------------------------------------------------------- Inception Score


@dataclass(frozen=True)
class InceptionScore:
    """The score of every block of rows; the mean over blocks is what is published."""

    per_block: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.per_block))

    @property
    def std(self) -> float:
        """Over the blocks, with denominator N."""
        return float(np.std(self.per_block))


def inception_score(
    logits: Tensor, *, block: int | None = ADM_BLOCK, splits: int | None = None, seed: int | None = None
) -> InceptionScore:
    """``exp(E_x KL(p(y|x) || p(y)))`` per block of rows (Salimans et al. 2016).

    logits: ``(N, C)``; for the published figure those of Inception without bias.
    block: rows per block, as in the ADM evaluator, a shorter last one counting as much; ``None`` is one.
    splits: instead, so many blocks with edges ``floor(i N / splits)``, as in torch-fidelity.
    seed: shuffle the rows first. Rows sorted by class give a score far too low otherwise, because every block
        holds few classes.
    """
    if logits.ndim != 2 or len(logits) == 0:
        raise InvalidArgumentError(f"logits must be (N, C) with at least one row, got {tuple(logits.shape)}")
    check_rows(logits, "logits")
    if seed is not None:
        logits = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))]
    return InceptionScore(tuple(_score(logits[rows]) for rows in _blocks(len(logits), block, splits)))


def _blocks(count: int, block: int | None, splits: int | None) -> Iterator[slice]:
    if splits is not None:
        if not 1 <= splits <= count:
            raise InvalidArgumentError(f"{count} rows cannot be split into {splits} blocks")
        yield from (slice(i * count // splits, (i + 1) * count // splits) for i in range(splits))
        return
    size = count if block is None else block
    if size < 1:
        raise InvalidArgumentError(f"a block has at least one row, got {block}")
    yield from (slice(i, i + size) for i in range(0, count, size))


def _score(logits: Tensor) -> float:
    log_p = logits.double().log_softmax(1)  # finite where a float32 probability would underflow to 0
    p = log_p.exp()
    marginal = p.mean(0)
    return math.exp(float(torch.special.entr(marginal).sum() + (p * log_p).sum(1).mean()))
