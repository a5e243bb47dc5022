"""What a transformer's block does between its products: modulated norms, gated sums, heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _normed(values, scale, shift, column, inside, eps, WIDTH: tl.constexpr):
    """``layer_norm(values) * (1 + scale) + shift`` of one row, for the kernels below."""
    centred = tl.where(inside, values - tl.sum(values, 0) / WIDTH, 0.0)
    normed = centred / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    factor = tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    return offset + normed * (1.0 + factor)


@triton.jit(do_not_specialize=["length"])
def _modulated_norm(
    x, scale, shift, out, length, scale_stride, shift_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    sample = row // length
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    values = tl.load(x + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    scale, shift = scale + sample * scale_stride, shift + sample * shift_stride
    result = _normed(values, scale, shift, column, inside, eps, WIDTH)
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
        result = _normed(values, scale + modulation, shift + modulation, column, inside, eps, WIDTH)
        tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


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
