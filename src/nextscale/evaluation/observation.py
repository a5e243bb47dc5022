"""Draws pictures with and without SSG and keeps, of each, what spectra are made of.

What is kept of a picture is some kilobytes: the radial profiles of its latent after every step and of its
pixels, its detail, statistics of the semantic residual, and features of it at several strengths of blur. It
goes into :class:`~nextscale.evaluation.shards.Shards`, so a stopped run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale import __version__
from nextscale.errors import DataError, InvalidArgumentError, NotFiniteError
from nextscale.evaluation.blur import METRIC_SIGMAS, blurred, detail_fractions
from nextscale.evaluation.features import FeatureSpace
from nextscale.evaluation.protocol import Rounding, to_uint8
from nextscale.evaluation.residual import BETAS, ResidualObserver
from nextscale.evaluation.runner import described
from nextscale.evaluation.shards import Shards
from nextscale.evaluation.spectra import AmplitudeRule, log_profile
from nextscale.generation.loop import StepInfo
from nextscale.generation.request import default_ssg
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.scales import Grid
from nextscale.weights.digest import pipeline_digest, text_digest

AMPLITUDE = "features"  # what shards count their rows by
DETAIL, LATENT, RESIDUAL, SATURATION = "detail", "latent", "residual", "saturation"


def blur_key(sigma: float) -> str:
    """Under which name the features of blurred pictures are kept."""
    return f"blur {sigma:g}"


@dataclass(frozen=True)
class Plan:
    """What is drawn and how it is looked at; the arms differ in their SSG alone.

    pipe: a pipeline of any family. subjects: picture i shows ``subjects[i % len(subjects)]``, a class or a
    prompt, and has the seed ``seed + i``. arguments: of the pipeline's call, without SSG.
    rule: of the pixels' amplitudes; its transform is the latent's too. sigmas: of the blur curve. betas:
    strengths at which guidance is looked at.
    """

    pipe: Any
    subjects: Sequence[Any]
    count: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    rounding: Rounding = "round"
    rule: AmplitudeRule = field(default_factory=AmplitudeRule)
    sigmas: tuple[float, ...] = METRIC_SIGMAS
    betas: tuple[float, ...] = BETAS

    def __post_init__(self) -> None:
        if self.count < 2 or not self.subjects:
            raise InvalidArgumentError(
                f"at least 2 pictures of something are needed, got {self.count} of "
                f"{len(self.subjects)} subjects"
            )

    def subjects_of(self, rows: range) -> list[Any]:
        return [self.subjects[i % len(self.subjects)] for i in rows]


class ObservedImages:
    """The pictures of one arm, drawn when they are asked for.

    seen: of those drawn last, ``"latent"`` ``(B, K, bins)``, and ``"residual"`` and ``"saturation"`` as
        :meth:`~nextscale.evaluation.residual.ResidualObserver.rows` has them.
    prior: whose prior makes the residual where the arm has no SSG; ``None`` is the model's.
    """

    def __init__(
        self, plan: Plan, ssg: ScaledSpatialGuidance | None, prior: ScaledSpatialGuidance | None = None
    ) -> None:
        model = default_ssg(plan.pipe.defaults)
        self.plan, self.ssg = plan, None if ssg is None else ssg.with_defaults(model)
        self.prior = self.ssg or (prior or ScaledSpatialGuidance()).with_defaults(model)
        self.seen: dict[str, Tensor] = {}
        self.settings, self.size, self.grids = self._try()

    def __len__(self) -> int:
        return self.plan.count

    def read(self, start: int, stop: int) -> Tensor:
        """Draw pictures ``start`` up to ``stop``, all at once: uint8 ``(B, 3, H, W)``.

        Raises NotFiniteError, naming the picture, where logits or pixels are NaN or infinite.
        """
        residuals, latents = self._observer(), dict[int, Tensor]()

        def on_step(info: StepInfo) -> None:
            residuals(info)
            # A grid that comes in parts is looked at again with every part; the last look counts.
            latents[info.index] = log_profile(info.feature_map, self.plan.rule.transform)

        try:
            out = self._call(range(start, stop), on_step)
        except torch.cuda.OutOfMemoryError:
            raise InvalidArgumentError(
                f"{self.plan.pipe.device} has too little memory for {stop - start} pictures at once; use a "
                f"smaller --batch-size"
            ) from None
        except NotFiniteError as error:
            raise error.of(start + error.picture) from None
        statistics, curves = residuals.rows()
        latent = torch.stack([latents[k] for k in sorted(latents)], 1)
        self.seen = {LATENT: latent, RESIDUAL: statistics, SATURATION: curves}
        return to_uint8(out.images, self.plan.rounding)

    def _call(self, rows: range, on_step: Any) -> Any:
        plan = self.plan
        seeds = [plan.seed + i for i in rows]
        more = {"batch_size": len(rows), "output_type": "pt", "on_step": on_step}
        return plan.pipe(plan.subjects_of(rows), seed=seeds, ssg=self.ssg, **more, **plan.arguments)

    def _try(self) -> tuple[dict[str, Any], Grid, tuple[Grid, ...]]:
        """Settings, size and grids, as one picture shows them."""
        grids: dict[int, Grid] = {}
        out = self._call(range(1), lambda info: grids.update({info.index: info.grid}))
        own = ("nextscale", "model", "labels", "prompts", "seeds")
        settings = {k: v for k, v in out.settings.items() if k not in own}
        return settings, tuple(out.images.shape[2:]), tuple(grids[k] for k in sorted(grids))

    def _observer(self) -> ResidualObserver:
        prior = self.prior.to_dict()
        kind, norm, remember = (prior[name] for name in ("prior", "norm", "remember"))
        return ResidualObserver(kind, norm, remember, self.plan.betas)


class PictureStatistics(FeatureSpace):
    """What is kept of pictures, and of how they were made, as a feature space to fill shards with.

    space: features for the blur curve, or ``None`` for no such curve.
    """

    name = "spectrum"

    def __init__(self, images: ObservedImages, space: FeatureSpace | None = None) -> None:
        self.images, self.plan, self.space = images, images.plan, space

    def description(self) -> dict[str, Any]:
        """Everything that decides what is kept of picture i."""
        plan, prior = self.plan, self.images.prior.to_dict()
        return {
            "name": self.name,
            "weights": pipeline_digest(plan.pipe),
            "settings": self.images.settings,
            "subjects": list(plan.subjects),
            "seed": plan.seed,
            "rounding": plan.rounding,
            "rule": plan.rule.name,
            "features": None if self.space is None else [described(self.space), plan.sigmas],
            "residual": [[prior[name] for name in ("prior", "norm", "remember")], plan.betas],
            "nextscale": __version__,
        }

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        found = {AMPLITUDE: self.plan.rule(images), DETAIL: detail_fractions(images)}
        if self.space is not None:
            for sigma in self.plan.sigmas:
                found[blur_key(sigma)] = self.space(blurred(images, sigma))["features"]
        return found

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Of the pictures that were drawn last. Raises DataError for statistics that are not finite."""
        made = {key: rows.float() for key, rows in self.images.seen.items()}
        for key, rows in made.items():
            if not bool(rows.isfinite().all()):
                raise DataError(f"the {key} statistics of some pictures are NaN or infinite")
        return {**super().__call__(images), **made}

    def shards(self, work: Path) -> Shards:
        """Where the rows are, those of an earlier run among them."""
        key = text_digest(json.dumps(self.description(), sort_keys=True))[:16]
        return Shards(work / f"spectrum-{key}", self.plan.count)
