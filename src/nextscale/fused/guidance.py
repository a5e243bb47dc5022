"""Scaled Spatial Guidance's product; see :mod:`nextscale.guidance.prior`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INNER = 32  # of a product, together


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
