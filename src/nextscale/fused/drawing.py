"""The race behind the sort; see :mod:`nextscale.generation.race` and :mod:`nextscale.generation.noise`."""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

# GOLDEN and the factors of ROUNDS in nextscale.generation.noise, as int64 has their bits.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)
_FIRST = tl.constexpr(0xBF58476D1CE4E5B9 - 2**64)
_SECOND = tl.constexpr(0x94D049BB133111EB - 2**64)


@triton.jit
def _derive(keys, numbers):
    """:func:`nextscale.generation.noise.derive`; a shift of int64 repeats the sign, which is masked off."""
    x = keys + (keys * 0 + numbers + 1) * _GOLDEN
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit(do_not_specialize=["length", "step", "limit", "share_bits", "min_p"])
def _race_sorted(
    values,
    order,
    seeds,
    cells,
    tokens,
    length,
    step,
    limit,
    share_bits,
    min_p,
    STREAM: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CELLS: tl.constexpr,
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
        first = tl.sum((own & (logits > last)).to(tl.int32), 0)  # where the ties of the last begin
        skipped = tl.sum((own & (logits >= last)).to(tl.int32), 0) - kept
    if MIN_P:
        likely = tl.exp(logits - largest) >= min_p
        kept = tl.minimum(kept, tl.sum((own & likely).to(tl.int32), 0))
    # Of what ties with the last entry kept, top-p removes the first in the vocabulary.
    left = (rank < tl.minimum(first, kept)) | ((rank >= first + skipped) & (rank < kept + skipped))
    entry = tl.load(order + row * SIZE + rank, mask=own, other=0)
    cell = tl.load(cells + row) if CELLS else row % length
    # A block of one and not a number, since numbers of the interpreter complain where they overflow.
    key = tl.load(seeds + row // length + tl.arange(0, 1))
    key = _derive(_derive(_derive(_derive(key, 0), STREAM), step), cell)
    word = (_derive(key, entry) >> 12) & 0xFFFFFFFFFFFFF
    left = own & left & (weights > 0)  # neither zero nor NaN
    times = -tl.log((word.to(tl.float64) + 0.5) * 2.220446049250313e-16) / tl.where(left, weights, 1.0)
    times = tl.where(left, times, float("inf"))
    drawn = tl.argmin(times, 0)
    drawn = tl.minimum(tl.maximum(drawn, 0), SIZE - 1)  # something, where logits are no numbers
    tl.store(tokens + row, tl.load(order + row * SIZE + drawn))


def race_sorted(
    values: Tensor,
    order: Tensor,
    seeds: Tensor,
    *,
    stream: int,
    step: int,
    cells: Tensor | None,
    top_k: int,
    top_p: float,
    min_p: float,
) -> Tensor:
    """Draw one entry from each whole row, sorted, as ``race(filter_logits(...))`` does.

    values: float32 ``(B l, V)``, descending; order: int64 ``(B l, V)``, their entries, those that tie in the
    vocabulary's order. seeds: int64 ``(B,)``. stream, step, cells: of the numbers; cells int64 ``(B, l)``, or
    None for 0 to l - 1. Returns int64 ``(B l,)``.
    """
    values, order, seeds = values.contiguous(), order.contiguous(), seeds.contiguous()
    rows, size = values.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=values.device)
    with torch.cuda.device_of(values):
        _race_sorted[(rows,)](
            values,
            order,
            seeds,
            seeds if cells is None else cells.contiguous(),
            tokens,
            rows // len(seeds),
            step,
            top_k if 0 < top_k < size else size,
            struct.unpack("q", struct.pack("d", 1 - top_p))[0],
            min_p,
            STREAM=stream,
            SIZE=size,
            BLOCK=triton.next_power_of_2(size),
            CELLS=cells is not None,
            TOP_P=0 < top_p < 1,
            MIN_P=min_p > 0,
            num_warps=8,
        )
    return tokens
