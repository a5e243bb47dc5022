"""Rotary positions of text and maps, against their definition channel by channel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextscale.families.hart.rotary import THETA, Rotation, map_positions, rotate

D = 16


def vectors(length: int, seed: int = 0) -> torch.Tensor:
    """``(1, 2, length, D)``."""
    return torch.randn(1, 2, length, D, generator=torch.Generator().manual_seed(seed))


def test_text_is_a_rotation_of_channel_pairs():
    x, q = vectors(4), torch.tensor([[-1, 0, 1, 7]])
    found = rotate(x, Rotation.text(q, D))
    for position in range(4):
        for j in range(D // 2):
            angle = float(q[0, position]) * THETA ** (-2 * j / D)
            c, s = torch.tensor(angle).cos(), torch.tensor(angle).sin()
            a, b = x[0, :, position, j], x[0, :, position, j + D // 2]
            torch.testing.assert_close(found[0, :, position, j], a * c - b * s)
            torch.testing.assert_close(found[0, :, position, j + D // 2], b * c + a * s)
    assert torch.equal(found[:, :, 1], x[:, :, 1])  # position 0


@given(st.integers(-1, 300), st.integers(-1, 300), st.integers(0, 50))
def test_products_of_rotated_text_depend_on_the_distance_only(a: int, b: int, shift: int):
    x, y = vectors(1).double(), vectors(1, seed=1).double()
    near = [rotate(v, Rotation.text(torch.tensor([[p]]), D)) for v, p in ((x, a), (y, b))]
    far = [rotate(v, Rotation.text(torch.tensor([[p + shift]]), D)) for v, p in ((x, a), (y, b))]
    torch.testing.assert_close((near[0] * near[1]).sum(-1), (far[0] * far[1]).sum(-1), atol=2e-4, rtol=0)


def test_in_maps_the_members_of_a_pair_meet_different_angles():
    x, places = vectors(3), torch.tensor([[[0.0, 0.0], [1.5, 4.25], [10.0, 3.0]]])
    found = rotate(x, Rotation.maps(places, D))
    for position in range(3):
        row, column = places[0, position]
        for j in range(D // 2):
            w = THETA ** (-4 * (j % (D // 4)) / D)
            a, b = x[0, :, position, j], x[0, :, position, j + D // 2]
            first = a * (row * w).cos() - b * (row * w).sin()
            second = b * (column * w).cos() + a * (column * w).sin()
            torch.testing.assert_close(found[0, :, position, j], first)
            torch.testing.assert_close(found[0, :, position, j + D // 2], second)
    lengths = found.norm(dim=-1) / x.norm(dim=-1)
    assert float((lengths[:, :, 1:] - 1).abs().max()) > 0.05  # so it is no rotation


def test_places_are_scaled_to_the_finest_grid_and_begin_after_the_text():
    origin = torch.tensor([4, 0])
    found = map_positions((2, 3), (7, 9), origin)
    assert found.dtype == torch.float32
    for row, start in enumerate((4, 0)):
        expected = [[i / 2 * 7 + start, j / 3 * 9 + start] for i in range(2) for j in range(3)]
        torch.testing.assert_close(found[row], torch.tensor(expected))


def test_some_cells_have_the_places_they_have_among_all():
    origin, cells = torch.tensor([4, 0]), torch.tensor([[5, 0, 3], [1, 2, 4]])
    some, whole = (map_positions((2, 3), (4, 6), origin, c) for c in (cells, None))
    assert torch.equal(some, whole.gather(1, cells[..., None].expand(-1, -1, 2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    x, rotation = vectors(3).to(dtype), Rotation.text(torch.tensor([[0, 150, 299]]), D)
    found = rotate(x, rotation)
    assert found.dtype == dtype
    assert torch.equal(found, rotate(x.float(), rotation).to(dtype))
