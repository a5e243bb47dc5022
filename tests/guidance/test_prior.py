"""The spatial priors against their definition, computed with scipy.fft and torch's own interpolation."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance import NORMS, PRIOR_KINDS, prior_operator, spatial_prior
from nextscale.guidance import prior as prior_module

COMBINATIONS = [
    ("nearest", "ortho"),
    ("bilinear", "ortho"),
    *itertools.product(("dct", "dse"), ("ortho", "forward", "backward")),
]


def reference(previous: Tensor, coarse, fine, kind="dse", norm="ortho") -> Tensor:
    """The prior by its definition, in float64. previous: (h*w, C)."""
    channels = previous.shape[-1]
    grid = previous.double().T.reshape(1, channels, *coarse)
    if tuple(coarse) == tuple(fine):
        result = grid
    elif kind == "nearest":
        result = F.interpolate(grid, size=tuple(fine), mode="nearest-exact")
    else:
        up = F.interpolate(grid, size=tuple(fine), mode="bilinear", align_corners=False)
        result = up
        if kind != "bilinear":
            spectrum = fft.dctn(up.numpy(), type=2, axes=(2, 3), norm=norm)
            if kind == "dct":
                spectrum[:] = 0.0
            low = fft.dctn(grid.numpy(), type=2, axes=(2, 3), norm=norm)
            spectrum[:, :, : coarse[0], : coarse[1]] = low
            result = torch.from_numpy(fft.idctn(spectrum, type=2, axes=(2, 3), norm=norm))
    return result.reshape(channels, -1).T


def random_map(grid, channels=3, dtype=torch.float64, seed=0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(grid[0] * grid[1], channels, dtype=torch.float64, generator=generator).to(dtype)


def error(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape
    return float((result.double() - expected).abs().max())


def axis_pairs(limit: int):
    return [(n, m) for n in range(1, limit + 1) for m in range(n, limit + 1)]


# --- agreement with the definition ----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "norm"), COMBINATIONS)
def test_square_grids_up_to_16(kind, norm):
    for n, m in axis_pairs(16):
        coarse, fine, previous = (n, n), (m, m), random_map((n, n))
        expected = reference(previous, coarse, fine, kind, norm)
        matrix = prior_operator(coarse, fine, kind, norm=norm, dtype=torch.float64)
        assert error(matrix @ previous, expected) < 1e-12, (coarse, fine)
        result = spatial_prior(previous, coarse=coarse, fine=fine, kind=kind, norm=norm)
        assert error(result, expected) < 1e-12, (coarse, fine)
        single = spatial_prior(previous.float(), coarse=coarse, fine=fine, kind=kind, norm=norm)
        assert error(single, reference(previous.float(), coarse, fine, kind, norm)) < 1e-5, (coarse, fine)


def test_every_pair_of_rectangular_grids_up_to_9():
    norms = itertools.cycle(NORMS)
    for (h_coarse, h_fine), (w_coarse, w_fine) in itertools.product(axis_pairs(9), axis_pairs(9)):
        coarse, fine, norm = (h_coarse, w_coarse), (h_fine, w_fine), next(norms)
        previous = random_map(coarse, channels=2)
        result = spatial_prior(previous, coarse=coarse, fine=fine, norm=norm)
        assert error(result, reference(previous, coarse, fine, "dse", norm)) < 1e-12, (coarse, fine, norm)


@pytest.mark.parametrize(("kind", "norm"), COMBINATIONS)
def test_random_rectangular_grids_up_to_64_by_48(kind, norm):
    draw = random.Random(f"{kind} {norm}")
    pairs = [((48, 36), (64, 48)), ((1, 1), (64, 48)), ((64, 47), (64, 48)), ((63, 48), (64, 48))]
    for _ in range(40):
        fine = draw.randint(1, 64), draw.randint(1, 48)
        pairs.append(((draw.randint(1, fine[0]), draw.randint(1, fine[1])), fine))
    for coarse, fine in pairs:
        previous = random_map(coarse)
        expected = reference(previous, coarse, fine, kind, norm)
        result = spatial_prior(previous, coarse=coarse, fine=fine, kind=kind, norm=norm)
        assert error(result, expected) < 1e-12, (coarse, fine)
        single = spatial_prior(previous.float(), coarse=coarse, fine=fine, kind=kind, norm=norm)
        assert error(single, reference(previous.float(), coarse, fine, kind, norm)) < 1e-5, (coarse, fine)


def test_nearest_decides_ties_as_torch_does():
    for n, m in axis_pairs(64):
        cells = torch.arange(n, dtype=torch.float64)
        # The 2-D form: torch's own 1-D form places some ties differently.
        expected = F.interpolate(cells.reshape(1, 1, n, 1), size=(m, 1), mode="nearest-exact").flatten()
        matrix = prior_operator((n, 1), (m, 1), "nearest", dtype=torch.float64)
        assert torch.equal(matrix @ cells, expected), (n, m)


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_dense_and_separable_forms_agree(kind, monkeypatch):
    coarse, fine, previous = (5, 6), (9, 8), random_map((5, 6)).expand(3, -1, -1)
    expected = torch.stack([reference(row, coarse, fine, kind) for row in previous])
    forms = []
    for advantage in (math.inf, 0.0):
        monkeypatch.setattr(prior_module, "_DENSE_ADVANTAGE", advantage)
        prior_module.spatial_operator.cache_clear()
        operator = prior_module.spatial_operator(
            coarse, fine, kind, "ortho", torch.float64, torch.device("cpu")
        )
        forms.append(operator.right is None)
        assert error(operator.apply(previous), expected) < 1e-13
        logits = torch.stack([random_map(fine, seed=seed) for seed in (1, 2, 3)])
        guided = operator.accumulate(logits, previous, 0.7)
        assert error(guided, logits + 0.7 * (logits - expected)) < 1e-13
    assert forms == [True, False]
    prior_module.spatial_operator.cache_clear()


def test_large_grids_use_the_separable_form_and_small_ones_the_dense_form():
    def is_dense(coarse, fine):
        operator = prior_module.spatial_operator(
            coarse, fine, "dse", "ortho", torch.float32, torch.device("cpu")
        )
        return operator.right is None

    assert is_dense((6, 6), (8, 8))
    assert not is_dense((48, 48), (64, 64))


# --- properties -----------------------------------------------------------------------------------


@st.composite
def grid_pairs(draw, limit=12):
    fine = draw(st.integers(1, limit)), draw(st.integers(1, limit))
    coarse = draw(st.integers(1, fine[0])), draw(st.integers(1, fine[1]))
    return coarse, fine


kinds, norms = st.sampled_from(PRIOR_KINDS), st.sampled_from(NORMS)
numbers = st.floats(-10, 10, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(grid_pairs(), kinds, norms, numbers, numbers, st.integers(0, 2**20))
def test_linearity(grids, kind, norm, a, b, seed):
    coarse, fine = grids
    x, y = random_map(coarse, seed=seed), random_map(coarse, seed=seed + 1)

    def prior(values):
        return spatial_prior(values, coarse=coarse, fine=fine, kind=kind, norm=norm)

    assert error(prior(a * x + b * y), a * prior(x) + b * prior(y)) < 1e-11


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), kinds, norms)
def test_equal_grids_give_the_identity_exactly(height, width, kind, norm):
    grid = height, width
    previous = random_map(grid, dtype=torch.float32)
    result = spatial_prior(previous, coarse=grid, fine=grid, kind=kind, norm=norm)
    assert torch.equal(result, previous)
    assert result.data_ptr() != previous.data_ptr()
    assert torch.equal(prior_operator(grid, grid, kind, norm=norm), torch.eye(height * width))


@settings(max_examples=60, deadline=None)
@given(grid_pairs(), kinds, numbers)
def test_constants_survive_under_forward(grids, kind, value):
    coarse, fine = grids
    previous = torch.full((coarse[0] * coarse[1], 2), value, dtype=torch.float64)
    result = spatial_prior(previous, coarse=coarse, fine=fine, kind=kind, norm="forward")
    assert error(result, torch.full_like(result, value)) < 1e-12


@settings(max_examples=60, deadline=None)
@given(grid_pairs(), st.sampled_from(("ortho", "backward")))
def test_constants_shrink_with_the_area_under_the_other_norms(grids, norm):
    coarse, fine = grids
    ratio = math.prod(coarse) / math.prod(fine)
    expected = math.sqrt(ratio) if norm == "ortho" else ratio
    matrix = prior_operator(coarse, fine, "dse", norm=norm, dtype=torch.float64)
    assert error(matrix.sum(1), torch.full((math.prod(fine),), expected, dtype=torch.float64)) < 1e-12


@settings(max_examples=60, deadline=None)
@given(grid_pairs(), st.sampled_from(("dct", "dse")), st.integers(0, 2**20))
def test_ortho_copies_the_low_block_and_its_energy(grids, kind, seed):
    coarse, fine = grids
    previous = random_map(coarse, channels=1, seed=seed)
    prior = spatial_prior(previous, coarse=coarse, fine=fine, kind=kind, norm="ortho")
    low = fft.dctn(previous.reshape(coarse).numpy(), norm="ortho")
    spectrum = fft.dctn(prior.reshape(fine).numpy(), norm="ortho")
    block = spectrum[: coarse[0], : coarse[1]]
    assert abs(block - low).max() < 1e-12
    assert float((block**2).sum()) == pytest.approx(float(previous.square().sum()), rel=1e-12)
    if kind == "dct":
        assert float(prior.square().sum()) == pytest.approx(float(previous.square().sum()), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(grid_pairs(), kinds, norms)
def test_transposing_the_grid_transposes_the_prior(grids, kind, norm):
    coarse, fine = grids
    previous = random_map(coarse, channels=1)
    turned = previous.reshape(coarse).T.reshape(-1, 1)
    straight = spatial_prior(previous, coarse=coarse, fine=fine, kind=kind, norm=norm)
    across = spatial_prior(turned, coarse=coarse[::-1], fine=fine[::-1], kind=kind, norm=norm)
    assert error(across.reshape(fine[::-1]).T, straight.reshape(fine)) < 1e-12


# --- shapes, types, devices -----------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (0,)])
def test_leading_axes(leading):
    previous = torch.randn(*leading, 6, 4, dtype=torch.float64)
    result = spatial_prior(previous, coarse=(2, 3), fine=(4, 5))
    assert result.shape == (*leading, 20, 4)
    for row, prior in zip(previous.reshape(-1, 6, 4), result.reshape(-1, 20, 4), strict=True):
        assert error(prior, reference(row, (2, 3), (4, 5))) < 1e-13


@pytest.mark.parametrize("fine", [(4, 5), (64, 48)])
def test_empty_batch_and_no_channels(fine):
    assert spatial_prior(torch.zeros(0, 6, 4), coarse=(2, 3), fine=fine).shape == (0, math.prod(fine), 4)
    assert spatial_prior(torch.zeros(2, 6, 0), coarse=(2, 3), fine=fine).shape == (2, math.prod(fine), 0)


def test_bit_logits_have_their_cells_along_axis_1():
    previous = torch.randn(2, 6, 16, 2, dtype=torch.float64)
    result = spatial_prior(previous, coarse=(2, 3), fine=(4, 5))
    assert result.shape == (2, 20, 16, 2)
    flat = spatial_prior(previous.flatten(2), coarse=(2, 3), fine=(4, 5))
    assert torch.equal(result.flatten(2), flat)


def test_an_ambiguous_axis_is_an_error_until_named():
    previous = torch.randn(2, 16, 16, 2)
    with pytest.raises(GridError, match="position_dim"):
        spatial_prior(previous, coarse=(4, 4), fine=(5, 5))
    assert spatial_prior(previous, coarse=(4, 4), fine=(5, 5), position_dim=1).shape == (2, 25, 16, 2)
    assert spatial_prior(previous, coarse=(4, 4), fine=(5, 5), position_dim=-2).shape == (2, 16, 25, 2)
    assert torch.equal(spatial_prior(previous, coarse=(4, 4), fine=(4, 4)), previous)


def test_a_four_axis_tensor_with_more_than_two_channels_is_never_taken_for_bits():
    with pytest.raises(GridError, match="second last"):
        spatial_prior(torch.randn(2, 16, 8, 3), coarse=(4, 4), fine=(5, 5))


@pytest.mark.parametrize("position_dim", [0, 1, 2, -1])
def test_any_axis_can_count_the_cells(position_dim):
    previous = torch.randn(6, 6, 6, dtype=torch.float64)
    result = spatial_prior(previous, coarse=(2, 3), fine=(4, 3), position_dim=position_dim)
    moved = spatial_prior(previous.movedim(position_dim, -2), coarse=(2, 3), fine=(4, 3))
    assert error(result, moved.movedim(-2, position_dim)) < 1e-14


def test_tensors_that_are_not_contiguous():
    previous = torch.randn(4, 6, 2, dtype=torch.float64).transpose(0, 2)
    result = spatial_prior(previous, coarse=(2, 3), fine=(4, 5))
    assert torch.equal(result, spatial_prior(previous.contiguous(), coarse=(2, 3), fine=(4, 5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_half_precision_is_computed_in_float32(dtype, kind):
    previous = random_map((3, 4), dtype=dtype)
    result = spatial_prior(previous, coarse=(3, 4), fine=(7, 5), kind=kind)
    assert result.dtype == dtype
    if dtype.itemsize == 2:
        exact = spatial_prior(previous.float(), coarse=(3, 4), fine=(7, 5), kind=kind)
        assert torch.equal(result, exact.to(dtype))


def test_autocast_changes_nothing_even_with_a_cold_cache():
    previous = random_map((3, 4), dtype=torch.float32)
    expected = spatial_prior(previous, coarse=(3, 4), fine=(7, 5))
    prior_module.spatial_operator.cache_clear()
    prior_module._terms.cache_clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spatial_prior(previous, coarse=(3, 4), fine=(7, 5)), expected)


def test_a_cache_filled_in_inference_mode_serves_gradients_later():
    prior_module.spatial_operator.cache_clear()
    prior_module._terms.cache_clear()
    with torch.inference_mode():
        spatial_prior(torch.randn(6, 2), coarse=(2, 3), fine=(3, 4))
        assert not prior_operator((2, 3), (3, 4)).is_inference()
    previous = torch.randn(6, 2, requires_grad=True)
    spatial_prior(previous, coarse=(2, 3), fine=(3, 4)).sum().backward()
    expected = prior_operator((2, 3), (3, 4)).sum(0).unsqueeze(1).expand(-1, 2)
    assert error(previous.grad, expected.double()) < 1e-6


def test_default_device_and_dtype_are_left_alone():
    prior_module.spatial_operator.cache_clear()
    prior_module._terms.cache_clear()
    with torch.device("meta"):
        assert prior_operator((2, 2), (3, 3)).device.type == "cpu"
    assert prior_operator((2, 2), (3, 3), device="meta").shape == (9, 4)
    assert spatial_prior(torch.empty(2, 4, 3, device="meta"), coarse=(2, 2), fine=(3, 3)).shape == (2, 9, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_operator_is_rounded_once_from_float64(dtype):
    exact = prior_operator((3, 5), (6, 7), dtype=torch.float64)
    assert torch.equal(prior_operator((3, 5), (6, 7), dtype=dtype), exact.to(dtype))


@pytest.mark.parametrize("fine", [(2, 2), (3, 4)])
def test_a_changed_result_does_not_reach_the_cache(fine):
    first = prior_operator((2, 2), fine)
    kept = first.clone()
    first.zero_()
    assert torch.equal(prior_operator((2, 2), fine), kept)
    previous = torch.randn(4, 2)
    expected = spatial_prior(previous, coarse=(2, 2), fine=fine)
    spatial_prior(previous, coarse=(2, 2), fine=fine).zero_()
    assert torch.equal(spatial_prior(previous, coarse=(2, 2), fine=fine), expected)


def test_the_caches_are_bounded():
    assert prior_module.spatial_operator.cache_info().maxsize is not None
    assert prior_module._terms.cache_info().maxsize is not None


def test_grids_may_be_lists():
    assert torch.equal(prior_operator([2, 3], [4, 5]), prior_operator((2, 3), (4, 5)))


def test_inputs_are_not_modified():
    previous = torch.randn(2, 6, 3)
    before = previous.clone()
    for kind in PRIOR_KINDS:
        spatial_prior(previous, coarse=(2, 3), fine=(5, 5), kind=kind)
    assert torch.equal(previous, before)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fine", [(1, 4), (4, 2), (1, 1)])
def test_a_finer_grid_must_not_be_smaller(fine):
    with pytest.raises(GridError, match=rf"\({fine[0]}, {fine[1]}\).*\(2, 3\)"):
        prior_operator((2, 3), fine)
    with pytest.raises(GridError, match="smaller"):
        spatial_prior(torch.zeros(6, 2), coarse=(2, 3), fine=fine)


@pytest.mark.parametrize("grid", [(0, 2), (2, -1), (2,), (1, 2, 3), 4, "ab", (1.5, 2), (True, 2), None])
def test_things_that_are_no_grid(grid):
    with pytest.raises(GridError, match="coarse"):
        prior_operator(grid, (4, 4))
    with pytest.raises(GridError, match="fine"):
        prior_operator((1, 1), grid)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InvalidArgumentError, match=r"'cubic'.*nearest, bilinear, dct, dse"):
        prior_operator((2, 2), (3, 3), "cubic")
    with pytest.raises(InvalidArgumentError, match=r"'unit'.*ortho, forward, backward"):
        prior_operator((2, 2), (3, 3), norm="unit")
    with pytest.raises(InvalidArgumentError, match="'cubic'"):
        spatial_prior(torch.zeros(4, 1), coarse=(2, 2), fine=(2, 2), kind="cubic")
    with pytest.raises(InvalidArgumentError, match="'unit'"):
        spatial_prior(torch.zeros(4, 1), coarse=(2, 2), fine=(2, 2), kind="nearest", norm="unit")


def test_integers_are_refused():
    with pytest.raises(InvalidArgumentError, match="int64"):
        spatial_prior(torch.zeros(4, 1, dtype=torch.int64), coarse=(2, 2), fine=(3, 3))
    with pytest.raises(InvalidArgumentError, match="int32"):
        prior_operator((2, 2), (3, 3), dtype=torch.int32)


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (2, 6), (6,), ()])
def test_a_wrong_number_of_cells_is_named(shape):
    with pytest.raises(GridError, match="2x3"):
        spatial_prior(torch.zeros(shape), coarse=(2, 3), fine=(3, 3))


def test_a_position_dim_outside_of_the_tensor():
    with pytest.raises(GridError, match="position_dim 3"):
        spatial_prior(torch.zeros(1, 4, 2), coarse=(2, 2), fine=(3, 3), position_dim=3)
