"""Kernels for NVIDIA GPUs, written in Triton: one pass over memory where PyTorch takes several.

Functions take tensors and return new ones, and know no gradients. Everything is computed in float32 and
rounded once. :mod:`nextscale.kernels` decides when they are used; whoever calls them from elsewhere has to
see to dtypes and layouts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, CHANNELS = 64, 64  # of a map, in one portion


@triton.jit(do_not_specialize=["length"])
def _modulated_norm(
    x, scale, shift, out, length, scale_stride, shift_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    sample = row // length
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    values = tl.load(x + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, 0) / WIDTH, 0.0)
    normed = centred / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    factor = tl.load(scale + sample * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + sample * shift_stride + column, mask=inside, other=0.0).to(tl.float32)
    result = offset + normed * (1.0 + factor)
    tl.store(out + row * WIDTH + column, result.to(out.dtype.element_ty), mask=inside)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift`` in ``dtype``: x ``(B, l, C)``, scale and shift ``(B, 1, C)``.

    The channels of scale and shift lie next to each other.
    """
    x = x.contiguous()
    batch, length, width = x.shape
    out = torch.empty_like(x, dtype=dtype)
    with torch.cuda.device_of(x):
        _modulated_norm[(batch * length,)](
            x,
            scale,
            shift,
            out,
            length,
            scale.stride(0),
            shift.stride(0),
            eps,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            num_warps=4 if width <= 2048 else 8,
        )
    return out


@triton.jit(do_not_specialize=["length", "rows"])
def _split_heads(
    qkv,
    q_bias,
    v_bias,
    log_scale,
    q,
    k,
    v,
    length,
    rows,
    batch_stride,
    head_stride,
    ceiling,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # of (B, l, H)
    head, position = row % HEADS, row // HEADS
    sample, place = position // length, position % length
    channel = tl.arange(0, BLOCK)[None]
    inside = (row < rows)[:, None] & (channel < WIDTH)
    of_head = head[:, None] * WIDTH + channel
    source = qkv + position[:, None] * (3 * HEADS * WIDTH) + of_head
    query = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    query += tl.load(q_bias + of_head, mask=inside, other=0.0).to(tl.float32)
    key = tl.load(source + HEADS * WIDTH, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(source + 2 * HEADS * WIDTH, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(v_bias + of_head, mask=inside, other=0.0).to(tl.float32)
    if UNIT:
        temperature = tl.exp(tl.minimum(tl.load(log_scale + head).to(tl.float32), ceiling))
        query *= (temperature / tl.maximum(tl.sqrt(tl.sum(query * query, 1)), 1e-12))[:, None]
        key *= (1.0 / tl.maximum(tl.sqrt(tl.sum(key * key, 1)), 1e-12))[:, None]
    tl.store(q + row[:, None] * WIDTH + channel, query.to(q.dtype.element_ty), mask=inside)
    target = (sample * batch_stride + head * head_stride + place * WIDTH)[:, None] + channel
    tl.store(k + target, key.to(k.dtype.element_ty), mask=inside)
    tl.store(v + target, value.to(v.dtype.element_ty), mask=inside)


def split_heads(
    qkv: Tensor,
    q_bias: Tensor,
    v_bias: Tensor,
    log_scale: Tensor | None,
    ceiling: float,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Biased queries, and keys and biased values written to where they are kept.

    qkv: a layer's output without bias, ``(B, l, 3 H d)``. q_bias, v_bias: ``(H d,)``. keys, values: slices
    ``(B, H, l, d)`` of a cache, with the same strides. log_scale: H numbers; with them queries and keys are
    brought to unit length, and queries multiplied by ``exp(min(log_scale, ceiling))``.
    Returns queries ``(B, H, l, d)`` in the dtype of the cache.
    """
    batch, heads, length, width = keys.shape
    q = torch.empty(batch, length, heads, width, dtype=keys.dtype, device=keys.device)
    rows, block = batch * length * heads, triton.next_power_of_2(width)
    together = max(1, 2048 // block)
    with torch.cuda.device_of(qkv):
        _split_heads[(triton.cdiv(rows, together),)](
            qkv,
            q_bias,
            v_bias,
            q_bias if log_scale is None else log_scale,
            q,
            keys,
            values,
            length,
            rows,
            keys.stride(0),
            keys.stride(1),
            ceiling,
            HEADS=heads,
            WIDTH=width,
            BLOCK=block,
            ROWS=together,
            UNIT=log_scale is not None,
            num_warps=4,
        )
    return q.transpose(1, 2)


@triton.jit
def _moments(x, means, squares, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr):
    portion = tl.program_id(0).to(tl.int64)  # counted through the batch
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = channel < WIDTH
    pixel = portion * PIXELS + tl.arange(0, PIXELS)
    tile = tl.load(x + pixel[:, None] * WIDTH + channel[None], mask=own[None], other=0.0).to(tl.float32)
    mean = tl.sum(tile, 0) / PIXELS
    away = tile - mean[None]
    tl.store(means + portion * WIDTH + channel, mean, mask=own)
    tl.store(squares + portion * WIDTH + channel, tl.sum(away * away, 0), mask=own)


@triton.jit(do_not_specialize=["count"])
def _group_scale(
    means,
    squares,
    weight,
    bias,
    scale,
    shift,
    count,
    eps,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PORTIONS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    channel = tl.arange(0, BLOCK)
    own = channel < SIZE
    channel += tl.program_id(0) * SIZE
    sample = tl.program_id(1).to(tl.int64)
    total = tl.zeros((PORTIONS, BLOCK), tl.float32)
    for first in range(0, count, PORTIONS):
        portion = first + tl.arange(0, PORTIONS)
        inside = (portion < count)[:, None] & own[None]
        place = (sample * count + portion)[:, None] * WIDTH + channel[None]
        total += tl.load(means + place, mask=inside, other=0.0)
    mean = tl.sum(total) / (count * SIZE)
    total = tl.zeros((PORTIONS, BLOCK), tl.float32)
    for first in range(0, count, PORTIONS):
        portion = first + tl.arange(0, PORTIONS)
        inside = (portion < count)[:, None] & own[None]
        place = (sample * count + portion)[:, None] * WIDTH + channel[None]
        away = tl.where(inside, tl.load(means + place, mask=inside, other=0.0) - mean, 0.0)
        total += tl.load(squares + place, mask=inside, other=0.0) + PIXELS * away * away
    variance = tl.sum(total) / (count * SIZE * PIXELS)
    factor = tl.load(weight + channel, mask=own, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    offset = tl.load(bias + channel, mask=own, other=0.0).to(tl.float32) - mean * factor
    tl.store(scale + sample * WIDTH + channel, factor, mask=own)
    tl.store(shift + sample * WIDTH + channel, offset, mask=own)


@triton.jit(do_not_specialize=["count"])
def _scaled_silu(x, scale, shift, out, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr):
    portion = tl.program_id(0).to(tl.int64)
    sample = portion // count
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = channel < WIDTH
    pixel = portion * PIXELS + tl.arange(0, PIXELS)
    place = pixel[:, None] * WIDTH + channel[None]
    factor = tl.load(scale + sample * WIDTH + channel, mask=own, other=0.0)
    offset = tl.load(shift + sample * WIDTH + channel, mask=own, other=0.0)
    y = tl.load(x + place, mask=own[None], other=0.0).to(tl.float32) * factor[None] + offset[None]
    y = y / (1.0 + tl.exp(-y))
    tl.store(out + place, y.to(out.dtype.element_ty), mask=own[None])


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``silu(group_norm(x))``: x ``(B, C, H, W)``, channels last in memory, H W a multiple of ``PIXELS``.

    The variance is put together from those of portions of so many pixels and from the portions' means, which
    loses no digits where the mean is large.
    """
    batch, width, height, columns = x.shape
    count = height * columns // PIXELS
    means = torch.empty(batch, count, width, dtype=torch.float32, device=x.device)
    squares = torch.empty_like(means)
    scale = torch.empty(batch, width, dtype=torch.float32, device=x.device)
    shift = torch.empty_like(scale)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    grid = (batch * count, triton.cdiv(width, CHANNELS))
    with torch.cuda.device_of(x):
        _moments[grid](x, means, squares, WIDTH=width, BLOCK=CHANNELS, PIXELS=PIXELS, num_warps=4)
        _group_scale[(groups, batch)](
            means,
            squares,
            weight,
            bias,
            scale,
            shift,
            count,
            eps,
            WIDTH=width,
            SIZE=width // groups,
            BLOCK=triton.next_power_of_2(width // groups),
            PORTIONS=64,
            PIXELS=PIXELS,
            num_warps=4,
        )
        _scaled_silu[grid](
            x, scale, shift, out, count, WIDTH=width, BLOCK=CHANNELS, PIXELS=PIXELS, num_warps=4
        )
    return out


@triton.jit(do_not_specialize=["fine", "coarse"])
def _accumulate(
    logits,
    previous,
    operator,
    out,
    fine,
    coarse,
    channels,
    keep,
    take,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    sample = tl.program_id(2).to(tl.int64)
    within = (row < fine)[:, None] & (column < channels)[None]
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, coarse, K):
        inner = first + tl.arange(0, K)
        weights = tl.load(
            operator + row[:, None] * coarse + inner[None],
            mask=(row < fine)[:, None] & (inner < coarse)[None],
            other=0.0,
        )
        values = tl.load(
            previous + (sample * coarse + inner)[:, None] * channels + column[None],
            mask=(inner < coarse)[:, None] & (column < channels)[None],
            other=0.0,
        )
        total = tl.dot(weights, values, total, input_precision=PRECISION)
    place = (sample * fine + row)[:, None] * channels + column[None]
    values = tl.load(logits + place, mask=within, other=0.0)
    tl.store(out + place, keep * values - take * total, mask=within)


def accumulate(
    logits: Tensor, previous: Tensor, operator: Tensor, beta: float, *, precision: str = "tf32x3"
) -> Tensor:
    """``(1 + beta) logits - beta operator @ previous``, all float32.

    logits ``(B, m, C)``, previous ``(B, n, C)``, operator ``(m, n)``. precision: of the product, as Triton
    names it; ``"tf32x3"`` splits numbers in two, and is as exact as float32 to a bit or two.
    """
    logits, previous = logits.contiguous(), previous.contiguous()
    batch, fine, channels = logits.shape
    out = torch.empty_like(logits)
    m = 64 if fine > 32 else 32
    grid = (triton.cdiv(fine, m), triton.cdiv(channels, 128), batch)
    with torch.cuda.device_of(logits):
        _accumulate[grid](
            logits,
            previous,
            operator,
            out,
            fine,
            previous.shape[1],
            channels,
            1.0 + beta,
            beta,
            M=m,
            N=128,
            K=32,
            PRECISION=precision,
            num_warps=4,
        )
    return out
