"""Decoding pictures strip by strip, for when memory is short, with the same result.

Tiles that are decoded one by one and blended look different from the whole, because every group norm then
measures a tile instead of the picture. Here the norms measure the whole map first, one strip after the other,
and only then are the strips computed, each with as many rows of its neighbours as its convolutions see.
Between two residual blocks the whole feature map is kept, but nothing of what happens inside of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError
from nextscale.nn.autoencoder import Decoder, Level, ResBlock, activate
from nextscale.whole import as_whole

Part = Callable[[Tensor], Tensor]


@torch.no_grad()
def decode_in_strips(decoder: Decoder, z: Tensor, rows: int) -> Tensor:
    """``decoder(z)`` in strips of ``rows`` latent rows: equal up to rounding, with less memory, in more time.

    Latents ``(B, z, h, w)`` -> pictures ``(B, C, h * r, w * r)`` of the same dtype. At its peak it holds two
    feature maps of the picture's size, and some strips, where a plain call holds about six; it takes up to
    twice the time. Levels with attention, the coarse ones, are computed whole.

    Raises InvalidArgumentError if ``rows`` is not a positive whole number.
    """
    strip = as_whole(rows)
    if strip is None or strip < 1:
        raise InvalidArgumentError(f"rows must be a whole number of latent rows, at least 1, got {rows!r}")
    x: Tensor = decoder.mid(decoder.conv_in(z))
    upsample: nn.Module | None = None  # of the level before, joined with the next block

    def height() -> int:
        return strip * x.shape[2] // z.shape[2]

    for level in (cast(Level, level) for level in reversed(decoder.up)):
        if len(level.attn):
            x = level(x if upsample is None else upsample(x))
            upsample = None
            continue
        for block in level.block:
            x = _block(cast(ResBlock, block), x, upsample, height())
            upsample = None
        upsample = getattr(level, "upsample", None)
    norm = _measured(decoder.norm_out, _strips(x, _same, height()))
    return _joined(_strips(x, lambda s: decoder.conv_out(activate(norm(s))), height(), halo=1), x.shape[2])


def _block(block: ResBlock, x: Tensor, upsample: nn.Module | None, rows: int) -> Tensor:
    """A residual block, with an upsampling before it where there is one, in strips of ``rows`` rows of x."""
    before: Part = _same if upsample is None else upsample
    factor = 1 if upsample is None else 2

    # Two convolutions reach two rows. The one of the upsampling adds a third, and two rows of x make four.
    def strips(part: Part) -> Iterator[Tensor]:
        return _strips(x, part, rows, halo=2, factor=factor)

    norm1 = _measured(block.norm1, strips(before))

    def first(s: Tensor) -> Tensor:
        return block.conv1(activate(norm1(s)))

    norm2 = _measured(block.norm2, strips(lambda s: first(before(s))))

    def whole(s: Tensor) -> Tensor:
        s = before(s)
        return block.joined(block.conv2(activate(norm2(first(s)))), s)

    return _joined(strips(whole), x.shape[2] * factor)


def _same(x: Tensor) -> Tensor:
    return x


def _strips(x: Tensor, part: Part, rows: int, *, halo: int = 0, factor: int = 1) -> Iterator[Tensor]:
    """``part`` of x, strip by strip from top to bottom.

    halo: how many rows of its neighbours a strip gets; the rows they make are cut off again.
    factor: output rows per row of x.
    """
    height = x.shape[2]
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        start = max(top - halo, 0)
        strip = part(x[:, :, start : bottom + halo])
        yield strip[:, :, (top - start) * factor : (bottom - start) * factor]


def _joined(strips: Iterator[Tensor], height: int) -> Tensor:
    """The map of ``height`` rows that strips make, written one by one so that there are no two copies."""
    strip = next(strips)
    whole = strip.new_empty(*strip.shape[:2], height, strip.shape[3])
    top = 0
    for part in chain([strip], strips):
        whole[:, :, top : top + part.shape[2]] = part
        top += part.shape[2]
    return whole


def _measured(norm: nn.GroupNorm, strips: Iterator[Tensor]) -> Part:
    """A group norm with mean and variance of a whole map that is only there in strips."""
    counts, means, variances = [], [], []
    for strip in strips:
        groups = strip.float().unflatten(1, (norm.num_groups, -1)).flatten(2)  # (B, G, n)
        variance, mean = torch.var_mean(groups, -1, correction=0)
        counts.append(groups.shape[2])
        means.append(mean)
        variances.append(variance)
    shares = torch.tensor(counts, device=means[0].device) / sum(counts)
    mean = (torch.stack(means, -1) * shares).sum(-1)  # (B, G)
    spread = (torch.stack(means, -1) - mean[..., None]).square()
    variance = ((torch.stack(variances, -1) + spread) * shares).sum(-1)
    each = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(each, 1) * norm.weight.float()  # (B, C)
    shift = norm.bias.float() - mean.repeat_interleave(each, 1) * scale

    def apply(x: Tensor) -> Tensor:
        return (x.float() * scale[..., None, None] + shift[..., None, None]).to(x.dtype)

    return apply
