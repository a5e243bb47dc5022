"""Fréchet distance, kernel distance, Inception Score: golden cases, and what holds for any features."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.metrics import (
    frechet_distance,
    frechet_error,
    frechet_infinity,
    inception_score,
    kernel_distance,
    kernel_distance_subsets,
)
from nextscale.evaluation.moments import Gaussian, Moments


def fd(generated: Tensor, reference: Tensor) -> float:
    return frechet_distance(Moments.of(generated).gaussian(), Moments.of(reference).gaussian()).value


@st.composite
def feature_sets(draw: st.DrawFn, least: int = 2, count: int = 1) -> list[Tensor]:
    """Sets of float32 features of the same dimensions; some correlated, some of low rank, some far off."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dims = draw(st.integers(1, 12))
    rank = draw(st.integers(1, dims))
    shift = draw(st.sampled_from([0.0, 1.0, 30.0]))
    mix = torch.randn(rank, dims, generator=generator)
    return [
        torch.randn(draw(st.integers(least, 40)), rank, generator=generator) @ mix + shift
        for _ in range(count)
    ]


# ---------------------------------------------------------------------------- Fréchet distance


def test_frechet_golden(tensors: dict[str, Tensor], expected: dict[str, Any]):
    ref, gen, wanted = tensors["ref"], tensors["gen"], expected["fid"]
    for rows, values, rtol in [
        ((ref, gen), wanted, wanted["rtol"]),
        ((ref[:40], gen[:36]), wanted["rank_deficient"], wanted["rtol_rank_deficient"]),
    ]:
        reference, generated = (Moments.of(x).gaussian() for x in rows)
        for pair in ((generated, reference), (reference, generated)):
            found = frechet_distance(*pair)
            assert found.value == pytest.approx(values["value"], rel=rtol)
            assert found.mean_term == pytest.approx(values["mean_term"], rel=rtol)
            assert found.covariance_term == pytest.approx(values["covariance_term"], rel=rtol)
    same = Moments.of(ref).gaussian()
    assert frechet_distance(same, same).value == pytest.approx(0, abs=1e-10)


def test_frechet_infinity_golden(tensors: dict[str, Tensor], expected: dict[str, Any]):
    wanted = expected["fid"]["infinity"]
    reference = Moments.of(tensors["ref"]).gaussian()
    found = frechet_infinity(tensors["gen"], reference, wanted["sizes"], tensors["fid_inf_perm"])
    rtol = expected["fid"]["rtol"]
    assert found.values == pytest.approx(wanted["fid_at_size"], rel=rtol)
    assert found.intercept == pytest.approx(wanted["intercept"], rel=rtol)
    assert found.slope == pytest.approx(wanted["slope"], rel=rtol)
    for sizes in ([280], [100, 281], [200, 100], [1, 100], [100, 100]):
        with pytest.raises(InvalidArgumentError, match="sizes must be increasing"):
            frechet_infinity(tensors["gen"], reference, sizes, tensors["fid_inf_perm"])


@given(feature_sets(), st.floats(-20, 20))
def test_a_shift_costs_its_squared_length(sets: list[Tensor], shift: float):
    (rows,) = sets
    rows = rows.double()
    scale = 1e-7 * (1 + float(rows.square().sum(1).mean()) + shift**2 * rows.shape[1])
    assert fd(rows, rows) == pytest.approx(0, abs=scale)
    assert fd(rows + shift, rows) == pytest.approx(shift**2 * rows.shape[1], abs=scale)


@given(feature_sets(count=2))
def test_frechet_is_symmetric_and_independent_of_order_and_rotation(sets: list[Tensor]):
    a, b = (x.double() for x in sets)
    value = fd(a, b)
    close = {"rel": 1e-6, "abs": 1e-6 * (1 + float(a.square().sum(1).mean()))}
    assert value >= -close["abs"]
    assert fd(b, a) == pytest.approx(value, **close)
    assert fd(a[torch.randperm(len(a))], b.flip(0)) == pytest.approx(value, **close)
    rotation = torch.linalg.qr(torch.randn(a.shape[1], a.shape[1], dtype=torch.float64)).Q
    assert fd(a @ rotation, b @ rotation) == pytest.approx(value, **close)


def test_one_dimension_by_hand():
    a, b = (
        Gaussian(torch.tensor([1.0]), torch.tensor([[4.0]])),
        Gaussian(torch.tensor([3.0]), torch.tensor([[9.0]])),
    )
    found = frechet_distance(a, b)  # (1 - 3)^2 and (2 - 3)^2
    assert (found.mean_term, found.covariance_term) == (4, pytest.approx(1))


@given(feature_sets(), st.lists(st.integers(0, 40), max_size=4), st.randoms())
def test_streaming_equals_batch(sets: list[Tensor], cuts: list[int], random: Any):
    (rows,) = sets
    parts = [Moments.of(p) for p in rows.tensor_split(sorted(min(c, len(rows)) for c in cuts))]
    random.shuffle(parts)
    merged, whole = Moments.merged(parts), Moments.of(rows)
    scale = max(1.0, float(whole.scatter.abs().max()))
    assert merged.count == whole.count
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-10, atol=1e-10)
    assert torch.allclose(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-10 * scale)
    assert torch.allclose(whole.gaussian().covariance, torch.cov(rows.double().T).view(whole.scatter.shape))


def test_moments_far_from_zero_keep_their_digits():
    rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double()
    far = Moments.of(rows + 1e6, block=7).gaussian().covariance
    assert torch.allclose(far, torch.cov(rows.T), rtol=1e-8)


def test_moments_refuse_what_does_not_fit():
    with pytest.raises(InvalidArgumentError, match="needs at least 2 images, got 1"):
        Moments.of(torch.zeros(1, 3)).gaussian()
    with pytest.raises(InvalidArgumentError, match="4 and 3 dimensions"):
        Moments(3).merge(Moments(4))
    with pytest.raises(InvalidArgumentError, match=r"3 and 4 dimensions.*same feature space"):
        fd(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(InvalidArgumentError, match=r"\(3,\) and \(2, 2\)"):
        Gaussian(torch.zeros(3), torch.zeros(2, 2))


def test_jackknife_error_is_the_spread_over_independent_samples():
    generator = torch.Generator().manual_seed(0)
    reference = Gaussian(torch.zeros(8), torch.eye(8))
    samples = [1.2 * torch.randn(600, 8, generator=generator) + 0.1 for _ in range(60)]
    values = torch.tensor([frechet_distance(Moments.of(s).gaussian(), reference).value for s in samples])
    errors = [frechet_error([Moments.of(g) for g in s.chunk(10)], reference) for s in samples]
    assert sum(errors) / len(errors) == pytest.approx(float(values.std()), rel=0.25)
    with pytest.raises(InvalidArgumentError, match="at least 2 groups, got 1"):
        frechet_error([Moments.of(samples[0])], reference)


# ---------------------------------------------------------------------------- kernel distance


def test_kernel_golden(tensors: dict[str, Tensor], expected: dict[str, Any]):
    gen, ref, wanted = tensors["gen"], tensors["ref"], expected["kid"]
    rtol = wanted["rtol"]
    for block in (2048, 64):
        assert kernel_distance(gen, ref, block=block) == pytest.approx(wanted["full_unbiased"], rel=rtol)
    size, count = wanted["subset_size"], wanted["subsets"]
    found = kernel_distance_subsets(gen, ref, subsets=count, size=size, seed=2020)
    assert found.tolist() == pytest.approx(wanted["subset_values"], rel=rtol)
    assert float(found.mean()) == pytest.approx(wanted["subset_mean"], rel=rtol)
    assert float(found.std(correction=0)) == pytest.approx(wanted["subset_std_ddof0"], rel=rtol)
    for i in range(count):
        rows = gen[tensors["kid_idx_gen"][i]], ref[tensors["kid_idx_ref"][i]]
        assert kernel_distance(*rows) == pytest.approx(float(found[i]), rel=1e-12)


@given(feature_sets(count=2), st.sampled_from([9, 16, 64]))
def test_kernel_distance_is_independent_of_order_and_blocks(sets: list[Tensor], block: int):
    a, b = sets
    value = kernel_distance(a, b)
    close = {"rel": 1e-9, "abs": 1e-9 * (2 + float(a.square().sum(1).max() + b.square().sum(1).max())) ** 3}
    assert kernel_distance(b, a, block=block) == pytest.approx(value, **close)
    assert kernel_distance(a.flip(0), b[torch.randperm(len(b))], block=block) == pytest.approx(value, **close)


def test_kernel_distance_refuses_too_few():
    rows = torch.zeros(10, 3)
    with pytest.raises(InvalidArgumentError, match="at least 2 images a side"):
        kernel_distance(rows[:1], rows)
    with pytest.raises(InvalidArgumentError, match="100 subsets of 11 images"):
        kernel_distance_subsets(rows, rows, size=11)
    with pytest.raises(InvalidArgumentError, match="with the same d"):
        kernel_distance(rows, rows[:, :2])


# ---------------------------------------------------------------------------- Inception Score


def test_inception_score_golden(tensors: dict[str, Tensor], expected: dict[str, Any]):
    logits, wanted = tensors["logits"], expected["inception_score"]
    rtol = wanted["rtol"]
    for name, options in {
        "single_split": {"block": None},
        "split_size_50": {"block": 50},
        "split_size_120": {"block": 120},
        "seven_splits": {"splits": 7},
    }.items():
        found = inception_score(logits, **options)
        assert found.per_block == pytest.approx(wanted[name]["per_split"], rel=rtol), name
        assert found.mean == pytest.approx(wanted[name]["mean"], rel=rtol)
        if "std_ddof0" in wanted[name]:
            assert found.std == pytest.approx(wanted[name]["std_ddof0"], rel=rtol, abs=1e-12)
    by_class = logits[logits.argmax(1).argsort(stable=True)]
    trap = wanted["sorted_by_top_class_split_size_50"]["mean"]
    assert inception_score(by_class, block=50).mean == pytest.approx(trap, rel=rtol)
    assert inception_score(by_class, block=50, seed=0).mean == pytest.approx(
        wanted["split_size_50"]["mean"], rel=0.05
    )
    extreme = inception_score(tensors["logits_extreme"], block=None).mean
    assert extreme == pytest.approx(wanted["extreme"]["mean"], rel=rtol)


@given(st.integers(1, 40), st.integers(1, 12), st.floats(0, 50), st.integers(0, 2**31))
def test_inception_score_is_between_one_and_the_number_of_classes(
    n: int, classes: int, scale: float, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator)
    score = inception_score(logits, block=None).mean
    assert 1 - 1e-9 <= score <= min(n, classes) + 1e-9
    assert inception_score(logits.flip(0) + 5, block=None, seed=seed).mean == pytest.approx(score, rel=1e-4)


def test_inception_score_of_certain_and_uncertain_pictures():
    assert inception_score(1000 * torch.eye(7), block=None).mean == pytest.approx(7)
    assert inception_score(torch.zeros(9, 7), block=4).per_block == pytest.approx([1, 1, 1])
    for options in ({"block": 0}, {"splits": 0}, {"splits": 10}):
        with pytest.raises(InvalidArgumentError, match="block"):
            inception_score(torch.zeros(9, 7), **options)
    assert math.isfinite(inception_score(torch.full((1, 3), -1e30)).mean)
