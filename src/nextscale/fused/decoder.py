"""What a decoder's residual block does between its convolutions, on maps with channels last in memory."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, CHANNELS = 64, 64  # of a map, together
PORTION = 256  # most pixels whose moments are computed together


@triton.jit(do_not_specialize=["biased"])
def _moments(
    x,
    before,
    means,
    squares,
    width,
    biased,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    portion = tl.program_id(0).to(tl.int64)  # counted through the batch
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = channel < width
    start = x + portion * PIXELS * width + channel
    # Sums of differences from one of the values, so that no digits are lost where all of them are large.
    pivot = tl.load(start, mask=own, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    square = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, PIXELS, ROWS):
        pixel = first + tl.arange(0, ROWS)
        tile = tl.load(start[None] + pixel[:, None] * width, mask=own[None], other=0.0).to(tl.float32)
        away = tile - pivot[None]
        total += away
        square += away * away
    mean = tl.sum(total, 0) / PIXELS
    spread = tl.sum(square, 0) - PIXELS * mean * mean
    mean += pivot
    mean += tl.load(before + channel, mask=own, other=0.0).to(tl.float32) * biased
    tl.store(means + portion * width + channel, mean, mask=own)
    tl.store(squares + portion * width + channel, spread, mask=own)


@triton.jit(do_not_specialize=["count", "size", "biased"])
def _group_scale(
    means,
    squares,
    before,
    weight,
    bias,
    scale,
    shift,
    count,
    width,
    size,
    eps,
    biased,
    BLOCK: tl.constexpr,
    PORTIONS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    channel = tl.arange(0, BLOCK)
    own = channel < size
    channel += tl.program_id(0) * size
    sample = tl.program_id(1).to(tl.int64)
    total = tl.zeros((PORTIONS, BLOCK), tl.float32)
    for first in range(0, count, PORTIONS):
        portion = first + tl.arange(0, PORTIONS)
        inside = (portion < count)[:, None] & own[None]
        place = (sample * count + portion)[:, None] * width + channel[None]
        total += tl.load(means + place, mask=inside, other=0.0)
    mean = tl.sum(total) / (count * size)
    total = tl.zeros((PORTIONS, BLOCK), tl.float32)
    for first in range(0, count, PORTIONS):
        portion = first + tl.arange(0, PORTIONS)
        inside = (portion < count)[:, None] & own[None]
        place = (sample * count + portion)[:, None] * width + channel[None]
        away = tl.where(inside, tl.load(means + place, mask=inside, other=0.0) - mean, 0.0)
        total += tl.load(squares + place, mask=inside, other=0.0) + PIXELS * away * away
    variance = tl.sum(total) / (count * size * PIXELS)
    factor = tl.load(weight + channel, mask=own, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    away = tl.load(before + channel, mask=own, other=0.0).to(tl.float32) * biased - mean
    offset = tl.load(bias + channel, mask=own, other=0.0).to(tl.float32) + away * factor
    tl.store(scale + sample * width + channel, factor, mask=own)
    tl.store(shift + sample * width + channel, offset, mask=own)


@triton.jit(do_not_specialize=["count"])
def _scaled_silu(x, scale, shift, out, count, width, BLOCK: tl.constexpr, PIXELS: tl.constexpr):
    portion = tl.program_id(0).to(tl.int64)
    sample = portion // count
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = channel < width
    pixel = portion * PIXELS + tl.arange(0, PIXELS)
    place = pixel[:, None] * width + channel[None]
    factor = tl.load(scale + sample * width + channel, mask=own, other=0.0)
    offset = tl.load(shift + sample * width + channel, mask=own, other=0.0)
    y = tl.load(x + place, mask=own[None], other=0.0).to(tl.float32) * factor[None] + offset[None]
    y = y / (1.0 + tl.exp(-y))
    tl.store(out + place, y.to(out.dtype.element_ty), mask=own[None])


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, before: Tensor | None = None
) -> Tensor:
    """``silu(group_norm(x + before))``: x ``(B, C, H, W)``, channels last in memory, before ``(C,)``.

    H W is a multiple of ``PIXELS``. The variance is put together from those of portions of the pixels and
    from the portions' means.
    """
    batch, width, height, columns = x.shape
    pixels = height * columns
    portion = math.gcd(pixels, PORTION)
    means = torch.empty(batch, pixels // portion, width, dtype=torch.float32, device=x.device)
    squares = torch.empty_like(means)
    scale = torch.empty(batch, width, dtype=torch.float32, device=x.device)
    shift = torch.empty_like(scale)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    blocks = triton.cdiv(width, CHANNELS)
    # A factor, not another form of the kernels, of which each takes time to compile.
    before, biased = (bias, 0.0) if before is None else (before, 1.0)
    with torch.cuda.device_of(x):
        _moments[(batch * pixels // portion, blocks)](
            x,
            before,
            means,
            squares,
            width,
            biased,
            BLOCK=CHANNELS,
            PIXELS=portion,
            ROWS=min(portion, 128),
            num_warps=8,
        )
        _group_scale[(groups, batch)](
            means,
            squares,
            before,
            weight,
            bias,
            scale,
            shift,
            pixels // portion,
            width,
            width // groups,
            eps,
            biased,
            BLOCK=triton.next_power_of_2(width // groups),
            PORTIONS=64,
            PIXELS=portion,
            num_warps=4,
        )
        _scaled_silu[(batch * pixels // PIXELS, blocks)](
            x,
            scale,
            shift,
            out,
            pixels // PIXELS,
            width,
            BLOCK=CHANNELS,
            PIXELS=PIXELS,
            num_warps=4,
        )
    return out


@triton.jit
def _add_biased(x, other, bias, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(bias + place % WIDTH, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(other + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + place, values.to(x.dtype.element_ty), mask=inside)


def add_biased(x: Tensor, other: Tensor, bias: Tensor) -> Tensor:
    """``x + other + bias`` in the place of x; x and other ``(B, C, H, W)``, channels last, bias ``(C,)``."""
    other = other.contiguous(memory_format=torch.channels_last)
    with torch.cuda.device_of(x):
        _add_biased[(triton.cdiv(x.numel(), 2048),)](
            x, other, bias, x.numel(), WIDTH=x.shape[1], BLOCK=2048, num_warps=8
        )
    return x
