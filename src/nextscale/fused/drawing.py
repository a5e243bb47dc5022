"""The draw behind the sort; see :mod:`nextscale.generation.tokens`."""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor


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
