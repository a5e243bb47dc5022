"""Kernels for NVIDIA GPUs, written in Triton: one pass over memory where PyTorch takes several.

Functions take tensors and return new ones, and know no gradients. Everything is computed in float32 and
rounded once. :mod:`nextscale.kernels` decides when they are used; whoever calls them from elsewhere has to
see to dtypes and layouts.
"""

from __future__ import annotations

import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, CHANNELS = 64, 64  # of a map, together
INNER = 32  # of a product, together
PORTION = 256  # most pixels whose moments are computed together


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


@triton.jit(do_not_specialize=["length"])
def _gated(
    x,
    branch,
    gate,
    scale,
    shift,
    total,
    out,
    length,
    stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    modulation = row // length * stride
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = row * WIDTH + column
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(gate + modulation + column, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(branch + place, mask=inside, other=0.0).to(tl.float32) * factor
    stored = values.to(total.dtype.element_ty)
    tl.store(total + place, stored, mask=inside)
    if NORMED:
        values = stored.to(tl.float32)  # the norm is that of what is stored
        centred = tl.where(inside, values - tl.sum(values, 0) / WIDTH, 0.0)
        normed = centred / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
        factor = tl.load(scale + modulation + column, mask=inside, other=0.0).to(tl.float32)
        offset = tl.load(shift + modulation + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, (offset + normed * (1.0 + factor)).to(out.dtype.element_ty), mask=inside)


def gated_norm(
    x: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``x + branch * gate``, and of that :func:`modulated_norm` in the same dtype.

    x and branch ``(B, l, C)``; gate, scale and shift ``(B, 1, C)``, parts of one tensor.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return _run_gated(x, branch, gate, scale, shift, out, eps, normed=True), out


def gated(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """``x + branch * gate``; x and branch ``(B, l, C)``, gate ``(B, 1, C)``."""
    return _run_gated(x, branch, gate, gate, gate, x, 0.0, normed=False)


def _run_gated(
    x: Tensor,
    branch: Tensor,
    gate: Tensor,
    scale: Tensor,
    shift: Tensor,
    out: Tensor,
    eps: float,
    *,
    normed: bool,
) -> Tensor:
    x, branch = x.contiguous(), branch.contiguous()
    batch, length, width = x.shape
    total = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _gated[(batch * length,)](
            x,
            branch,
            gate,
            scale,
            shift,
            total,
            out,
            length,
            gate.stride(0),
            eps,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            NORMED=normed,
            num_warps=4 if width <= 2048 else 8,
        )
    return total


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


@triton.jit(do_not_specialize=["limit", "share_bits", "min_p"])
def _draw_sorted(
    values,
    order,
    uniform,
    tokens,
    limit,
    share_bits,
    min_p,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    values += row * SIZE
    rank = tl.arange(0, BLOCK)
    own = rank < SIZE
    logits = tl.load(values + rank, mask=own, other=-float("inf"))
    largest = tl.load(values)
    kept = tl.sum((own & (logits >= tl.load(values + limit - 1))).to(tl.int32), 0)
    weights = tl.exp(logits.to(tl.float64) - largest.to(tl.float64))
    first, skipped = kept * 0, kept * 0
    if TOP_P:
        share = tl.cast(share_bits, tl.float64, bitcast=True)  # numbers are handed over in float32
        ascending = tl.cumsum(tl.where(rank < kept, weights, 0.0), 0, reverse=True)
        mass = tl.sum(tl.where(rank == 0, ascending, 0.0), 0)
        kept = tl.sum((own & (ascending > share * mass)).to(tl.int32), 0)
        kept = tl.maximum(kept, 1)
        last = tl.load(values + kept - 1)
        first = tl.sum((own & (logits > last)).to(tl.int32), 0)
        skipped = tl.sum((own & (logits >= last)).to(tl.int32), 0) - kept
    if MIN_P:
        likely = tl.exp(logits - largest) >= min_p
        kept = tl.minimum(kept, tl.sum((own & likely).to(tl.int32), 0))
    mass = tl.cumsum(tl.where(rank < kept, weights, 0.0), 0)
    target = tl.load(uniform + row) * tl.sum(tl.where(rank == BLOCK - 1, mass, 0.0), 0)
    drawn = tl.sum((own & (mass <= target)).to(tl.int32), 0)
    drawn = tl.minimum(drawn, kept - 1)
    drawn = tl.where(drawn < first, drawn, drawn + skipped)
    drawn = tl.minimum(tl.maximum(drawn, 0), SIZE - 1)
    tl.store(tokens + row, tl.load(order + row * SIZE + drawn))


def draw_sorted(
    values: Tensor, order: Tensor, uniform: Tensor, *, limit: int, top_p: float, min_p: float
) -> Tensor:
    """What :func:`nextscale.generation.tokens.draw_ranked` draws from whole rows, ranked.

    values: float32 ``(R, V)``, descending. order: int64 ``(R, V)``. uniform: float64 ``(R,)``. limit: how
    many are kept by top-k. Returns int64 ``(R,)``.
    """
    values, order, uniform = values.contiguous(), order.contiguous(), uniform.contiguous()
    rows, size = values.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=values.device)
    with torch.cuda.device_of(values):
        _draw_sorted[(rows,)](
            values,
            order,
            uniform,
            tokens,
            limit,
            struct.unpack("q", struct.pack("d", 1 - top_p))[0],
            min_p,
            SIZE=size,
            BLOCK=triton.next_power_of_2(size),
            TOP_P=0 < top_p < 1,
            MIN_P=min_p > 0,
            num_warps=8,
        )
    return tokens


@triton.jit(do_not_specialize=["fine", "coarse"])
def _accumulate(
    logits,
    previous,
    operator,
    out,
    fine,
    coarse,
    padded,
    channels,
    keep,
    take,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    sample = tl.program_id(2).to(tl.int64)
    own = (row < fine)[:, None]
    part = tl.num_programs(2).to(tl.int64) * coarse * channels  # numbers in a part of the previous logits
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, padded, K):
        inner = first + tl.arange(0, K)
        place = row[:, None] * padded + inner[None]
        a1 = tl.load(operator + place, mask=own, other=0.0)
        a2 = tl.load(operator + fine * padded + place, mask=own, other=0.0)
        place = (sample * coarse + inner)[:, None] * channels + column[None]
        inside = (inner < coarse)[:, None] & (column < channels)[None]
        b1 = tl.load(previous + place, mask=inside, other=0.0)
        b2 = tl.load(previous + part + place, mask=inside, other=0.0)
        total = tl.dot(a1, b2, total)  # the smaller ones first; a2 b2 is beyond float32
        total = tl.dot(a2, b1, total)
        total = tl.dot(a1, b1, total)
    place = (sample * fine + row)[:, None] * channels + column[None]
    within = own & (column < channels)[None]
    values = tl.load(logits + place, mask=within, other=0.0)
    tl.store(out + place, keep * values - take * total, mask=within)


@triton.jit
def _in_parts(x, parts, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    values = tl.load(x + place, mask=inside, other=0.0)
    first = values.to(tl.float16)
    tl.store(parts + place, first, mask=inside)
    tl.store(parts + count + place, (values - first.to(tl.float32)).to(tl.float16), mask=inside)


def in_parts(x: Tensor) -> Tensor:
    """A float32 tensor as the sum of two in float16, ``(2, ...)``.

    They hold 22 binary digits, nothing below 3e-8, and no number beyond 65504, which becomes NaN.
    """
    x = x.contiguous()
    parts = torch.empty(2, *x.shape, dtype=torch.float16, device=x.device)
    with torch.cuda.device_of(x):
        _in_parts[(triton.cdiv(x.numel(), 2048),)](x, parts, x.numel(), BLOCK=2048, num_warps=8)
    return parts


def operator_in_parts(operator: Tensor) -> Tensor:
    """A matrix ``(m, n)`` as :func:`accumulate` takes it, with zeros up to the next multiple of ``INNER``."""
    return in_parts(torch.nn.functional.pad(operator, (0, -operator.shape[1] % INNER)))


def accumulate(logits: Tensor, previous: Tensor, operator: Tensor, beta: float) -> Tensor:
    """``(1 + beta) logits - beta operator @ previous``.

    logits: float32 ``(B, m, C)``. previous: ``(B, n, C)`` from :func:`in_parts`. operator: ``(m, n)`` from
    :func:`operator_in_parts`. The product is about as exact as one in float32, and made on the units for half
    precision.
    """
    logits = logits.contiguous()
    batch, fine, channels = logits.shape
    out = torch.empty_like(logits)
    m = 64 if fine > 32 else 16
    grid = (triton.cdiv(fine, m), triton.cdiv(channels, 128), batch)
    with torch.cuda.device_of(logits):
        _accumulate[grid](
            logits,
            previous,
            operator,
            out,
            fine,
            previous.shape[2],
            operator.shape[2],
            channels,
            1.0 + beta,
            beta,
            M=m,
            N=128,
            K=INNER,
            num_warps=4,
        )
    return out
