"""Sensitivity to Gaussian blur: how much detail pictures have, and whether a metric likes it.

The kernel is ``g(t) ~ exp(-t^2 / (2 sigma^2))`` for ``|t| <= floor(4 sigma + 1/2)`` with sum 1, over rows and
over columns; borders are continued by ``d c b a | a b c d | d c b a`` (SciPy's ``reflect``, not torch's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.images import Images
from nextscale.evaluation.metrics import frechet_distance
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.rows import check_finite

DETAIL_SIGMAS = (0.5, 1.0, 2.0)
"""Of the detail fraction, in pixels."""
METRIC_SIGMAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Of the curve of a metric; 0, the pictures as they are, comes first."""


def gaussian_kernel(sigma: float) -> Tensor:
    """Taps from ``-r`` to ``r`` with ``r = floor(4 sigma + 1/2)``: float64 ``(2 r + 1,)``, sum 1.

    sigma: in pixels. Raises InvalidArgumentError unless it is a number of at least 0; 0 is no blur.
    """
    if not 0 <= sigma < math.inf:
        raise InvalidArgumentError(f"sigma is a number of pixels, at least 0; got {sigma}")
    radius = math.floor(4 * sigma + 0.5)
    if radius == 0:
        return torch.ones(1, dtype=torch.float64)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = (-taps.square() / (2 * sigma * sigma)).exp()
    return weights / weights.sum()


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blurred pictures ``(..., H, W)``, float64, in the range of the given ones and not rounded."""
    h, w = images.shape[-2:]
    return _along(h, sigma) @ images.double().cpu() @ _along(w, sigma).T


@lru_cache(maxsize=64)
def _along(size: int, sigma: float) -> Tensor:
    """The blur along one axis as a matrix ``(size, size)``."""
    weights = gaussian_kernel(sigma)
    radius = len(weights) // 2
    cells = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)  # (size, taps)
    cells = cells % (2 * size)  # the continuation repeats itself after there and back
    source = torch.where(cells < size, cells, 2 * size - 1 - cells)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, source, weights.expand(size, -1).contiguous())


def detail_fraction(images: Tensor, sigma: float) -> Tensor:
    """``|x - G x| / |x - mean(x)|`` of every picture: the share of its amplitude that a blur takes away.

    images: uint8 or float ``(B, C, H, W)``. The mean is that of each channel, the norms are over all of them.
    Returns float64 ``(B,)``; 0 for a picture of one colour.
    """
    check_finite(images, "pictures")
    pixels = images.double().cpu()
    lost = (pixels - gaussian_blur(pixels, sigma)).square().sum((1, 2, 3))
    whole = (pixels - pixels.mean((2, 3), keepdim=True)).square().sum((1, 2, 3))
    return torch.where(whole > 0, lost / whole.clamp(min=torch.finfo(torch.float64).tiny), 0.0).sqrt()


def detail_fractions(images: Tensor) -> Tensor:
    """:func:`detail_fraction` at :data:`DETAIL_SIGMAS`, a column each: float64 ``(B, 3)``."""
    return torch.stack([detail_fraction(images, sigma) for sigma in DETAIL_SIGMAS], 1)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """uint8 pictures ``(B, 3, H, W)`` blurred, and rounded to 8 bit as networks are given them."""
    if sigma == 0:
        return images
    return (gaussian_blur(images, sigma) + 0.5).floor().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class BlurredImages:
    """Pictures that are blurred when they are read."""

    images: Images
    sigma: float

    @property
    def size(self) -> tuple[int, int]:
        return self.images.size

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Tensor:
        return blurred(self.images.read(start, stop), self.sigma)


# ---------------------------------------------------------------------------- a metric of blurred pictures


@dataclass(frozen=True)
class BlurCurve:
    """A Fréchet distance of blurred pictures, against the same reference at every sigma.

    sigmas: pixels, 0 first. values: the distance. changes: minus that at sigma 0, which says how pictures
        would score if they had less detail. errors: standard errors of the changes by the delete-a-group
        jackknife; ``None`` with fewer pictures than dimensions, where they would mislead.
    """

    sigmas: tuple[float, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...] | None

    @property
    def changes(self) -> tuple[float, ...]:
        return tuple(v - self.values[0] for v in self.values)

    @property
    def best(self) -> float:
        """The sigma of the lowest value. Above 0, the pictures have more high frequencies than the metric
        would like."""
        return self.sigmas[self.values.index(min(self.values))]


def blur_curve(
    groups: Mapping[float, Sequence[Moments]], reference: Gaussian | Mapping[float, Gaussian]
) -> BlurCurve:
    """The curve from moments of features.

    groups: for every sigma, moments of disjoint random groups, the same pictures in group i at every sigma.
    reference: of the unblurred real pictures; or, for the matched control, one per sigma of real pictures
        that were blurred alike, which keeps apart a loss of detail and a mismatch of it.
    """
    sigmas = tuple(sorted(groups))
    if not sigmas or sigmas[0] != 0:
        raise InvalidArgumentError(f"the curve starts at sigma 0, got {sigmas or 'nothing'}")
    number = len(groups[0.0])
    if number < 2 or any(len(g) != number for g in groups.values()):
        raise InvalidArgumentError(f"every sigma needs the same groups, at least 2; got {number} at 0")
    against = reference if isinstance(reference, Mapping) else dict.fromkeys(sigmas, reference)

    def distance(sigma: float, left_out: int | None = None) -> float:
        kept = [g for i, g in enumerate(groups[sigma]) if i != left_out]
        return frechet_distance(Moments.merged(kept).gaussian(), against[sigma]).value

    values = tuple(distance(s) for s in sigmas)
    if sum(g.count for g in groups[0.0]) <= len(against[0.0].mean):
        return BlurCurve(sigmas, values, None)
    without = torch.tensor([[distance(s, i) for s in sigmas] for i in range(number)], dtype=torch.float64)
    changes = without - without[:, :1]  # (groups, sigmas)
    errors = ((number - 1) * changes.var(0, correction=0)).sqrt()
    return BlurCurve(sigmas, values, tuple(errors.tolist()))
