"""Spectra by radial frequency: of the latent from step to step, and of pictures beside real ones.

Frequencies are in cycles per image side (of the shorter side, where sides differ), and bin r holds those from
r up to r + 1. A grid of side p can hold frequencies below ``p / 2``, its Nyquist frequency, along each axis;
bins above that hold corners of the spectrum alone. Everything is computed in float64.

Two transforms are offered: ``"fft"``, and ``"dct"``, the orthonormal cosine transform, whose coefficient
``(a, b)`` has the frequency ``sqrt(a^2 + b^2) / 2``. Their curves differ and do not belong into one plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.moments import Gaussian
from nextscale.evaluation.resampling import Interval, Profiles, pivotal
from nextscale.evaluation.rows import check_finite
from nextscale.scales import Grid

Transform = Literal["fft", "dct"]
Window = Literal["hann", "none"]
EPS = 1e-8  # added to magnitudes before their logarithm
REFERENCE_SEED = 1  # real pictures are resampled independently of generated ones


# ---------------------------------------------------------------------------- radial bins


@lru_cache(maxsize=32)
def radial_bins(height: int, width: int, transform: Transform = "fft") -> Tensor:
    """The bin of every coefficient of :func:`magnitudes`: int64 ``(height, width)``.

    Exact: the square of a frequency is a fraction, and its root is rounded down once.
    """
    _check_transform(transform)
    divisor = math.gcd(height, width)
    h, w = height // divisor, width // divisor  # sides in lowest terms
    short = min(h, w)
    rows, columns = (_frequencies(n, transform) for n in (height, width))
    squares = (rows[:, None] * w).square() + (columns * h).square()
    scale = (h * w) ** 2 * (4 if transform == "dct" else 1)
    bins: Tensor = (squares * short**2 // scale).double().sqrt().floor().long()
    return bins


def _frequencies(size: int, transform: Transform) -> Tensor:
    index = torch.arange(size)
    return index if transform == "dct" else torch.where(index < (size + 1) // 2, index, index - size)


def ring_means(values: Tensor, bins: Tensor) -> Tensor:
    """Plain averages over the cells of each bin: ``(..., h, w)`` to ``(..., highest bin + 1)``."""
    flat = bins.flatten()
    sums = values.new_zeros(*values.shape[:-2], int(flat.max()) + 1)
    return sums.index_add_(-1, flat, values.flatten(-2)) / flat.bincount()


def magnitudes(values: Tensor, transform: Transform = "fft") -> Tensor:
    """Amplitudes of the unnormalised Fourier or the orthonormal cosine transform of ``(..., h, w)``."""
    _check_transform(transform)
    values = values.cpu().double()
    if transform == "fft":
        return torch.fft.fft2(values).abs()
    return cosine_transform(cosine_transform(values, -1), -2).abs()


def cosine_transform(values: Tensor, axis: int) -> Tensor:
    """The orthonormal type II transform along one axis, from a Fourier transform of the mirrored values."""
    n = values.shape[axis]
    turn = torch.exp(-0.5j * math.pi / n * torch.arange(n, dtype=torch.float64))
    norm = torch.full((n,), math.sqrt(0.5 / n), dtype=torch.float64)
    norm[0] = 0.5 / math.sqrt(n)
    moved = values.double().movedim(axis, -1)
    spectrum = torch.fft.rfft(torch.cat([moved, moved.flip(-1)], -1))[..., :n]
    return ((spectrum * turn).real * norm).movedim(-1, axis)


def _check_transform(transform: str) -> None:
    if transform not in get_args(Transform):
        raise InvalidArgumentError(
            f"unknown transform {transform!r}; known: {', '.join(get_args(Transform))}"
        )


def nyquist(grid: Grid, final: Grid) -> float:
    """The highest frequency that a grid can hold, in bins of the final grid; for a square, half its side."""
    return min(final) / 2 * min(g / f for g, f in zip(grid, final, strict=True))


# ---------------------------------------------------------------------------- the latent, step by step


def log_profile(latent: Tensor, transform: Transform = "fft") -> Tensor:
    """``L(r)``, the mean of ``ln(magnitude + 1e-8)`` over channels and the cells of bin r, of every image.

    latent: ``(B, C, h, w)``, all steps summed so far, as it would be decoded. No window: a latent has no
    border. Returns ``(B, bins)``. The logarithm comes before all averages.
    """
    bins = radial_bins(latent.shape[-2], latent.shape[-1], transform)
    return ring_means((magnitudes(latent, transform) + EPS).log(), bins).mean(1)


def profile_changes(profiles: Tensor) -> Tensor:
    """``D_k(r) = L_{k+1}(r) - L_k(r)``: ``(N, K, bins)`` to ``(N, K - 1, bins)``."""
    return profiles.double().diff(dim=1)


def change_summary(changes: Tensor, coarse: Sequence[float]) -> dict[str, Tensor]:
    """What a step did below and above the Nyquist frequency of the step before, of every image.

    changes: ``(N, K - 1, bins)``. coarse: that frequency for each of the K - 1 changes.
    Returns ``(N, K - 1)`` each: ``"below"``, the mean over bins ``r < coarse`` (about 0 where the step keeps
    the structure there is); ``"above"``, over the others (positive where it adds detail); ``"contrast"``,
    above minus below.
    """
    low = torch.arange(changes.shape[-1]) < torch.tensor(coarse)[:, None]  # (K - 1, bins)
    if len(coarse) != changes.shape[1] or not bool((low.any(1) & ~low.all(1)).all()):
        raise InvalidArgumentError(
            f"{changes.shape[1]} changes of {changes.shape[2]} bins do not fit the Nyquist frequencies "
            f"{list(coarse)}"
        )
    below = (changes * low).sum(-1) / low.sum(-1)
    above = (changes * ~low).sum(-1) / (~low).sum(-1)
    return {"below": below, "above": above, "contrast": above - below}


# ---------------------------------------------------------------------------- amplitudes of pictures


@dataclass(frozen=True)
class AmplitudeRule:
    """How the radial amplitude of a picture is computed.

    window: ``"hann"``, periodic, over rows and columns: without it, unequal borders leak into all frequencies
        along the axes. ``None`` is ``"hann"`` for the Fourier transform and ``"none"`` for the cosine
        transform, which needs none.
    """

    transform: Transform = "fft"
    window: Window | None = None

    def __post_init__(self) -> None:
        _check_transform(self.transform)
        if self.window is None:
            object.__setattr__(self, "window", "none" if self.transform == "dct" else "hann")
        if self.window not in get_args(Window):
            raise InvalidArgumentError(
                f"unknown window {self.window!r}; known: {', '.join(get_args(Window))}"
            )
        if self.transform == "dct" and self.window != "none":
            raise InvalidArgumentError("the cosine transform needs no window; leave it out")

    @property
    def name(self) -> str:
        return f"{self.transform}-{self.window}"

    def last_bin(self, size: Grid) -> int:
        """The highest bin that is not of corners alone, for pictures ``(height, width)``."""
        side = min(size)
        return side // 2 if self.transform == "fft" else (side - 1) // 2

    def __call__(self, images: Tensor) -> Tensor:
        """``A(r)`` of uint8 pictures ``(B, 3, H, W)``: float64 ``(B, last_bin + 1)``.

        Luminance ``(0.299 R + 0.587 G + 0.114 B) / 255`` less its mean, through the window; amplitude, not
        power and not its logarithm. Bin 0 has no meaning beside the others.
        """
        check_finite(images, "pictures")
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64) / 255
        luminance = torch.einsum("bchw,c->bhw", images.cpu().double(), weights)
        luminance = luminance - luminance.mean((1, 2), keepdim=True)
        h, w = luminance.shape[1:]
        if self.window == "hann":
            luminance = luminance * _hann(h)[:, None] * _hann(w)
        rings = ring_means(magnitudes(luminance, self.transform), radial_bins(h, w, self.transform))
        return rings[:, : self.last_bin((h, w)) + 1]


def _hann(size: int) -> Tensor:
    return 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(size, dtype=torch.float64) / size)


# ---------------------------------------------------------------------------- ratios and summaries


def _range(bins: int, side: int) -> tuple[Tensor, Tensor]:
    """Frequencies ``1 .. bins`` and whether each is within ``[side / 25, side / 2.5]``."""
    r = torch.arange(1, bins + 1, dtype=torch.float64)
    return r, (r >= side / 25) & (r <= side / 2.5)


def ratio_summary(log_ratio: Tensor, side: int) -> dict[str, Tensor]:
    """Scalars of ``ln R(r)`` for ``r = 1, 2, …`` along the last axis; ``side``: of the pictures, in pixels.

    All are means over ``r`` in ``[side / 25, side / 2.5]`` with the weight ``1 / r``, so that each octave
    counts alike. ``"distance"``: of ``|ln R|``, 0 for equal spectra. ``"low"``, ``"high"``: of ``ln R`` below
    ``side / 8`` and from there on; positive is too much. NaN where there is no such bin.
    """
    r, inside = _range(log_ratio.shape[-1], side)
    parts = {"distance": inside, "low": inside & (r < side / 8), "high": inside & (r >= side / 8)}
    out = {}
    for name, chosen in parts.items():
        weights = chosen / r
        values = log_ratio.abs() if name == "distance" else log_ratio
        out[name] = (values * weights).sum(-1) / weights.sum()
    return out


def spectral_slope(amplitude: Tensor, side: int) -> Tensor:
    """The least-squares slope of ``ln A`` against ``ln r`` on the same range, of bins ``1, 2, …``."""
    r, inside = _range(amplitude.shape[-1], side)
    x = r[inside].log()
    x = x - x.mean()
    return (amplitude[..., inside].log() * x).sum(-1) / x.square().sum()


@dataclass(frozen=True)
class Ratios:
    """Mean profiles of one arm divided by those of something else, bin by bin, and what that comes to.

    ratio: one value a column. summary: of :func:`ratio_summary` and the two slopes' difference, empty for
    profiles that are no spectra.
    """

    ratio: Interval
    summary: Mapping[str, Interval]


def amplitude_ratios(
    arms: Sequence[Tensor],
    reference: Profiles | None,
    side: int,
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[list[Ratios], list[Ratios]]:
    """Ratios of every arm to the reference, and of every arm but the first to the first.

    arms: amplitudes ``(N, bins)`` from bin 0 on, row i of all arms from the same seed; the second list's
        intervals are paired. The first list is empty without a reference.
    """
    rows = [arm[:, 1:].double() for arm in arms]
    means = _log_means([Profiles(row) for row in rows], replicates, seed)
    against = [_ratios(means[i], means[0], side, level) for i in range(1, len(arms))]
    if reference is None:
        return [], against
    cut = Profiles(
        None if reference.rows is None else reference.rows[:, 1:],
        None if reference.gaussian is None else _without_first(reference.gaussian),
    )
    (real,) = _log_means([cut], replicates, seed + REFERENCE_SEED)
    return [_ratios(mean, real, side, level) for mean in means], against


def detail_ratios(
    arms: Sequence[Tensor],
    reference: Profiles | None,
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Ratios]:
    """Ratios of mean detail fractions to those of real pictures; none without a reference."""
    if reference is None:
        return []
    means = _log_means([Profiles(arm) for arm in arms], replicates, seed)
    (real,) = _log_means([reference], replicates, seed + REFERENCE_SEED)
    return [_ratios(mean, real, None, level) for mean in means]


def _log_means(profiles: Sequence[Profiles], replicates: int, seed: int) -> list[Tensor]:
    """``ln`` of the mean in row 0, of resampled means below: ``(1 + R, d)`` each, all with one seed."""
    found = [torch.cat([p.mean[None], p.means(replicates, seed)]) for p in profiles]
    for values in found:
        if not bool((values > 0).all()):
            raise InvalidArgumentError(
                "some frequencies are missing from all pictures; they need more variety"
            )
    return [values.log() for values in found]


def _ratios(a: Tensor, b: Tensor, side: int | None, level: float) -> Ratios:
    log_ratio = a - b
    summary = {}
    if side is not None:
        slopes = spectral_slope(a.exp(), side) - spectral_slope(b.exp(), side)
        values = {**ratio_summary(log_ratio, side), "slope": slopes}
        summary = {name: pivotal(v[0], v[1:], level) for name, v in values.items()}
    return Ratios(pivotal(log_ratio[0], log_ratio[1:], level).apply(torch.exp), summary)


def _without_first(gaussian: Gaussian) -> Gaussian:
    return Gaussian(gaussian.mean[1:], gaussian.covariance[1:, 1:], gaussian.count)
