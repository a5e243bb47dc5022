"""Two ways to draw the same pictures, compared figure by figure: differences with 95 % intervals.

Arms are drawn from the same classes and seeds, in several sets of seeds. What a figure is resampled over:

- precision, density, accuracy: the pictures, both arms together, the reference's radii kept;
- recall and coverage count the reference's pictures, the same ones in all sets: their variance over these,
  plus what leaving out groups of generated pictures says, with all radii kept;
- Fréchet distances: the pictures; every resample gives both distances, and the interval is pivotal, because
  resampling biases a distance upwards. In feature spaces of more than 512 dimensions a delete-a-group
  jackknife takes the place of the bootstrap, which would take days;
- the kernel distance: the pictures, each with its first-order influence on the distance of all pairs;
- the classifier score, of one block: the pictures.

Of the extrapolated Fréchet distance only the sets are shown. See :class:`~nextscale.evaluation.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.features import for_kernel
from nextscale.evaluation.figures import NAMES, OTHERS
from nextscale.evaluation.intervals import mean, paired_difference
from nextscale.evaluation.metrics import frechet_distance, frechet_infinity
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.neighbours import manifold_scores, squared_radii
from nextscale.evaluation.protocol import Protocol
from nextscale.evaluation.reference import MeasuredReference
from nextscale.evaluation.rows import check_finite
from nextscale.evaluation.shards import Shards
from nextscale.evaluation.sweep_file import SEED_STEP
from nextscale.guidance.ssg import ScaledSpatialGuidance

MOST_DIMENSIONS = 512  # for the bootstrap of a Fréchet distance
BLOCK = 2048


@dataclass(frozen=True)
class Figure:
    """One figure of one arm in one set, and what its difference is resampled from.

    rows: one per picture, and statistic, what makes the figure of them: for the bootstrap.
    without: the figure with each group of pictures left out: for the jackknife.
    With both, rows are of the reference's pictures, the same in all sets. With neither there is no interval.
    """

    value: float
    rows: Tensor | None = None
    statistic: Callable[[Tensor], float] = mean
    without: Tensor | None = None


@dataclass(frozen=True)
class Gap:
    """A figure of an arm minus that of the arm without SSG.

    value: the mean over the sets. per_set: of each alone. low, high: the interval at ``level``; ``None``
        where there is none. method: ``"bootstrap"``, ``"jackknife"``, ``"jackknife, reference"`` (see the
        module) or ``"none"``.
    """

    value: float
    per_set: tuple[float, ...]
    level: float
    method: str = "none"
    low: float | None = None
    high: float | None = None

    @property
    def contains_zero(self) -> bool | None:
        """Whether no difference at all is within the interval; ``None`` without one."""
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high

    @property
    def same_sign(self) -> bool:
        """Whether all sets agree on which arm is larger."""
        return all(d > 0 for d in self.per_set) or all(d < 0 for d in self.per_set)

    def to_dict(self) -> dict[str, Any]:
        own = {"contains_zero": self.contains_zero, "same_sign": self.same_sign}
        return {**vars(self), "per_set": list(self.per_set), **own}


# ---------------------------------------------------------------------------- what is drawn


def plan_arms(
    base: Protocol, arms: Sequence[ScaledSpatialGuidance | None], sets: int
) -> list[list[Protocol]]:
    """The protocols of every arm, one per set; they differ from the base in SSG and in their first seed.

    Set i starts at the base's seed + i million, so that no two sets share a picture; raises
    InvalidArgumentError for sets so large that they would.
    """
    if base.sampling is None:
        raise InvalidArgumentError("a file of samples has one arm; a comparison draws its pictures")
    if sets < 1 or (sets > 1 and base.images > SEED_STEP):
        raise InvalidArgumentError(
            f"{sets} sets of {base.images:,} pictures cannot be kept apart; one set can have any number of "
            f"pictures, several at most {SEED_STEP:,} each"
        )
    sampling = [{**base.sampling, "ssg": None if arm is None else arm.to_dict()} for arm in arms]
    return [
        [replace(base, sampling=made, seed=base.seed + i * SEED_STEP) for i in range(sets)]
        for made in sampling
    ]


# ---------------------------------------------------------------------------- figures of one arm


@dataclass(frozen=True)
class RealSide:
    """What real pictures are among themselves, which the figures of all arms have in common.

    kernel: the kernel's mean over their pairs. dense: the squared radii for density and coverage, ``(M,)``;
    ``None`` with fewer pictures than neighbours.
    """

    kernel: float
    dense: Tensor | None

    @classmethod
    def of(cls, reference: MeasuredReference | None, protocol: Protocol) -> RealSide | None:
        """``None`` where there are no features of real pictures."""
        if reference is None or reference.features is None:
            return None
        features, k = reference.features, protocol.rules.density_k
        scaled = for_kernel(features, protocol.features)
        kernel = float(_kernel_means(scaled, scaled, itself=True).mean())
        enough = len(features) > max(k, protocol.rules.k)
        return cls(kernel, squared_radii(features, (k,))[0] if enough else None)


def arm_figures(
    generated: Shards,
    reference: MeasuredReference | None,
    protocol: Protocol,
    *,
    real: RealSide | None = None,
) -> dict[str, Figure]:
    """All figures of one arm in one set that its features and the reference allow, by name.

    real: computed here if it is not given.
    """
    names = NAMES.get(protocol.features["name"], OTHERS)
    features, found = generated.tensor("features"), {}
    if reference is not None:
        gaussian = reference.statistics["features"]
        found[names["frechet"]] = _frechet(features, gaussian, protocol)
        if len(gaussian.mean) * 2 <= protocol.rules.smallest:
            found[f"{names['frechet']}_infinity"] = Figure(_infinity(features, gaussian, protocol))
    if reference is not None and generated.has("spatial") and "spatial" in reference.statistics:
        spatial = generated.tensor("spatial")
        found[names["spatial"]] = _frechet(spatial, reference.statistics["spatial"], protocol)
    if reference is not None and reference.features is not None:
        side = real or RealSide.of(reference, protocol)
        if side is not None:
            pair = [for_kernel(x, protocol.features) for x in (features, reference.features)]
            found[names["kernel"]] = _kernel(pair[0], pair[1], side.kernel)
            found |= _neighbours(features, reference.features, side.dense, protocol)
    if generated.has("logits"):
        found |= _logits(generated.tensor("logits"), names["score"], protocol)
    return found


def _frechet(features: Tensor, reference: Gaussian, protocol: Protocol) -> Figure:
    def distance(rows: Tensor) -> float:
        return frechet_distance(Moments.of(rows).gaussian(), reference).value

    value, dimensions = distance(features), features.shape[1]
    if len(features) <= dimensions:  # the bias is the larger part by far, and an interval would mislead
        return Figure(value)
    if dimensions <= MOST_DIMENSIONS:
        return Figure(value, features, distance)
    groups = [Moments.of(features[rows]) for rows in _groups(len(features), protocol)]
    without = [
        frechet_distance(Moments.merged(groups[:i] + groups[i + 1 :]).gaussian(), reference).value
        for i in range(len(groups))
    ]
    return Figure(value, without=torch.tensor(without, dtype=torch.float64))


def _groups(count: int, protocol: Protocol) -> list[Tensor]:
    """Rows of random groups of pictures, the same ones in all arms."""
    rules = protocol.rules
    order = torch.randperm(count, generator=torch.Generator().manual_seed(rules.shuffle_seed))
    number = min(rules.groups, count)
    return [order[i::number] for i in range(number)]


def _infinity(features: Tensor, reference: Gaussian, protocol: Protocol) -> float:
    rules = protocol.rules
    sizes = np.linspace(rules.smallest, len(features), rules.points).round().astype(int).tolist()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(rules.shuffle_seed))
    return frechet_infinity(features, reference, sizes, order).intercept


def _kernel(features: Tensor, reference: Tensor, real: float) -> Figure:
    """The kernel distance of all pairs; the rows have it as their mean, and vary as its influence does."""
    own = _kernel_means(features, features, itself=True)  # (N,)
    cross = _kernel_means(features, reference)
    value = own.mean() + real - 2 * cross.mean()
    influence = 2 * (own - own.mean()) - 2 * (cross - cross.mean())
    return Figure(float(value), value + influence)


def _kernel_means(x: Tensor, y: Tensor, *, itself: bool = False) -> Tensor:
    """``(x . y / d + 1)^3`` of every row of x, averaged over the rows of y, or over all others: ``(N,)``."""
    sums = torch.zeros(len(x), dtype=torch.float64)
    for i in range(0, len(x), BLOCK):
        rows = x[i : i + BLOCK].double()
        for j in range(0, len(y), BLOCK):
            kernel = (rows @ y[j : j + BLOCK].double().T / x.shape[1] + 1) ** 3
            sums[i : i + BLOCK] += kernel.sum(1)
            if itself and i == j:
                sums[i : i + BLOCK] -= kernel.diagonal()
    return sums / (len(y) - itself)


def _neighbours(
    features: Tensor, reference: Tensor, dense: Tensor | None, protocol: Protocol
) -> dict[str, Figure]:
    rules = protocol.rules
    if dense is None or len(features) <= max(rules.k, rules.density_k):
        return {}
    found = manifold_scores(features, reference, k=rules.k, density_k=rules.density_k)
    recalled, covered = _without_groups(features, reference, dense, protocol)
    return {
        "precision": Figure(found.precision, found.precise),
        "recall": Figure(found.recall, found.recalled, without=recalled),
        "density": Figure(found.density, found.density_of),
        "coverage": Figure(found.coverage, found.covered, without=covered),
    }


def _without_groups(
    features: Tensor, reference: Tensor, dense: Tensor, protocol: Protocol
) -> tuple[Tensor, Tensor]:
    """Recall and coverage without each group of generated pictures, all radii as they were: ``(G,)`` each."""
    centre = reference.double().mean(0)
    (own,) = squared_radii(features, (protocol.rules.k,), centre=centre)  # (N,)
    real = reference.double() - centre
    hits = []
    for rows in _groups(len(features), protocol):
        hit = torch.zeros(2, len(reference), dtype=torch.bool)
        for part in rows.split(BLOCK):
            made = features[part].double() - centre
            squares = made.square().sum(1)[:, None] + real.square().sum(1)
            distance = torch.addmm(squares, made, real.T, alpha=-2)  # (part, M)
            hit[0] |= (distance <= own[part, None]).any(0)
            hit[1] |= (distance < dense).any(0)
        hits.append(hit)
    counts = torch.stack(hits).sum(0)  # (2, M): in how many groups a real picture is found
    left = [(counts - hit.long() > 0).double().mean(1) for hit in hits]
    recalled, covered = torch.stack(left, 1)
    return recalled, covered


def _logits(logits: Tensor, name: str, protocol: Protocol) -> dict[str, Figure]:
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    # The score is a function of means over pictures: of p, and of sum p log p, the last column.
    rows = torch.cat([p, (p * log_p).sum(1, keepdim=True)], 1)
    found = {name: Figure(_score(rows), rows, _score)}
    if protocol.classes is not None and protocol.features.get("classes") == protocol.classes:
        labels = torch.tensor([protocol.label(i) for i in range(len(logits))])
        hits = logits.argmax(1) == labels
        found["accuracy"] = Figure(mean(hits), hits)
    return found


def _score(rows: Tensor) -> float:
    """The Inception Score of one block from the rows of :func:`_logits`."""
    averages = rows.mean(0)
    return math.exp(float(torch.special.entr(averages[:-1]).sum() + averages[-1]))


# ---------------------------------------------------------------------------- differences


def difference(
    arm: Sequence[Figure],
    base: Sequence[Figure],
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Gap:
    """One figure of an arm minus that of the base, each given for the same sets in the same order.

    Raises InvalidArgumentError for other sets, and for figures that are NaN or infinite.
    """
    if len(arm) != len(base) or not arm:
        raise InvalidArgumentError(f"the arms need the same seed sets, got {len(arm)} and {len(base)}")
    for figure in (*arm, *base):
        for numbers in (torch.tensor([figure.value]), figure.rows, figure.without):
            if numbers is not None:
                check_finite(numbers, "the figure, or what it is made of,")
    per_set = tuple(a.value - b.value for a, b in zip(arm, base, strict=True))
    plain = Gap(sum(per_set) / len(per_set), per_set, level)
    jackknife = _jackknife_variance(arm, base)
    rows, others = ([f.rows.double() for f in side if f.rows is not None] for side in (arm, base))
    if len(rows) < len(arm) or len(others) < len(base):
        return plain if jackknife is None else _student(plain, *jackknife, "jackknife")
    if jackknife is not None:
        # The rows are of the reference's pictures, which the sets share.
        rows, others = [torch.stack(rows).mean(0)], [torch.stack(others).mean(0)]
        variance, freedom = jackknife
        return _student(
            plain,
            variance + float((rows[0] - others[0]).var()) / len(rows[0]),
            freedom,
            "jackknife, reference",
        )
    statistic = arm[0].statistic
    found = paired_difference(rows, others, statistic, replicates=replicates, level=level, seed=seed)
    return replace(plain, low=found.low, high=found.high, method="bootstrap")


def _jackknife_variance(arm: Sequence[Figure], base: Sequence[Figure]) -> tuple[float, int] | None:
    """Of the difference, by leaving out the same groups in both arms, and its degrees of freedom."""
    gaps = [
        a.without - b.without
        for a, b in zip(arm, base, strict=True)
        if a.without is not None and b.without is not None
    ]
    if len(gaps) < len(arm):
        return None
    groups = len(gaps[0])
    variance = sum((groups - 1) * float(g.var(correction=0)) for g in gaps) / len(gaps) ** 2
    return variance, len(gaps) * (groups - 1)


def _student(plain: Gap, variance: float, freedom: int, method: str) -> Gap:
    half = student_quantile(0.5 + plain.level / 2, freedom) * math.sqrt(variance)
    return replace(plain, low=plain.value - half, high=plain.value + half, method=method)


def student_quantile(share: float, freedom: int) -> float:
    """A quantile of Student's t, good to 0.1 % from 9 degrees of freedom on, by Cornish and Fisher."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * share - 1, dtype=torch.float64)))
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def compare(
    arms: Mapping[str, Sequence[Mapping[str, Figure]]], *, replicates: int = 1000, level: float = 0.95
) -> dict[str, dict[str, Gap]]:
    """Every figure of every arm but the first, minus that of the first.

    arms: by name, the figures of every set. Figures that not all arms and sets have are left out.
    """
    (_, base), *others = arms.items()
    names = [n for n in base[0] if all(n in figures for sets in arms.values() for figures in sets)]
    return {
        arm: {
            name: difference(
                [f[name] for f in sets], [f[name] for f in base], replicates=replicates, level=level
            )
            for name in names
        }
        for arm, sets in others
    }
