"""Forbidden choices, huge strengths, and numbers that are none, given to the formulas of guidance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.guidance import (
    ClassifierFreeGuidance,
    ScaledSpatialGuidance,
    classifier_free_guidance,
    scaled_spatial_guidance,
)
from nextscale.guidance.prior import PRIOR_KINDS
from nextscale.guidance.schedules import MOST

INF = math.inf
CFG = [("extra", 2.0), ("interpolate", 3.0), ("interpolate", 0.5), ("interpolate", 0.0)]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def forbidding(logits: Tensor, *choices: int) -> Tensor:
    logits = logits.clone()
    logits[..., list(choices)] = -INF
    return logits


# --- Scaled Spatial Guidance ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("coarse", [(2, 2), (4, 4)])
@pytest.mark.parametrize("kind", PRIOR_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_choices_that_both_steps_forbid(coarse: Any, kind: Any, dtype: torch.dtype, seed: int):
    logits = noise(2, 16, 5, seed=seed, dtype=dtype)
    previous = noise(2, coarse[0] * coarse[1], 5, seed=seed + 9, dtype=dtype)
    options: dict[str, Any] = {"coarse": coarse, "fine": (4, 4), "beta": 0.7, "kind": kind}
    wanted = scaled_spatial_guidance(logits, previous, **options)
    forbidden = forbidding(logits, 1, 4), forbidding(previous, 1, 4)
    found = scaled_spatial_guidance(*forbidden, **options)
    assert torch.equal(found, forbidding(wanted, 1, 4))
    now_alone = scaled_spatial_guidance(forbidden[0], previous, **options)  # forbidden from now on
    assert torch.equal(now_alone, forbidding(wanted, 1, 4))


def test_one_forbidden_cell():
    logits, previous = noise(1, 4, 3), noise(1, 1, 3)
    logits[0, 2, 1] = -INF
    guided = scaled_spatial_guidance(logits, previous, coarse=(1, 1), fine=(2, 2), beta=0.5)
    assert (guided == -INF).nonzero().tolist() == [[0, 2, 1]] and (guided.isfinite().sum() == 11)


@pytest.mark.parametrize("value", [-INF, INF, math.nan])
@pytest.mark.parametrize("coarse", [(2, 2), (4, 4)])
def test_what_was_forbidden_before_and_is_not_now(value: float, coarse: Any):
    previous = noise(1, coarse[0] * coarse[1], 3)
    previous[0, 0, 1] = value
    with pytest.raises(InvalidArgumentError, match="previous hold NaN or infinities where logits are finite"):
        scaled_spatial_guidance(noise(1, 16, 3), previous, coarse=coarse, fine=(4, 4), beta=0.5)


@pytest.mark.parametrize("value", [INF, math.nan])
def test_logits_that_are_none(value: float):
    logits = noise(1, 4, 3)
    logits[0, 3, 0] = value
    with pytest.raises(InvalidArgumentError, match=r"logits hold NaN or \+inf"):
        scaled_spatial_guidance(logits, noise(1, 1, 3), coarse=(1, 1), fine=(2, 2), beta=0.5)


def test_gradients_reach_what_is_allowed():
    logits = forbidding(noise(1, 4, 3), 0).requires_grad_(True)
    previous = forbidding(noise(1, 1, 3), 0).requires_grad_(True)
    guided = scaled_spatial_guidance(logits, previous, coarse=(1, 1), fine=(2, 2), beta=0.5)
    guided.masked_fill(guided == -INF, 0).sum().backward()
    assert logits.grad is not None and previous.grad is not None
    assert logits.grad[..., 0].eq(0).all() and logits.grad[..., 1:].eq(1.5).all()
    assert previous.grad.isfinite().all() and previous.grad[..., 1:].ne(0).all()


def test_numbers_beyond_their_type():
    logits, previous = noise(1, 4, 3, dtype=torch.float16), noise(1, 1, 3, dtype=torch.float16)
    with pytest.raises(InvalidArgumentError, match="beta 1e\\+06 makes numbers beyond float16 of these"):
        scaled_spatial_guidance(logits, previous, coarse=(1, 1), fine=(2, 2), beta=1e6)
    with pytest.raises(InvalidArgumentError, match="scale 1e\\+06 makes numbers beyond float16 of these"):
        classifier_free_guidance(logits, -logits, scale=1e6)


# --- classifier-free guidance ---------------------------------------------------------------------


@pytest.mark.parametrize(("convention", "scale"), CFG)
@pytest.mark.parametrize("seed", range(3))
def test_choices_that_both_branches_forbid(convention: Any, scale: float, seed: int):
    cond, uncond = noise(2, 4, 5, seed=seed), noise(2, 4, 5, seed=seed + 9)
    options: dict[str, Any] = {"scale": scale, "convention": convention}
    wanted = classifier_free_guidance(cond, uncond, **options)
    found = classifier_free_guidance(forbidding(cond, 1, 4), forbidding(uncond, 1, 4), **options)
    assert torch.equal(found, forbidding(wanted, 1, 4))


def test_a_branch_without_weight_does_not_count():
    cond, uncond = forbidding(noise(1, 4, 3), 1), noise(1, 4, 3, seed=1)
    options: dict[str, Any] = {"convention": "interpolate"}
    assert torch.equal(classifier_free_guidance(cond, uncond, scale=0.0, **options), uncond)
    assert classifier_free_guidance(cond, uncond, scale=1.0, **options) is cond


def test_a_mean_of_what_one_branch_forbids():
    """Between 0 and 1 the formula is a geometric mean of probabilities: none, if either is."""
    cond, uncond = noise(1, 4, 3), forbidding(noise(1, 4, 3, seed=1), 1)
    with pytest.raises(InvalidArgumentError, match="uncond hold NaN or infinities where logits are finite"):
        classifier_free_guidance(cond, uncond, scale=2.0)


def test_branches_that_are_none():
    for value in (math.nan, INF):
        for bad in ("cond", "uncond"):
            branches = {"cond": noise(1, 4, 3), "uncond": noise(1, 4, 3, seed=1)}
            branches[bad][0, 0, 0] = value
            with pytest.raises(InvalidArgumentError, match="hold NaN or"):
                classifier_free_guidance(**branches, scale=2.0)


# --- strengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("huge", [1.1e6, 1e7, 1e30, 1e38, 3e38, 1e300])
def test_huge_strengths_are_refused_by_name(huge: float):
    logits, previous = noise(1, 4, 3), noise(1, 1, 3)
    with pytest.raises(InvalidArgumentError, match="beta must be at most 1,000,000; got"):
        scaled_spatial_guidance(logits, previous, coarse=(1, 1), fine=(2, 2), beta=huge)
    with pytest.raises(InvalidArgumentError, match="beta must be at most 1,000,000; got"):
        ScaledSpatialGuidance(huge)
    with pytest.raises(InvalidArgumentError, match=r"beta\[1\] must be at most"):
        ScaledSpatialGuidance([0.0, huge])
    grids = ((1, 1), (2, 2))
    for method in (ClassifierFreeGuidance(lambda step: huge), ScaledSpatialGuidance(lambda step: huge)):
        with pytest.raises(InvalidArgumentError, match=r"\(step 0\) must be at most"):
            method.begin(grids)
    for convention in ("extra", "interpolate"):
        with pytest.raises(InvalidArgumentError, match="scale must be at most"):
            classifier_free_guidance(logits, logits, scale=huge, convention=convention)
        with pytest.raises(InvalidArgumentError, match="scale must be at most"):
            ClassifierFreeGuidance(huge, convention=convention)


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_strengths_are_right(seed: int):
    """The likeliest choice of both guidances together is that of float64."""
    cond, uncond, previous = (noise(1, n, 64, seed=seed + 10 * i) for i, n in enumerate((4, 4, 1)))

    def both(dtype: torch.dtype) -> Tensor:
        combined = classifier_free_guidance(cond.to(dtype), uncond.to(dtype), scale=MOST)
        return scaled_spatial_guidance(
            combined, previous.to(dtype), coarse=(1, 1), fine=(2, 2), beta=MOST, kind="bilinear"
        )

    found, wanted = both(torch.float32), both(torch.float64)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))
