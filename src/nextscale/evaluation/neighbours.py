"""Precision, recall, density and coverage from nearest neighbours, block by block.

No more than one block of distances is in memory at any time. Distances are float64, from features centred on
the reference's mean. Two of them that differ by no more than rounding can explain are taken as equal, so
neither the block size nor repeated images decide anything by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.rows import check_rows

BLOCK = 2048


@dataclass(frozen=True)
class ManifoldScores:
    """What the scores are means of, image by image, so that they can be resampled with the radii kept.

    precise: bool ``(N,)``, generated images inside of the reference's neighbourhoods.
    density: float64 ``(N,)``, neighbourhoods of the reference a generated image lies in, divided by k.
    recalled: bool ``(M,)``, reference images inside of the generated images' neighbourhoods.
    covered: bool ``(M,)``, reference images with a generated one in their neighbourhood.
    """

    precise: Tensor
    density_of: Tensor
    recalled: Tensor
    covered: Tensor

    @property
    def precision(self) -> float:
        return float(self.precise.double().mean())

    @property
    def recall(self) -> float:
        return float(self.recalled.double().mean())

    @property
    def density(self) -> float:
        return float(self.density_of.mean())

    @property
    def coverage(self) -> float:
        return float(self.covered.double().mean())


def manifold_scores(
    generated: Tensor,
    reference: Tensor,
    *,
    k: int = 3,
    density_k: int = 5,
    inclusive: bool = True,
    density_inclusive: bool = False,
    block: int = BLOCK,
) -> ManifoldScores:
    """Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    generated, reference: features ``(N, d)`` and ``(M, d)``, neither normalised nor whitened.
    k: which neighbour gives the radius for precision and recall; ``density_k`` for the other two.
    inclusive: whether a distance equal to the radius is inside. The ADM evaluator says yes for precision and
        recall; for density and coverage (``density_inclusive``) the usual definition says no.

    All four depend on N, M and k; they can be compared at equal ones only.
    Raises InvalidArgumentError for sets with fewer than k + 1 images, tensors of other shapes, and features
    that are NaN or infinite.
    """
    check_rows(generated, "generated features")
    check_rows(reference, "reference features")
    if generated.shape[1] != reference.shape[1]:
        raise InvalidArgumentError(
            f"features must be (N, d) and (M, d) with the same d, got {tuple(generated.shape)} and "
            f"{tuple(reference.shape)}"
        )
    centre = reference.double().mean(0)
    slack = max(_slack(x, centre, block) for x in (generated, reference))
    radius, dense = squared_radii(reference, (k, density_k), centre=centre, block=block)  # (M,) each
    (own,) = squared_radii(generated, (k,), centre=centre, block=block)  # (N,)
    # What is inside of a radius is decided up to rounding: equal distances are, or are not.
    inside = _Inside(slack, inclusive)
    inside_dense = _Inside(slack, density_inclusive)

    precise = torch.zeros(len(generated), dtype=torch.bool)
    counts = torch.zeros(len(generated), dtype=torch.float64)
    recalled, covered = (torch.zeros(len(reference), dtype=torch.bool) for _ in range(2))
    for i in range(0, len(generated), block):
        rows = slice(i, i + block)
        left = generated[rows].double() - centre
        for j in range(0, len(reference), block):
            columns = slice(j, j + block)
            distance = _squared_distances(left, reference[columns].double() - centre)  # (rows, columns)
            precise[rows] |= inside(distance, radius[columns]).any(1)
            recalled[columns] |= inside(distance, own[rows, None]).any(0)
            within = inside_dense(distance, dense[columns])
            counts[rows] += within.sum(1)
            covered[columns] |= within.any(0)
    return ManifoldScores(precise, counts / density_k, recalled, covered)


@dataclass(frozen=True)
class _Inside:
    slack: float
    inclusive: bool

    def __call__(self, distance: Tensor, radius: Tensor) -> Tensor:
        return distance <= radius + self.slack if self.inclusive else distance < radius - self.slack


def squared_radii(
    points: Tensor, ks: Sequence[int], *, centre: Tensor | None = None, block: int = BLOCK
) -> list[Tensor]:
    """Squared distance of every point to its k-th nearest other point, float64 ``(N,)`` for every k.

    A copy of a point is another point, at distance 0. centre: subtracted first; by default the mean.
    """
    check_rows(points)
    furthest = max(ks)
    if min(ks) < 1 or len(points) <= furthest:
        raise InvalidArgumentError(
            f"neighbour {furthest if min(ks) >= 1 else min(ks)} of {len(points)} images does not exist; more "
            f"images or a smaller k are needed"
        )
    centre = points.double().mean(0) if centre is None else centre
    _largest(points, centre, block)
    radii = torch.empty(furthest, len(points), dtype=torch.float64)
    for i in range(0, len(points), block):
        left = points[i : i + block].double() - centre
        nearest = torch.full((len(left), furthest), torch.inf, dtype=torch.float64)
        for j in range(0, len(points), block):
            distance = _squared_distances(left, points[j : j + block].double() - centre)
            if i == j:
                distance.fill_diagonal_(torch.inf)  # a point is not its own neighbour
            nearest = torch.cat([nearest, distance], 1).topk(furthest, largest=False).values
        radii[:, i : i + block] = nearest.T
    return [radii[k - 1] for k in ks]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """``|u|^2 - 2 u.v + |v|^2`` for all rows u of ``(n, d)`` and v of ``(m, d)``, at least 0: ``(n, m)``."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(squares, a, b.T, alpha=-2).clamp_(min=0)


def _slack(points: Tensor, centre: Tensor, block: int) -> float:
    """A bound on the rounding error of any squared distance: a sum of d products, four times over."""
    return 4 * points.shape[1] * torch.finfo(torch.float64).eps * _largest(points, centre, block)


def _largest(points: Tensor, centre: Tensor, block: int) -> float:
    """The largest squared distance from the centre. Raises InvalidArgumentError if that is too large."""
    largest = max(float((p.double() - centre).square().sum(1).max()) for p in points.split(block))
    if not math.isfinite(largest):
        raise InvalidArgumentError("the features are so large that distances are beyond float64; scale them")
    return largest
