"""The decoder's share of a memory estimate, against what is alive while a decoder runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nextscale.generation.memory import decoder_peak
from nextscale.kernels import constant_weights
from nextscale.nn.autoencoder import Decoder
from nextscale.nn.strips import decode_in_strips


@pytest.mark.parametrize("strip", [None, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("mult", [(1, 2, 2), (1, 1, 2, 4), (2, 1), (1, 4)])
def test_a_decoder_takes_what_is_estimated(mult: tuple[int, ...], strip: int | None, live_bytes: Callable):
    torch.manual_seed(0)
    decoder = Decoder(ch=32, ch_mult=mult, num_res_blocks=1, z_channels=4, attention=False)
    decoder.requires_grad_(False)
    z = torch.randn(2, 4, 8, 10)
    with constant_weights(), live_bytes([*decoder.state_dict().values(), z]) as measured:
        if strip is None:
            decoder(z).clamp(-1, 1)
        else:
            decode_in_strips(decoder, z, strip).clamp(-1, 1)
    widths = [32 * m for m in mult]
    options = dict(batch=2, num_res_blocks=1, itemsize=4, device=torch.device("cpu"))
    assert measured.peak == pytest.approx(decoder_peak(widths, (8, 10), strip=strip, **options), rel=0.05)
