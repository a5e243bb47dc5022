"""Mixtures of codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextscale.generation.noise import Noise, Stream, exponential
from nextscale.generation.soft import SoftCodes, mix_codes
from nextscale.generation.tokens import Drawer, Filters
from nextscale.guidance.base import GuidanceStep

GRIDS = ((1, 1), (2, 2), (3, 3), (4, 4))
FILTERS = Filters(temperature=[0.5, 1, 2, 3], top_k=5)
CODES = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


def logits(batch: int = 2, length: int = 4) -> torch.Tensor:
    return torch.randn(batch, length, 7, generator=torch.Generator().manual_seed(1))


def test_the_formula():
    filtered, exponential = logits(), torch.rand(2, 4, 7) + 0.1
    for ratio, tau in ((0.0, 0.27), (0.5, 0.27 * 0.525), (1.0, 0.0135)):
        gumbel = -exponential.log()
        expected = ((filtered * (1 + ratio) + gumbel) / tau).softmax(-1) @ CODES
        torch.testing.assert_close(mix_codes(filtered, exponential, ratio, CODES), expected)


@given(st.integers(0, 6))
def test_removed_codes_have_no_share(code: int):
    filtered = logits()
    filtered[..., code] = -torch.inf
    other = CODES.clone()
    other[code] = 1e6
    exponential = torch.ones_like(filtered)
    assert torch.equal(
        mix_codes(filtered, exponential, 0.3, CODES), mix_codes(filtered, exponential, 0.3, other)
    )


@pytest.mark.parametrize(
    ("hold", "ratios"), [(False, [0, 1 / 3, 2 / 3, 1]), (True, [0, 1 / 3, 2 / 3, 2 / 3])]
)
def test_the_place_of_a_step(hold: bool, ratios: list[float]):
    guided = logits(1)
    for index, ratio in enumerate(ratios):
        soft = SoftCodes(FILTERS, torch.Generator().manual_seed(5), hold_last=hold)
        noise = torch.empty(1, 4, 7).exponential_(generator=torch.Generator().manual_seed(5))
        found = soft(guided, GuidanceStep(index, GRIDS), CODES)
        assert torch.equal(found, mix_codes(FILTERS(guided, index), noise, ratio, CODES))


def test_images_have_their_own_draws():
    step, guided = GuidanceStep(1, GRIDS), logits()
    both = SoftCodes(FILTERS, Noise([3, 4]))(guided, step, CODES)
    for row, seed in enumerate((3, 4)):
        alone = SoftCodes(FILTERS, Noise([seed]))
        assert torch.equal(alone(guided[row : row + 1], step, CODES)[0], both[row])
    drawn = exponential(Noise([3, 4]).words(Stream.MIXTURES, 1, 4, 7)).float()
    assert torch.equal(both, mix_codes(FILTERS(guided, 1), drawn, 1 / 3, CODES))


def test_a_part_of_a_grid_has_the_draws_of_its_cells():
    whole = SoftCodes(FILTERS, Noise([3, 4]))(logits(), GuidanceStep(1, GRIDS), CODES)
    cells = torch.tensor([[3, 0], [1, 2]])
    some = logits().gather(1, cells[..., None].expand(-1, -1, 7))
    part = SoftCodes(FILTERS, Noise([3, 4]))(some, GuidanceStep(1, GRIDS, cells), CODES)
    torch.testing.assert_close(part, whole.gather(1, cells[..., None].expand(-1, -1, 3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", ["paired", "greedy", "multinomial"])
def test_official_draws_share_one_generator(sampler: str):
    draw = Drawer(sampler, Filters(), [3, 4], torch.device("cpu"))
    found = SoftCodes.of(draw, hold_last=True)
    assert found.hold_last
    assert found.filters is draw.filters
    assert found.source is (draw.generator if sampler == "multinomial" else draw.noise)
