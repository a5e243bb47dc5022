"""Decoding strip by strip gives the picture of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError
from nextscale.nn.autoencoder import Decoder
from nextscale.nn.strips import decode_in_strips


def make(ch_mult: tuple[int, ...], **options: Any) -> Decoder:
    torch.manual_seed(0)
    sizes = dict(ch=8, num_res_blocks=1, z_channels=5, groups=4)
    decoder = Decoder(ch_mult=ch_mult, **{**sizes, **options}).eval().requires_grad_(False)
    for norm in decoder.modules():  # at its beginning a norm would not tell its channels apart
        if isinstance(norm, nn.GroupNorm):
            norm.weight.normal_(1, 0.3)
            norm.bias.normal_(0, 0.3)
    return decoder


@pytest.fixture(scope="module")
def z() -> Tensor:
    """A latent whose parts differ, so that the norms of a part would not be those of the whole."""
    z = torch.randn(2, 5, 7, 6, generator=torch.Generator().manual_seed(1))
    return z * torch.linspace(0.2, 3, 7).view(7, 1) + torch.linspace(-2, 2, 6)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("ch_mult", [(1,), (1, 2), (2, 1, 3)])
@pytest.mark.parametrize("num_res_blocks", [0, 1])
def test_equal_to_the_whole(ch_mult: tuple[int, ...], attention: bool, num_res_blocks: int, z: Tensor):
    decoder = make(ch_mult, attention=attention, num_res_blocks=num_res_blocks)
    whole = decoder(z)
    for rows in (1, 2, 3, 7, 50):
        torch.testing.assert_close(decode_in_strips(decoder, z, rows), whole, rtol=1e-5, atol=2e-5)


def test_in_half_precision(z: Tensor):
    decoder = make((1, 2), attention=False).to(torch.bfloat16)
    half = decode_in_strips(decoder, z.bfloat16(), 2)
    assert half.dtype == torch.bfloat16
    exact = make((1, 2), attention=False)(z)
    assert (half - exact).square().mean() < 2 * (decoder(z.bfloat16()) - exact).square().mean()


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "2"])
def test_wrong_rows(rows: Any, z: Tensor):
    with pytest.raises(InvalidArgumentError, match=f"at least 1, got {rows!r}"):
        decode_in_strips(make((1,)), z, rows)
