"""Guidance for next-scale models: pure functions on logits, and frozen settings that a loop runs."""

from __future__ import annotations

from nextscale.guidance.base import (
    CONDITIONAL,
    UNCONDITIONAL,
    ChainState,
    Grid,
    Guidance,
    GuidanceChain,
    GuidanceState,
    GuidanceStep,
    GuidedLogits,
)
from nextscale.guidance.cfg import ClassifierFreeGuidance, classifier_free_guidance
from nextscale.guidance.prior import NORMS, PRIOR_KINDS, prior_operator, spatial_prior
from nextscale.guidance.schedules import SCHEDULES, resolve_strength, schedule_weights
from nextscale.guidance.ssg import DEFAULT_BETA, ScaledSpatialGuidance, as_ssg, scaled_spatial_guidance

__all__ = [
    "CONDITIONAL",
    "DEFAULT_BETA",
    "NORMS",
    "PRIOR_KINDS",
    "SCHEDULES",
    "UNCONDITIONAL",
    "ChainState",
    "ClassifierFreeGuidance",
    "Grid",
    "Guidance",
    "GuidanceChain",
    "GuidanceState",
    "GuidanceStep",
    "GuidedLogits",
    "ScaledSpatialGuidance",
    "as_ssg",
    "classifier_free_guidance",
    "prior_operator",
    "resolve_strength",
    "scaled_spatial_guidance",
    "schedule_weights",
    "spatial_prior",
]
