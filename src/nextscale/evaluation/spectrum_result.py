"""From what was kept of each picture to the numbers of ``nextscale spectrum``, as JSON holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nextscale import __version__
from nextscale.evaluation.blur import DETAIL_SIGMAS, blur_curve
from nextscale.evaluation.figures import NAMES, OTHERS
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.observation import (
    AMPLITUDE,
    DETAIL,
    LATENT,
    RESIDUAL,
    SATURATION,
    ObservedImages,
    PictureStatistics,
    blur_key,
)
from nextscale.evaluation.protocol import Rules
from nextscale.evaluation.provenance import versions
from nextscale.evaluation.resampling import Profiles, pivotal, resampled_means
from nextscale.evaluation.residual import CURVES, STATISTICS, settled_at
from nextscale.evaluation.runner import described
from nextscale.evaluation.shards import Shards
from nextscale.evaluation.spectra import (
    Ratios,
    amplitude_ratios,
    change_summary,
    detail_ratios,
    nyquist,
    profile_changes,
)
from nextscale.usual import with_usual_defaults

FORMAT = 1
Values = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to draw the pictures: its name in tables, how it was drawn, and the rows kept of it."""

    name: str
    statistics: PictureStatistics
    shards: Shards

    @property
    def images(self) -> ObservedImages:
        return self.statistics.images

    def rows(self, key: str) -> Tensor:
        return self.shards.tensor(key).double()


@dataclass(frozen=True)
class Real:
    """What is known of real pictures; whatever is ``None`` leaves something out.

    amplitude, detail: of their pixels, under the plan's rule. features: of the unblurred pictures, in the
    plan's space. blurred: the same of pictures blurred with each sigma, for the matched control.
    """

    description: Mapping[str, Any]
    amplitude: Profiles | None = None
    detail: Profiles | None = None
    features: Gaussian | None = None
    blurred: Mapping[float, Gaussian] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


@with_usual_defaults
def spectrum_result(
    arms: Sequence[Arm], real: Real | None = None, *, replicates: int = 1000, level: float = 0.95
) -> Values:
    """All numbers. Arms are of the same plan; the first is what others are compared with, without SSG.

    Intervals are by the bootstrap over pictures, of real ones too where they are at hand.
    """
    first, space = arms[0].images, arms[0].statistics.space
    plan = first.plan
    left_out = dict(real.left_out) if real else {"ratios to real pictures": "no reference was given"}
    sections: dict[str, Callable[[], Values | None]] = {
        "latent": lambda: _latent(arms, replicates, level),
        "amplitude": lambda: _amplitude(arms, real, replicates, level),
        "detail": lambda: _detail(arms, real, replicates, level),
        "blur": lambda: _blur(arms, real, left_out),
        "residual": lambda: _residual(arms, replicates, level),
        "saturation": lambda: _saturation(arms, replicates, level),
    }
    found = {name: make() for name, make in sections.items()}
    return {
        "format": FORMAT,
        "model": plan.pipe.name,
        "images": plan.count,
        "seed": plan.seed,
        "subjects": list(plan.subjects) if len(plan.subjects) < 1000 else len(plan.subjects),
        "size": list(first.size),
        "grids": [list(grid) for grid in first.grids],
        "transform": plan.rule.transform,
        "window": plan.rule.window,
        "rounding": plan.rounding,
        "sampling": {k: v for k, v in first.settings.items() if k != "ssg"},
        "arms": {arm.name: _about(arm) for arm in arms},
        "reference": dict(real.description) if real else None,
        "features": None if space is None else described(space),
        "level": level,
        "replicates": replicates,
        **found,
        "left_out": left_out,
        "versions": {**versions(), "nextscale": __version__},
    }


def _about(arm: Arm) -> Values:
    return {
        "ssg": arm.images.settings["ssg"],
        "prior": arm.images.prior.to_dict(),
        "seconds": arm.shards.seconds(),
    }


def _mean(rows: Tensor, replicates: int, level: float) -> Values:
    """The mean over pictures with its interval; of a difference of arms, a paired one."""
    return pivotal(rows.mean(0), resampled_means(rows, replicates), level).to_dict()


# ---------------------------------------------------------------------------- sections


def _steps(arms: Sequence[Arm]) -> list[Values]:
    """The steps after the first, each with the grid before it."""
    grids = arms[0].images.grids
    return [
        {
            "step": k + 1,  # counted from 1, as papers do
            "coarse": list(coarse),
            "fine": list(fine),
            "coarse_nyquist": nyquist(coarse, grids[-1]),
            "fine_nyquist": nyquist(fine, grids[-1]),
        }
        for k, (coarse, fine) in enumerate(zip(grids, grids[1:], strict=False), start=1)
    ]


def _latent(arms: Sequence[Arm], replicates: int, level: float) -> Values:
    steps = _steps(arms)
    coarse = [step["coarse_nyquist"] for step in steps]
    curves: Values = {}
    summaries = {}
    for arm in arms:
        changes = profile_changes(arm.rows(LATENT))
        summaries[arm.name] = change_summary(changes, coarse)
        curves[arm.name] = {
            "mean": changes.mean(0).tolist(),
            "std": changes.std(0).tolist(),  # of pictures, with denominator N - 1
            "summary": {k: _mean(v, replicates, level) for k, v in summaries[arm.name].items()},
        }
    base = summaries[arms[0].name]
    differences = {
        name: {k: _mean(v - base[k], replicates, level) for k, v in summary.items()}
        for name, summary in summaries.items()
        if name != arms[0].name
    }
    bins = list(range(changes.shape[2]))
    return {"steps": steps, "bins": bins, "arms": curves, "differences": differences}


def _ratio(ratios: Ratios) -> Values:
    return {
        "ratio": ratios.ratio.to_dict(),
        "summary": {name: interval.to_dict() for name, interval in ratios.summary.items()},
    }


def _amplitude(arms: Sequence[Arm], real: Real | None, replicates: int, level: float) -> Values:
    rows = [arm.rows(AMPLITUDE) for arm in arms]
    reference = real.amplitude if real else None
    side = min(arms[0].images.size)
    to_real, to_first = amplitude_ratios(rows, reference, side, replicates=replicates, level=level)
    out: Values = {
        "frequencies": list(range(1, rows[0].shape[1])),
        "reference": None if reference is None else reference.mean[1:].tolist(),
        "arms": {a.name: {"amplitude": r.mean(0)[1:].tolist()} for a, r in zip(arms, rows, strict=True)},
        "against_first": {arm.name: _ratio(ratios) for arm, ratios in zip(arms[1:], to_first, strict=True)},
    }
    for arm, ratios in zip(arms, to_real, strict=False):
        out["arms"][arm.name] |= _ratio(ratios)
    return out


def _detail(arms: Sequence[Arm], real: Real | None, replicates: int, level: float) -> Values:
    rows = [arm.rows(DETAIL) for arm in arms]
    reference = real.detail if real else None
    out: Values = {
        "sigmas": list(DETAIL_SIGMAS),
        "reference": None if reference is None else reference.mean.tolist(),
        "arms": {
            arm.name: {"fraction": _mean(r, replicates, level)} for arm, r in zip(arms, rows, strict=True)
        },
    }
    ratios = detail_ratios(rows, reference, replicates=replicates, level=level)
    for arm, found in zip(arms, ratios, strict=False):
        out["arms"][arm.name]["ratio"] = found.ratio.to_dict()
    return out


def _blur(arms: Sequence[Arm], real: Real | None, left_out: dict[str, str]) -> Values | None:
    plan, space = arms[0].images.plan, arms[0].statistics.space
    if space is None or real is None or real.features is None:
        why = "no reference was given" if real is None else "no features were chosen"
        left_out["a metric of blurred pictures"] = why
        return None
    name = NAMES.get(space.name, OTHERS)["frechet"]
    out: Values = {"figure": name, "sigmas": list(plan.sigmas), "arms": {}}
    for arm in arms:
        groups = {sigma: _groups(arm.shards, blur_key(sigma)) for sigma in plan.sigmas}
        curves = {"unblurred": blur_curve(groups, real.features)}
        if real.blurred is not None:
            curves["blurred"] = blur_curve(groups, real.blurred)
        out["arms"][arm.name] = {
            against: {
                "values": list(curve.values),
                "changes": list(curve.changes),
                "errors": None if curve.errors is None else list(curve.errors),
                "best": curve.best,
            }
            for against, curve in curves.items()
        }
    if len(real.features.mean) >= plan.count:
        left_out["errors of the blur curve"] = f"need more than {len(real.features.mean)} pictures"
    return out


def _groups(shards: Shards, key: str) -> list[Moments]:
    """Moments of random groups, of the same pictures for every key."""
    rules = Rules()
    order = torch.randperm(shards.count, generator=torch.Generator().manual_seed(rules.shuffle_seed))
    rows, number = shards.tensor(key), min(rules.groups, shards.count)
    return [Moments.of(rows[order[i::number]]) for i in range(number)]


def _residual(arms: Sequence[Arm], replicates: int, level: float) -> Values:
    out: Values = {"steps": _steps(arms), "statistics": list(STATISTICS), "arms": {}}
    for arm in arms:
        rows = arm.rows(RESIDUAL)  # (N, K - 1, statistics)
        out["arms"][arm.name] = {
            name: _mean(rows[..., i], replicates, level) for i, name in enumerate(STATISTICS)
        }
    return out


def _saturation(arms: Sequence[Arm], replicates: int, level: float) -> Values:
    plan, steps = arms[0].images.plan, _steps(arms)
    out: Values = {"steps": steps, "betas": list(plan.betas), "arms": {}}
    for arm in arms:
        rows = arm.rows(SATURATION)  # (N, K - 1, curves, betas + 1)
        ssg, grids = arm.images.ssg, arm.images.grids
        curves = {name: rows.mean(0)[:, i, :-1].tolist() for i, name in enumerate(CURVES)}
        out["arms"][arm.name] = {
            **curves,
            "half": {
                name: [settled_at(plan.betas, curve) for curve in curves[name]]
                for name in ("settled", "reached")
            },
            "beta": [0.0] * len(steps) if ssg is None else list(ssg.betas(grids)[1:]),
            "used": {name: _mean(rows[:, :, i, -1], replicates, level) for i, name in enumerate(CURVES)},
        }
    return out
