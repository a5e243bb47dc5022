"""Which scales get wrong bits in training: those that were said, at any strength."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nextscale.families.infinity.bits import draw_flips
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig

SIDES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def tokenizer() -> InfinityTokenizer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"ch": 8, "encoder_ch_mult": (1, 1), "decoder_ch_mult": (1, 1)}
    return InfinityTokenizer(
        InfinityTokenizerConfig(bits=4, **sizes, num_res_blocks=1, norm_groups=(4,), patch_nums=SIDES)
    ).eval()


@pytest.mark.parametrize("scales", [0, 1, 2, 3, 4, None])
@pytest.mark.parametrize("seed", range(4))
def test_the_first_scales_get_flips(tokenizer: InfinityTokenizer, scales: int | None, seed: int):
    features = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    flipped = len(SIDES) if scales is None else scales
    flips = [draw_flips(torch.zeros(3, s, s, 4, dtype=torch.long), 1.0, generator) for s in SIDES[:flipped]]
    wanted = tokenizer.self_correction(features, flips=flips)
    found = tokenizer.self_correction(
        features, flip_scales=scales, max_strength=1.0, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(found.inputs, wanted.inputs) and torch.equal(found.targets, wanted.targets)
    assert flipped == 0 or any(bool(f.any()) for f in flips)


@pytest.mark.parametrize("most", [0.0, 0.01, 0.3, 1.0])
def test_the_largest_strength_is_reached_and_not_passed(most: float):
    bits, shares = torch.zeros(100, 10, 10, dtype=torch.long), []
    for seed in range(300):
        flips = draw_flips(bits, most, torch.Generator().manual_seed(seed))
        assert set(flips.unique().tolist()) <= {0, 1}
        shares.append(float(flips.double().mean()))
    assert max(shares) <= most + 0.03 and min(shares) <= max(0.02, most / 50)
    assert max(shares) >= most - 0.03
