"""Figures of features that are none, of statistics that are none, and of tensors of another shape."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale.errors import DataError, InvalidArgumentError
from nextscale.evaluation import comparison
from nextscale.evaluation.blur import detail_fraction
from nextscale.evaluation.comparison import Figure, difference
from nextscale.evaluation.features import FeatureSpace, for_kernel, open_space
from nextscale.evaluation.figures import measure
from nextscale.evaluation.intervals import paired_difference
from nextscale.evaluation.metrics import (
    frechet_distance,
    frechet_infinity,
    inception_score,
    kernel_distance,
    kernel_distance_subsets,
)
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.neighbours import manifold_scores, squared_radii
from nextscale.evaluation.protocol import Protocol, Rules, to_uint8
from nextscale.evaluation.recognition import load_classifier, recognised
from nextscale.evaluation.reference import Reference, measure_reference, open_reference
from nextscale.evaluation.resampling import Profiles, resampled_means
from nextscale.evaluation.shards import Shards
from nextscale.evaluation.spectra import AmplitudeRule, amplitude_ratios

BAD = [math.nan, math.inf, -math.inf]


def rows(count: int = 20, dims: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))


UNIT = Gaussian(torch.zeros(3), torch.eye(3))
Metric = Callable[[Tensor], Any]
METRICS: dict[str, Metric] = {
    "moments": Moments.of,
    "moments in parts": lambda x: Moments(3).update(x),
    "frechet": lambda x: frechet_distance(Moments.of(x).gaussian(), UNIT),
    "infinity": lambda x: frechet_infinity(x, UNIT, [10, 20], torch.arange(20)),
    "kernel, generated": lambda x: kernel_distance(x, rows()),
    "kernel, reference": lambda x: kernel_distance(rows(), x),
    "kernel subsets": lambda x: kernel_distance_subsets(rows(), x, subsets=2, size=5),
    "score": lambda x: inception_score(x, block=None),
    "manifold, generated": lambda x: manifold_scores(x, rows(seed=1)),
    "manifold, reference": lambda x: manifold_scores(rows(seed=1), x),
    "radii": lambda x: squared_radii(x, (3,)),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("row", [0, 13, 19])
def test_features_that_are_none(name: str, value: float, row: int):
    METRICS[name](rows())  # is a figure
    spoiled = rows()
    spoiled[row, 1] = value
    with pytest.raises(InvalidArgumentError, match=f"NaN or infinite in 1 of 20 rows, the first .* {row};"):
        METRICS[name](spoiled)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("shape", [(20,), (20, 3, 1, 1), (20, 3, 2), (), (20, 0)], ids=str)
def test_tensors_of_another_shape(name: str, shape: tuple[int, ...]):
    with pytest.raises(InvalidArgumentError, match=r"must be \(N, [dC]\)"):
        METRICS[name](torch.zeros(shape))


@pytest.mark.parametrize("name", METRICS)
def test_numbers_of_another_kind(name: str):
    with pytest.raises(InvalidArgumentError, match="must be real numbers"):
        METRICS[name](torch.zeros(20, 3, dtype=torch.complex64))


@pytest.mark.parametrize("name", [n for n in METRICS if n not in ("score", "moments", "moments in parts")])
def test_features_too_large_for_their_figures(name: str):
    with pytest.raises(InvalidArgumentError, match=r"NaN or infinite|beyond float64"):
        METRICS[name](rows().double() * 1e160)


# ---------------------------------------------------------------------------- statistics


def covariance(seed: int, dims: int = 6) -> np.ndarray[Any, Any]:
    mix = np.random.default_rng(seed).normal(size=(dims, dims))
    return mix @ mix.T


def above(c: np.ndarray[Any, Any]) -> None:
    c[1, 4] = np.nan


def below(c: np.ndarray[Any, Any]) -> None:
    c[4, 1] = np.inf


def askew(c: np.ndarray[Any, Any]) -> None:
    c[1, 4] += 0.1


WRONG = {
    "above the diagonal": (above, "the covariance has 1 numbers that are NaN or infinite"),
    "below the diagonal": (below, "the covariance has 1 numbers that are NaN or infinite"),
    "askew": (askew, r"the covariance is not symmetric: \((1, 4|4, 1)\) is"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("keys", [("mu", "sigma"), ("mu_s", "sigma_s")], ids=str)
def test_references_with_statistics_that_are_none(wrong: str, keys: tuple[str, str], tmp_path: Path):
    damage, text = WRONG[wrong]
    arrays = {"mu": np.zeros(6), "sigma": np.eye(6), "mu_s": np.zeros(6), "sigma_s": np.eye(6)}
    arrays[keys[1]] = covariance(0)
    np.savez(tmp_path / "good.npz", **arrays)
    assert len(open_reference(tmp_path / "good.npz").statistics) == 2
    damage(arrays[keys[1]])
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=rf"bad.npz: {keys[0]} and {keys[1]} are no statistics: {text}"):
        open_reference(tmp_path / "bad.npz")


def test_other_numbers_of_a_reference(tmp_path: Path):
    good: dict[str, Any] = {"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros((5, 3))}
    path = tmp_path / "r.npz"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"mu": np.array([0, np.nan, 0])}, "the mean has 1 numbers that are NaN"),
        ({"sigma": np.diag([1.0, -0.5, 1])}, "it has the negative variance -0.5, where the largest is 1"),
        ({"features": np.full((5, 3), np.nan)}, "features are NaN or infinite in 5 of 5 rows"),
        ({"features": np.zeros(5)}, r"features must be \(N, d\)"),
        ({"features": np.zeros((5, 4))}, "features have 4 columns, and mu has 3"),
        ({"about": np.array(json.dumps({"count": math.nan}))}, "are said to be of nan pictures"),
        ({"about": np.array(json.dumps({"count": -1}))}, "are said to be of -1 pictures"),
        ({"about": np.array(json.dumps([1]))}, "about is no JSON object"),
    ]
    for changes, text in bad:
        np.savez(path, **{**good, **changes})
        with pytest.raises(DataError, match=rf"r.npz: .*{text}"):
            open_reference(path)
    np.savez(path, **good)
    open_reference(path)


@pytest.mark.parametrize("seed", range(4))
def test_negative_directions_are_found_before_pictures_are_drawn(seed: int, tmp_path: Path):
    """All variances are positive, and yet it is no covariance."""
    values, vectors = np.linalg.eigh(covariance(seed))
    values[0] = -0.05 * values[-1]
    wrong = (vectors * values) @ vectors.T
    assert (wrong.diagonal() > 0).all()
    np.savez(tmp_path / "r.npz", mu=np.zeros(6), sigma=wrong)
    space = open_space("pixels")
    space.name = "inception"
    with pytest.raises(DataError, match=r"r.npz: mu and sigma: the covariance is none: .* negative variance"):
        open_reference(tmp_path / "r.npz").check(space, (32, 32))
    reference = Gaussian(torch.zeros(6), torch.from_numpy(wrong))
    good = Gaussian(torch.zeros(6), torch.from_numpy(covariance(seed)))
    for pair in ((reference, good), (good, reference)):
        with pytest.raises(InvalidArgumentError, match="negative variance"):
            frechet_distance(*pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_rounding_is_no_fault(dtype: torch.dtype, seed: int):
    """Fewer pictures than dimensions, computed in float32 as some programs do."""
    features = rows(30, 200, seed).to(dtype) * 10
    centred = features - features.mean(0)
    computed = Gaussian(features.mean(0), centred.T @ centred / 29)
    exact = Moments.of(features).gaussian()
    assert frechet_distance(computed, exact).value == pytest.approx(0, abs=1e-2)
    assert frechet_distance(exact, computed).value == pytest.approx(0, abs=1e-2)


def test_sets_that_vary_in_different_directions():
    """Nothing but rounding is left of the product of their covariances."""
    a, b = rows(50, 8), rows(50, 8, 1)
    turn = torch.linalg.qr(rows(8, 8, 2).double()).Q
    a[:, 4:], b[:, :4] = 0, 0
    one, other = (Moments.of(x.double() @ turn).gaussian() for x in (a, b))
    total = one.covariance.trace() + other.covariance.trace()
    assert frechet_distance(one, other).covariance_term == pytest.approx(float(total), rel=1e-4)


# ---------------------------------------------------------------------------- intervals and spectra


@pytest.mark.parametrize("value", BAD)
def test_intervals_of_what_is_none(value: float):
    good, bad = rows(), rows(seed=1)
    bad[3, 1] = value
    for arms, name in (((bad, good), "a"), ((good, bad), "b"), (([good, bad], [good, good]), "a")):
        with pytest.raises(InvalidArgumentError, match=f"the rows of arm {name} are NaN or infinite"):
            paired_difference(*arms, replicates=10)
    with pytest.raises(InvalidArgumentError, match="differences of the statistic are NaN or infinite"):
        paired_difference(good, bad.nan_to_num(0, 0, 0), lambda x: value, replicates=10)

    def sometimes(x: Tensor) -> float:
        return value if (x[:, 0] == good[0, 0]).sum() > 1 else 0.0

    with pytest.raises(InvalidArgumentError, match="of the statistic in resamples are NaN or infinite"):
        paired_difference(good, good + 1, sometimes, replicates=50)
    for figure in (Figure(value), Figure(0.0, bad), Figure(0.0, without=bad[:, 1])):
        with pytest.raises(InvalidArgumentError, match="the figure, or what it is made of, are NaN"):
            difference([figure], [Figure(0.0, good, without=good[:, 0])])
    with pytest.raises(InvalidArgumentError, match="the rows are NaN or infinite in 1 of 20"):
        resampled_means(bad, 10)
    with pytest.raises(InvalidArgumentError, match="the rows are NaN or infinite in 1 of 20"):
        amplitude_ratios([good.abs(), bad.abs()], None, 32, replicates=10)
    with pytest.raises(InvalidArgumentError, match="the rows are NaN or infinite in 1 of 20"):
        amplitude_ratios([good.abs()], Profiles(bad.abs()), 32, replicates=10)


@pytest.mark.parametrize("value", BAD)
def test_pictures_that_are_none(value: float):
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures[2, 0, 5, 5] = value
    classifier = load_classifier(device="cpu")
    looks: list[Callable[[Tensor], Any]] = [
        to_uint8,
        AmplitudeRule(),
        lambda x: detail_fraction(x, 1.0),
        lambda x: recognised(classifier, x, [0] * 4),
    ]
    for look in looks:
        with pytest.raises(InvalidArgumentError, match=r"pictures are NaN or infinite in 1 of 4 .* row 2;"):
            look(pictures)


# ---------------------------------------------------------------------------- the kernel of pixels


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return open_space("pixels")


def pixel_protocol(space: FeatureSpace, count: int) -> Protocol:
    rules = Rules(kernel_subsets=3, kernel_size=20, smallest=20)
    return Protocol(count, (4, 4), {"name": "m"}, {**space.description(), "classes": None}, rules=rules)


@pytest.mark.parametrize("brightness", [0, 40])
def test_the_kernel_distance_of_pixels(
    space: FeatureSpace, pictures: Tensor, brightness: int, tmp_path: Path
):
    """On the scale from 0 to 1, in both places that compute it; of 0 to 255 it would be 10^12."""
    pictures = pictures[:, :, 14:18, 14:18]
    real, made = pictures[:130], (pictures[130:].int() + brightness).clamp(max=255).to(torch.uint8)

    class Held:
        size = (4, 4)

        def __init__(self, held: Tensor) -> None:
            self.held = held

        def __len__(self) -> int:
            return len(self.held)

        def read(self, start: int, stop: int) -> Tensor:
            return self.held[start:stop]

    shards = Shards(tmp_path / "made", len(made))
    shards.fill(Held(made), space)
    reference = Reference.of_images("real", Held(real))
    measured = measure_reference(reference, space, Shards(tmp_path / "real", len(real)))
    protocol = pixel_protocol(space, len(made))
    figures = measure(shards, measured, protocol)
    unit = [x.flatten(1).double() / 255 for x in (made, real)]
    wanted = kernel_distance_subsets(*unit, subsets=3, size=20, seed=2020).mean()
    assert figures.scores["kd"] == pytest.approx(float(wanted), rel=1e-5)
    assert abs(figures.scores["kd"]) < 1
    assert figures.details["kd_of"] == "features / 255"
    side = comparison.RealSide.of(measured, protocol)
    assert side is not None
    scaled = [for_kernel(x, protocol.features) for x in (shards.tensor("features"), measured.features)]
    assert comparison._kernel(*scaled, side.kernel).value == pytest.approx(kernel_distance(*unit), rel=1e-5)
    found = comparison.arm_figures(shards, measured, protocol)
    assert found["kd"].value == pytest.approx(kernel_distance(*unit), rel=1e-5)


def test_other_spaces_are_taken_as_they_are():
    assert torch.equal(for_kernel(rows(), {"name": "inception"}), rows())
    assert "kernel_divisor" not in open_space("cifar10-classifier", device="cpu").description()
