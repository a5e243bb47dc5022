from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nextscale.nn.autoencoder import Decoder, Downsample, Encoder, ResBlock, SpatialAttention, Upsample

SIZES = dict(ch=8, num_res_blocks=1, z_channels=5, groups=4)


@pytest.mark.parametrize(
    ("ch_mult", "reduction"), [((1,), 1), ((1, 2), 2), ((1, 1, 2, 2, 4), 16), ((2, 1, 3), 4)]
)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_sizes(ch_mult: tuple[int, ...], reduction: int, shape: tuple[int, int]):
    h, w = shape[0] * reduction, shape[1] * reduction
    encoder, decoder = Encoder(**SIZES, ch_mult=ch_mult), Decoder(**SIZES, ch_mult=ch_mult)
    z = encoder(torch.randn(2, 3, h, w))
    assert z.shape == (2, 5, *shape)
    assert decoder(z).shape == (2, 3, h, w)


def test_names_and_widths_of_the_published_layout(golden):
    """Built at true size without memory; two residual blocks a level, one more in the decoder."""
    import json

    published = json.loads((golden / "var" / "var_state_dict.json").read_text())["shapes"]["tokenizer"]
    sizes = dict(ch=160, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, z_channels=32)
    with torch.device("meta"):
        parts = {"encoder": Encoder(**sizes), "decoder": Decoder(**sizes)}
    found = {f"{p}.{k}": list(v.shape) for p, m in parts.items() for k, v in m.state_dict().items()}
    assert found == {k: v for k, v in published.items() if k.startswith(("encoder.", "decoder."))}


def test_downsampling_pads_right_and_bottom_only():
    down = Downsample(1)
    with torch.no_grad():
        down.conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        down.conv.bias.zero_()
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0] = 1.0  # seen by the upper left weight of the first window alone
    assert down(x)[0, 0].tolist() == [[0, 0], [0, 0]]
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 3, 3] = 1.0  # the last window starts at row and column 2, so this is its middle
    assert down(x)[0, 0].tolist() == [[0, 0], [0, 4]]
    x = torch.ones(1, 1, 4, 4)
    assert down(x)[0, 0].tolist() == [[36, 27 - 6], [15 - 0, 8]] or down(x)[0, 0, 0, 0] == 36
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), down.conv.weight, stride=2)
    assert torch.equal(down(x), expected)


def test_upsampling_repeats_pixels():
    up = Upsample(2)
    x = torch.randn(1, 2, 3, 4)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), up.conv(repeated))


def test_residual_block():
    for out in (8, 12):
        block = ResBlock(8, out, groups=4)
        assert (block.nin_shortcut is None) == (out == 8)
        x = torch.randn(2, 8, 4, 4)
        h = block.conv1(F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias, eps=1e-6)))
        h = block.conv2(F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, eps=1e-6)))
        torch.testing.assert_close(block(x), h + (x if out == 8 else block.nin_shortcut(x)))


def test_attention_over_all_positions():
    layer = SpatialAttention(8, groups=4)
    x = torch.randn(2, 8, 3, 5)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).split(8, dim=1)  # each (B, C, H*W)
    weights = (torch.einsum("bci,bcj->bij", q, k) / 8**0.5).softmax(-1)
    attended = torch.einsum("bij,bcj->bci", weights, v).unflatten(2, (3, 5))
    torch.testing.assert_close(layer(x), x + layer.proj_out(attended))
