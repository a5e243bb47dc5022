"""The arithmetic that models use by default, against float64: large products, mixed types, few steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.guidance import ClassifierFreeGuidance, GuidanceStep, classifier_free_guidance, prior_operator
from nextscale.guidance.base import compute_dtype
from nextscale.guidance.prior import _FUSED_WORK, spatial_operator
from nextscale.guidance.ssg import ScaledSpatialGuidance, scaled_spatial_guidance

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


LARGE = {  # grids and channels beyond which oneDNN multiplies
    "dense": ((6, 6), (8, 8), 1024),
    "separable": ((16, 16), (32, 32), 64),
    "oblong": ((5, 7), (8, 10), 1024),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("beta", [0.6, 3.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_large_products(name: str, beta: float, batch: int):
    coarse, fine, channels = LARGE[name]
    logits, previous = (noise(batch, g[0] * g[1], channels, seed=i) for i, g in enumerate((fine, coarse)))
    operator = spatial_operator(coarse, fine, "dse", "ortho", torch.float32, CPU)
    columns = operator._columns(previous)
    assert operator.left.numel() * columns.shape[2] >= _FUSED_WORK
    assert (operator.right is not None) == (name == "separable")
    kept = logits.clone(), previous.clone()
    guided = scaled_spatial_guidance(logits, previous, coarse=coarse, fine=fine, beta=beta)
    prior = prior_operator(coarse, fine, dtype=torch.float64) @ previous.double()
    wanted = (1 + beta) * logits.double() - beta * prior
    torch.testing.assert_close(guided.double(), wanted, rtol=1e-5, atol=2e-5)
    assert torch.equal(logits, kept[0]) and torch.equal(previous, kept[1])
    # What a generation does is the same.
    state = ScaledSpatialGuidance(beta).begin((coarse, fine))
    for index, values in enumerate((previous, logits)):
        found = state(GuidanceStep(index, (coarse, fine)), {"cond": values})
    assert torch.equal(found, guided)


# ------------------------------------------------------------------ types


def test_the_type_of_arithmetic():
    half, single, double = (torch.zeros(1, dtype=d) for d in (torch.float16, torch.float32, torch.float64))
    assert compute_dtype(half, half) == compute_dtype(half, single) == torch.float32
    assert compute_dtype(single, double) == compute_dtype(double, half) == torch.float64


@pytest.mark.parametrize("seed", range(3))
def test_one_of_two_is_float64(seed: int):
    """Then so is the arithmetic; the outcome has the type of what is guided."""
    a, b = noise(1, 16, 8, seed=seed), noise(1, 16, 8, seed=seed + 5, dtype=torch.float64)
    for cond, uncond in ((a, b), (a.double(), b.float())):
        exact = 3.1 * cond.double() - 2.1 * uncond.double()
        found = classifier_free_guidance(cond, uncond, scale=2.1)
        assert found.dtype == cond.dtype
        assert torch.equal(found, exact.to(cond.dtype))
    logits, previous = a, b[:, :4]
    guided = scaled_spatial_guidance(logits, previous, coarse=(2, 2), fine=(4, 4), beta=0.7)
    exact = 1.7 * logits.double() - 0.7 * (prior_operator((2, 2), (4, 4), dtype=torch.float64) @ previous)
    assert guided.dtype == torch.float32
    torch.testing.assert_close(guided, exact.float(), rtol=2e-7, atol=1e-9)


# ------------------------------------------------------------------ short schedules


@pytest.mark.parametrize(
    ("steps", "ramp", "wanted"),
    [
        (1, "linear", (0.0,)),
        (1, "linear-hold", (0.0,)),
        (2, "linear", (0.0, 3.0)),
        (2, "linear-hold", (0.0, 0.0)),
        (3, "linear", (0.0, 1.5, 3.0)),
        (3, "linear-hold", (0.0, 1.5, 1.5)),
        (4, "linear-hold", (0.0, 1.0, 2.0, 2.0)),
        (2, "constant", (3.0, 3.0)),
    ],
)
def test_ramps_of_few_steps(steps: int, ramp: Any, wanted: tuple[float, ...]):
    grids = tuple((k + 1, k + 1) for k in range(steps))
    assert ClassifierFreeGuidance(3.0, ramp=ramp).scales(grids) == pytest.approx(wanted)
    neutral = ClassifierFreeGuidance(4.0, convention="interpolate", ramp=ramp).scales(grids)
    assert neutral == pytest.approx(tuple(1 + w for w in wanted))
