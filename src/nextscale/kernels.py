"""Matrix products, on CPUs through oneDNN, which also applies the GELU that follows, and attention.

PyTorch hands float32 products on a CPU to MKL, which on the AMD processor tried reaches half of what oneDNN
does (``docs/performance.md`` has the figures), and adds the bias by copying it into every row first. The
operator used here is the one that PyTorch's own compiler calls; it knows no gradients. Where it cannot be
used, everything is computed by :func:`torch.nn.functional.linear`; the two agree to rounding.

What is made of weights alone (their layout for oneDNN, a kernel in another form) is kept for as long as
:func:`constant_weights` says that they stay as they are, and no longer: nobody can write to a weight behind
its back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

FUSED_DTYPES = (torch.float32, torch.bfloat16)
# Scores in one portion of attention: few enough for a processor's caches, enough for its threads.
SCORES = 2**20
# Below so many scores of a head, portions cost more than they save.
FEW_SCORES = 2**10

Make = Callable[[Tensor], Tensor]

_kept: ContextVar[dict[tuple[Make, int], tuple[Tensor, Tensor]] | None] = ContextVar("kept", default=None)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Within it, weights stay as they are, so what is made of them is made once; see :func:`of_weight`."""
    if _kept.get() is not None:
        yield
        return
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def of_weight(make: Make, weight: Tensor) -> Tensor:
    """``make(weight)``, which is kept within :func:`constant_weights`."""
    kept = _kept.get()
    if kept is None:
        return make(weight)
    key = (make, id(weight))
    if key not in kept:
        kept[key] = weight, make(weight)  # with the weight, so that its id remains its own
    return kept[key][1]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, recurring: bool = False
) -> Tensor:
    """``x @ weight.T + bias``, then GELU (the tanh form) if asked for.

    x ``(..., in)``, weight ``(out, in)``, bias ``(out,)`` -> ``(..., out)``.
    recurring: the weight is used again and again, so in bfloat16 its layout for oneDNN is worth keeping. In
    float32 it would gain less and take twice the memory.
    """
    if fusible(x, weight):
        name, form = ("gelu", "tanh") if gelu else ("none", "")
        if recurring and weight.dtype == torch.bfloat16 and _kept.get() is not None:
            weight = of_weight(_packed, weight)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], form)
        return result
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def _packed(weight: Tensor) -> Tensor:
    """In the layout of oneDNN; the number of rows that it asks for hardly matters."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1024)
    return packed


def fusible(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can multiply these, ``(..., in)`` and ``(out, in)``."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in FUSED_DTYPES
        and _available()
        and x.numel() > 0
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _available() -> bool:
    """From torch 2.4 on, which also has all the questions above."""
    known = torch.__version__ >= (2, 4) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[operator]
    return known and bool(torch.backends.mkldnn.enabled)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """:func:`torch.nn.functional.scaled_dot_product_attention`, q ``(B, H, l, d)``, k and v ``(B, H, L, d)``.

    PyTorch's fused kernel for CPUs is no faster in bfloat16 than in float32. So there the products are made
    one after the other, in portions that stay in the processor's caches: scores and softmax in float32, as
    the fused kernel has them, and the product with the values in bfloat16.
    """
    if mask is None and k.shape == v.shape and _in_portions(q, k):
        return _attention_in_portions(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _in_portions(q: Tensor, k: Tensor) -> bool:
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == torch.bfloat16
        and q.shape[-2] * k.shape[-2] >= FEW_SCORES
        and not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _attention_in_portions(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Whole heads where their scores fit in a portion, else some rows of one head at a time."""
    rows, columns = q.shape[-2], k.shape[-2]
    out = torch.empty(q.shape, dtype=v.dtype)
    merged = out.flatten(0, 1)  # (B H, l, d)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    heads = max(1, SCORES // (rows * columns))
    high = rows if heads > 1 else max(1, SCORES // columns)
    for first in range(0, len(q), heads):
        some = slice(first, first + heads)
        keys = k[some].float().mul_(scale).transpose(-1, -2)
        for top in range(0, rows, high):
            part = slice(top, top + high)
            scores = torch.bmm(q[some, part].float(), keys)
            weights = torch.softmax(scores, -1, out=scores).to(v.dtype)
            torch.bmm(weights, v[some], out=merged[some, part])
    return out
