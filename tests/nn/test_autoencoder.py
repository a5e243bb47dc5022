from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nextscale.errors import InvalidArgumentError
from nextscale.nn.autoencoder import (
    Decoder,
    Downsample,
    Encoder,
    ResBlock,
    SpatialAttention,
    Upsample,
    check_images,
    group_norm,
)

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


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_upsampling_repeats_pixels(batch: int, channels: int, height: int, width: int, last: bool):
    up = Upsample(channels).double().requires_grad_(False)
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), up.conv(repeated))


def test_gradients_or_not_the_result_is_the_same():
    torch.manual_seed(0)
    decoder = Decoder(**SIZES, ch_mult=(1, 2, 2))
    z = torch.randn(2, 5, 3, 4)
    before = z.clone()
    with torch.no_grad():
        found = decoder(z)
    assert torch.equal(z, before)
    learning = decoder(z)
    torch.testing.assert_close(found, learning)
    learning.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


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


def test_without_attention():
    sizes = {**SIZES, "ch_mult": (1, 2)}
    for part in (Encoder, Decoder):
        with_attention, without = part(**sizes), part(**sizes, attention=False)
        names = {n for n in with_attention.state_dict() if "attn" not in n}
        assert set(without.state_dict()) == names < set(with_attention.state_dict())
    z = Encoder(**sizes, attention=False)(torch.randn(1, 3, 8, 4))
    assert Decoder(**sizes, attention=False)(z).shape == (1, 3, 8, 4)


@pytest.mark.parametrize(
    ("channels", "groups", "expected"),
    [(64, 32, 32), (64, (32, 24), 32), (96, (32, 24), 32), (72, (32, 24), 24)],
)
def test_the_first_number_of_groups_that_divides(channels: int, groups: int | tuple[int, ...], expected: int):
    assert group_norm(channels, groups).num_groups == expected


def test_groups_that_do_not_divide():
    for groups in (32, (32, 24)):
        with pytest.raises(ValueError, match="divisible"):
            group_norm(20, groups)


def test_pictures_are_checked():
    check_images(torch.zeros(2, 3, 8, 12), channels=3, multiple=4)
    for images in (torch.zeros(2, 3, 8, 10), torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8)):
        with pytest.raises(
            InvalidArgumentError, match=r"\(B, 3, H, W\) .* multiples of 4, got torch.float32"
        ):
            check_images(images, channels=3, multiple=4)
    with pytest.raises(InvalidArgumentError, match=r"got torch\.uint8"):
        check_images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), channels=3, multiple=4)
