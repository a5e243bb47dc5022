"""The residual quantizer: which convolution serves which scale, resampling, and sums that agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.nn.quantizer import (
    MultiScaleQuantizer,
    Phi,
    enlarge,
    enlarged_by_products,
    nearest_tick,
    shrink,
)
from nextscale.scales import ScaleSchedule

# Four shared convolutions, by the number of scales; several entries are exact ties.
TABLE = {
    2: [0, 3],
    3: [0, 2, 3],
    4: [0, 1, 2, 3],
    5: [0, 1, 2, 2, 3],
    6: [0, 0, 1, 2, 3, 3],
    7: [0, 0, 1, 2, 2, 3, 3],
    8: [0, 0, 1, 1, 2, 2, 3, 3],
    9: [0, 0, 1, 1, 2, 2, 2, 3, 3],
    10: [0, 0, 1, 1, 1, 2, 2, 3, 3, 3],
    11: [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3],
    12: [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
    13: [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3],
    14: [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3],
}


@pytest.mark.parametrize("scales", TABLE)
def test_the_published_choice_of_convolutions(scales: int):
    assert nearest_tick(4, scales) == TABLE[scales]


@pytest.mark.parametrize("count", [2, 3, 5, 6, 10])
def test_ticks_of_other_numbers(count: int):
    """Evenly from 1/(2K): with as many scales as ticks each has its own."""
    assert nearest_tick(count, count) == list(range(count))
    assert nearest_tick(1, count) == [0] * count


def test_one_scale_is_no_pyramid():
    with pytest.raises(InvalidArgumentError, match="at least 2 scales, got 1"):
        nearest_tick(4, 1)


# ------------------------------------------------------------------ resampling, by independent formulas


def area_matrix(size: int, cells: int) -> np.ndarray:
    """Row i averages the input from floor(i n / p) to ceil((i + 1) n / p); cells may overlap."""
    matrix = np.zeros((cells, size))
    for i in range(cells):
        begin, end = i * size // cells, -(-(i + 1) * size // cells)
        matrix[i, begin:end] = 1 / (end - begin)
    return matrix


def bicubic_matrix(size: int, fine: int, a: float = -0.75) -> np.ndarray:
    """Keys' kernel at half-pixel centres, border samples repeated, no anti-aliasing."""

    def kernel(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    matrix = np.zeros((fine, size))
    for i in range(fine):
        x = (i + 0.5) * size / fine - 0.5
        for j in range(math.floor(x) - 1, math.floor(x) + 3):
            matrix[i, min(max(j, 0), size - 1)] += kernel(x - j)
    return matrix


def separable(x: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.einsum("ih,bchw,jw->bcij", rows, x.double().numpy(), columns)


sides = st.integers(1, 9)


@given(sides, sides, sides, sides)
def test_shrink_averages_over_cells(h: int, w: int, dh: int, dw: int):
    fine = (h + dh, w + dw)
    x = torch.randn(2, 3, *fine, generator=torch.Generator().manual_seed(h * 100 + w))
    expected = separable(x, area_matrix(fine[0], h), area_matrix(fine[1], w))
    np.testing.assert_allclose(shrink(x, (h, w)).numpy(), expected, atol=1e-5)


@given(sides, sides, sides, sides)
def test_enlarge_is_bicubic(h: int, w: int, dh: int, dw: int):
    fine = (h + dh, w + dw)
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(h * 100 + w))
    expected = separable(x, bicubic_matrix(h, fine[0]), bicubic_matrix(w, fine[1]))
    np.testing.assert_allclose(enlarge(x, fine).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(enlarged_by_products(x, fine).numpy(), expected, atol=1e-5)


def test_the_kernel_is_not_the_other_common_one():
    x = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    other = separable(x, bicubic_matrix(5, 13, a=-0.5), bicubic_matrix(5, 13, a=-0.5))
    assert np.abs(enlarge(x, (13, 13)).numpy() - other).max() > 0.02


def test_equal_grids_are_left_alone():
    x = torch.randn(1, 2, 3, 4)
    assert shrink(x, (3, 4)) is x
    assert enlarge(x, (3, 4)) is x


# ------------------------------------------------------------------ convolutions and their names


def quantizer(sides: Any = (1, 2, 3, 4), **options: Any) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    made = MultiScaleQuantizer(
        vocab_size=20, z_channels=4, schedule=ScaleSchedule.from_sides(sides), **options
    )
    return made.requires_grad_(False)


@pytest.mark.parametrize(
    ("options", "names", "picked"),
    [
        (dict(share_quant_resi=1), ["qresi"], [0, 0, 0, 0]),
        (dict(share_quant_resi=4), [f"qresi_ls.{i}" for i in range(4)], [0, 1, 2, 3]),
        (dict(share_quant_resi=2), ["qresi_ls.0", "qresi_ls.1"], [0, 0, 1, 1]),
        (dict(share_quant_resi=0), ["0", "1", "2", "3"], [0, 1, 2, 3]),
        (dict(quant_resi=0.0), [], None),
        (dict(quant_resi=1e-7, share_quant_resi=0), [], None),
    ],
)
def test_sharing(options: dict[str, Any], names: list[str], picked: list[int] | None):
    made = quantizer(**options)
    expected = {f"quant_resi.{n}.{part}" for n in names for part in ("weight", "bias")}
    assert set(made.state_dict()) == expected | {"embedding.weight"}
    phis = made.phis(4)
    if picked is None:
        x = torch.randn(1, 4, 4, 4)
        assert all(torch.equal(phi(x), x) for phi in phis)
    else:
        parts = dict(made.named_modules())
        assert [names[i] for i in picked] == [
            next(n for n in names if parts[f"quant_resi.{n}"] is phi) for phi in phis
        ]


def test_another_number_of_scales_uses_the_same_convolutions():
    made = quantizer(share_quant_resi=4)
    own = list(made.quant_resi.qresi_ls)  # type: ignore[union-attr, arg-type]
    assert [own.index(phi) for phi in made.phis(10)] == TABLE[10]


@pytest.mark.parametrize("ratio", [0.5, -0.5, 0.25, 1.0])
def test_phi_mixes_its_input_back_in(ratio: float):
    torch.manual_seed(0)
    phi = Phi(3, ratio).requires_grad_(False)
    x = torch.randn(2, 3, 5, 5)
    expected = (1 - abs(ratio)) * x + abs(ratio) * F.conv2d(x, phi.weight, phi.bias, padding=1)
    torch.testing.assert_close(phi(x), expected)


# ------------------------------------------------------------------ quantizing


@pytest.mark.parametrize("shape", [(5000,), (3, 50, 50), (1,), (2, 1, 1)])
def test_the_nearest_code_however_many_vectors(shape: tuple[int, ...]):
    made = quantizer()
    z = torch.randn(*shape, 4, generator=torch.Generator().manual_seed(2))
    found = made.nearest(z)
    assert found.shape == shape
    distance = (z.double()[..., None, :] - made.embedding.weight.double()).square().sum(-1)
    chosen = distance.gather(-1, found[..., None])[..., 0]
    torch.testing.assert_close(chosen, distance.amin(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sides", [(1, 2, 3, 4), (1, (2, 3), (4, 7)), (3, 3, 5)])
@pytest.mark.parametrize("using_znorm", [False, True])
def test_the_chain_by_its_definition(sides: Any, using_znorm: bool):
    made = quantizer(sides, using_znorm=using_znorm)
    schedule, codebook = made.schedule, made.embedding.weight
    f = torch.randn(2, 4, *schedule.final, generator=torch.Generator().manual_seed(1))
    rest, total = f.clone(), torch.zeros_like(f)
    for k, found in enumerate(made.residual_chain(f)):
        vectors = (
            rest if schedule[k] == schedule.final else F.interpolate(rest, schedule[k], mode="area")
        ).movedim(1, 3)
        if using_znorm:
            nearest = F.cosine_similarity(vectors[..., None, :], codebook, dim=-1).argmax(-1)
        else:
            nearest = (vectors[..., None, :] - codebook).square().sum(-1).argmin(-1)
        assert torch.equal(found.tokens, nearest)
        codes = codebook[nearest].movedim(3, 1)
        if schedule[k] != schedule.final:
            codes = F.interpolate(codes, schedule.final, mode="bicubic")
        term = made.phis(schedule.num_steps)[k](codes)
        total, rest = total + term, rest - term
        torch.testing.assert_close(found.f_hat, total)
    assert k == schedule.num_steps - 1


@pytest.mark.parametrize(
    "options", [{}, {"share_quant_resi": 0}, {"share_quant_resi": 1}, {"quant_resi": 0.0}]
)
def test_tokens_lead_back_to_the_same_sums(options: dict[str, Any]):
    made = quantizer(**options)
    chain = list(made.residual_chain(torch.randn(3, 4, 4, 4)))
    sums = list(made.partial_sums([q.tokens for q in chain], made.schedule))
    for q, f_hat in zip(chain, sums, strict=True):
        assert q.f_hat.dtype == f_hat.dtype == torch.float32
        torch.testing.assert_close(f_hat, q.f_hat)


@settings(max_examples=25)
@given(st.lists(st.integers(2, 7), min_size=1, max_size=4).map(sorted), st.sampled_from([0, 1, 2, 4]))
def test_without_a_last_convolution_codes_and_what_is_left_are_the_latent(sides: list[int], share: int):
    made = quantizer([1, *sides], share_quant_resi=share, last_phi=False)
    f = torch.randn(2, 4, *made.schedule.final, generator=torch.Generator().manual_seed(3))
    chain = list(made.residual_chain(f))
    codes = made.lookup(chain[-1].tokens)
    torch.testing.assert_close(chain[-2].f_hat + chain[-1].rest, f, rtol=0, atol=1e-5)
    torch.testing.assert_close(chain[-2].f_hat + codes, chain[-1].f_hat, rtol=0, atol=1e-5)
    everywhere = list(made.residual_chain(f, last_phi=True))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(chain, everywhere, strict=True))
    phi = made.phis(len(chain), last_phi=True)[-1]
    torch.testing.assert_close(everywhere[-2].f_hat + phi(codes), everywhere[-1].f_hat, rtol=0, atol=1e-5)
    for last_phi, expected in ((None, chain), (False, chain), (True, everywhere)):
        sums = made.partial_sums([q.tokens for q in chain], made.schedule, last_phi=last_phi)
        assert all(torch.equal(s, q.f_hat) for s, q in zip(sums, expected, strict=True))


def test_sums_seen_earlier_are_not_changed_later():
    made = quantizer()
    f = torch.randn(1, 4, 4, 4)
    kept, copies = [], []
    for q in made.residual_chain(f):
        kept.append(q.f_hat)
        copies.append(q.f_hat.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_gradients_reach_codebook_and_convolutions_but_not_the_choice():
    made = quantizer().requires_grad_(True)
    f = torch.randn(2, 4, 4, 4, requires_grad=True)
    last = list(made.residual_chain(f))[-1]
    last.f_hat.square().sum().backward()
    assert f.grad is None
    grads = {name: p.grad for name, p in made.named_parameters()}
    assert all(g is not None and bool(g.abs().sum() > 0) for g in grads.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_stay_in_float32_whatever_the_weights(dtype: torch.dtype):
    made = quantizer().to(dtype)
    chain = list(made.residual_chain(torch.randn(1, 4, 4, 4).to(dtype)))
    assert all(q.f_hat.dtype == torch.float32 for q in chain)
    assert all(s.dtype == torch.float32 for s in made.partial_sums([q.tokens for q in chain], made.schedule))
