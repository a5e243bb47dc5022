"""Gaussian blur: the golden case, scipy's filter, shares of detail, and the curve of a metric."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.blur import (
    METRIC_SIGMAS,
    BlurredImages,
    blur_curve,
    blurred,
    detail_fraction,
    detail_fractions,
    gaussian_blur,
    gaussian_kernel,
)
from nextscale.evaluation.images import CalledImages
from nextscale.evaluation.moments import Gaussian, Moments


def test_golden_blur(expected: dict[str, Any], tensors: dict[str, Tensor]):
    case, images = expected["blur"], tensors["image_gen"].permute(0, 3, 1, 2)
    assert len(gaussian_kernel(case["sigma"])) == 2 * case["radius"] + 1
    found = gaussian_blur(images, case["sigma"])
    wanted = tensors["image_gen_blur_1p2"].permute(0, 3, 1, 2).double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=case["atol_image"])
    share = torch.tensor(case["detail_fraction"], dtype=torch.float64)
    torch.testing.assert_close(detail_fraction(images, case["sigma"]), share, rtol=case["rtol"], atol=0)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.15, 4), st.integers(0, 2**31))
def test_it_is_scipys_filter(height: int, width: int, sigma: float, seed: int):
    x = np.random.default_rng(seed).normal(size=(2, height, width))
    wanted = ndimage.gaussian_filter(x, (0, sigma, sigma), mode="reflect")
    torch.testing.assert_close(gaussian_blur(torch.from_numpy(x), sigma), torch.from_numpy(wanted))


def test_nothing_is_lost_or_made():
    flat = torch.full((2, 3, 7, 5), 93, dtype=torch.uint8)
    torch.testing.assert_close(gaussian_blur(flat, 2.0), flat.double())
    assert detail_fraction(flat, 2.0).tolist() == [0, 0]
    assert float(gaussian_kernel(0.8).sum()) == pytest.approx(1)
    noise = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert blurred(noise, 0.0) is noise
    torch.testing.assert_close(gaussian_blur(noise, 0.0), noise.double())
    for sigma in (-1.0, math.inf, math.nan):
        with pytest.raises(InvalidArgumentError, match="sigma is a number of pixels"):
            gaussian_kernel(sigma)


def test_the_detail_of_a_wave_is_what_the_low_pass_leaves():
    x = torch.arange(64)
    for cycles in (2, 6, 12):
        wave = torch.cos(2 * math.pi * cycles * (x + 0.5) / 128)  # continues itself at mirrors
        image = (100 * wave).expand(1, 3, 64, 64)
        kept = math.exp(-2 * math.pi**2 * 1.5**2 * (cycles / 128) ** 2)
        assert float(detail_fraction(image, 1.5)) == pytest.approx(1 - kept, rel=0.01)
    assert detail_fractions(image).shape == (1, 3)


def test_blurred_pictures_are_rounded(pictures: Tensor):
    images = BlurredImages(CalledImages(lambda rows: pictures[rows], 260, (32, 32)), 0.75)
    assert (len(images), images.size) == (260, (32, 32))
    wanted = (gaussian_blur(pictures[3:5], 0.75) + 0.5).floor().to(torch.uint8)
    assert torch.equal(images.read(3, 5), wanted)


def curve_of(extra: float, groups: int = 10, count: int = 600) -> Any:
    """Features with a coordinate that blur shrinks; the reference has 1 there, the pictures more or less."""
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 0] *= 1 + extra
    shrunk = {s: rows * torch.tensor([1 - 0.3 * s, 1, 1, 1]) for s in METRIC_SIGMAS}
    parts = {s: [Moments.of(r[i::groups]) for i in range(groups)] for s, r in shrunk.items()}
    return blur_curve(parts, Gaussian(torch.zeros(4), torch.eye(4)))


def test_surplus_detail_has_its_minimum_at_a_blur():
    surplus, fitting = curve_of(0.4), curve_of(0.0)
    assert surplus.best == 1.0 and fitting.best == 0.0
    assert surplus.changes[0] == 0 and min(surplus.changes) < 0 < min(fitting.changes[1:])
    assert surplus.errors is not None and surplus.errors[0] == 0
    # The change is several standard errors large, and these fall with the root of the number.
    assert surplus.changes[4] < -4 * surplus.errors[4]
    more = curve_of(0.4, count=9600)
    assert 2 < surplus.errors[4] / more.errors[4] < 8  # 4, give or take


def test_few_pictures_have_no_errors():
    assert curve_of(0.4, groups=2, count=4).errors is None


def test_the_matched_control_has_a_reference_per_blur():
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    halved = rows / 2
    groups = {
        0.0: [Moments.of(rows[i::4]) for i in range(4)],
        1.0: [Moments.of(halved[i::4]) for i in range(4)],
    }
    unblurred = Moments.of(rows).gaussian()
    alone = blur_curve(groups, unblurred)
    control = blur_curve(groups, {0.0: unblurred, 1.0: Moments.of(halved).gaussian()})
    assert alone.values[1] > 0.5 and abs(control.values[1]) < 1e-9


def test_a_curve_needs_its_start():
    groups = {0.5: [Moments.of(torch.rand(5, 2))] * 2}
    with pytest.raises(InvalidArgumentError, match="the curve starts at sigma 0"):
        blur_curve(groups, Gaussian(torch.zeros(2), torch.eye(2)))
    with pytest.raises(InvalidArgumentError, match="the same groups, at least 2"):
        blur_curve({0.0: groups[0.5][:1]}, Gaussian(torch.zeros(2), torch.eye(2)))
