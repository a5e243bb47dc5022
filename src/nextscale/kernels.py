"""Matrix products, on CPUs through oneDNN, which also applies the GELU that follows, attention, and norms.

PyTorch hands float32 products on a CPU to MKL, which on the AMD processor tried reaches half of what oneDNN
does (``docs/performance.md`` has the figures), and adds the bias by copying it into every row first. The
operator used here is the one that PyTorch's own compiler calls; it knows no gradients. Where it cannot be
used, everything is computed by :func:`torch.nn.functional.linear`; the two agree to rounding.

On NVIDIA GPUs, where Triton is installed (PyTorch brings it on Linux) and no gradients are wanted, norms come
from :mod:`nextscale.fused`; elsewhere from PyTorch.

What is made of weights alone (their layout for oneDNN, a kernel in another form) is kept for as long as
:func:`constant_weights` says that they stay as they are, and no longer: nobody can write to a weight behind
its back.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

FUSED_DTYPES = (torch.float32, torch.bfloat16)
# Scores in one portion of attention: few enough for a processor's caches, enough for its threads.
SCORES = 2**20
# With fewer scores than this for a sample, portions cost more than they save.
FEW_SCORES = 2**17
# Most bytes that layouts of weights may take beside the weights.
LAYOUT_BYTES = 2**30

Make = Callable[[Tensor], Tensor]


class _Kept:
    """What was made of weights, with the weights themselves, so that their ids remain their own."""

    def __init__(self) -> None:
        self.made: dict[tuple[Make, int], tuple[Tensor, Tensor]] = {}
        self.layout_bytes = 0


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Within it, weights stay as they are, so what is made of them is made once; see :func:`of_weight`."""
    if _kept.get() is not None:
        yield
        return
    token = _kept.set(_Kept())
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
    if key not in kept.made:
        kept.made[key] = weight, make(weight)
    return kept.made[key][1]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, recurring: bool = False
) -> Tensor:
    """``x @ weight.T + bias``, then GELU (the tanh form) if asked for.

    x ``(..., in)``, weight ``(out, in)``, bias ``(out,)`` -> ``(..., out)``.
    recurring: the weight is used again and again, so its layout for oneDNN is worth keeping.
    """
    if fusible(x, weight):
        name, form = ("gelu", "tanh") if gelu else ("none", "")
        weight = _laid_out(weight) if recurring else weight
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], form)
        return result
    if gelu and bias is not None and x.numel() and fused_for(x) and weight.dtype == bias.dtype == x.dtype:
        flat = x.reshape(-1, x.shape[-1])  # cuBLAS applies the tanh form as it writes the product
        return torch._addmm_activation(bias, flat, weight.t(), use_gelu=True).view(*x.shape[:-1], len(weight))
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def fused_for(x: Tensor) -> ModuleType | None:
    """:mod:`nextscale.fused` if its kernels can run on this tensor, here and now."""
    if (
        x.device.type != "cuda"
        or x.dtype not in (torch.float32, torch.bfloat16, torch.float16)
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cuda")
        or torch.compiler.is_compiling()
    ):
        return None
    return _fused(x.device)


@cache
def _fused(device: torch.device) -> ModuleType | None:
    """With Triton, on NVIDIA GPUs from Ampere on, whose units for matrix products the kernels use."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        fused = importlib.import_module("nextscale.fused")
        fused.in_parts(torch.zeros(8, device=device))
    except Exception:  # whatever Triton raises where it cannot compile, as without a C compiler
        return None
    return fused


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift``; x ``(B, l, C)``, scale and shift ``(B, 1, C)``.

    dtype: of the result; ``None`` is that of x.
    """
    dtype = x.dtype if dtype is None else dtype
    fused = fused_for(x)
    if fused is not None and x.numel() and scale.stride(-1) == shift.stride(-1) == 1:
        made: Tensor = fused.modulated_norm(x, scale, shift, eps, dtype)
        return made
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale).to(dtype)


def gated_norm(
    x: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """``x + branch * gate``, and :func:`modulated_norm` of that.

    x and branch ``(B, l, C)``; gate, scale and shift ``(B, 1, C)``, parts of one tensor.
    """
    fused = fused_for(x)
    if fused is not None and x.numel() and branch.dtype == x.dtype and gate.stride(-1) == 1:
        made: tuple[Tensor, Tensor] = fused.gated_norm(x, branch, gate, scale, shift, eps)
        return made
    x = torch.addcmul(x, branch, gate)
    return x, modulated_norm(x, scale, shift, eps=eps)


def gated(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """``x + branch * gate``; x and branch ``(B, l, C)``, gate ``(B, 1, C)``."""
    fused = fused_for(x)
    if fused is not None and x.numel() and branch.dtype == x.dtype and gate.stride(-1) == 1:
        made: Tensor = fused.gated(x, branch, gate)
        return made
    return torch.addcmul(x, branch, gate)


def _laid_out(weight: Tensor) -> Tensor:
    """The weight in oneDNN's layout, which it would otherwise be brought into by every product.

    Only in bfloat16, since layouts take as much memory as the weights, and then up to a limit.
    """
    kept = _kept.get()
    if kept is None or weight.dtype != torch.bfloat16 or not _lays_out():
        return weight
    if (_layout, id(weight)) not in kept.made:
        if kept.layout_bytes + weight.nbytes > LAYOUT_BYTES:
            return weight
        kept.layout_bytes += weight.nbytes
    return of_weight(_layout, weight)


@cache
def _lays_out() -> bool:
    """Whether this PyTorch makes a layout of an ordinary tensor; earlier ones only did of their own kind."""
    try:
        _layout(torch.zeros(1, 1, dtype=torch.bfloat16, device="cpu"))
    except (AttributeError, RuntimeError):
        return False
    return True


def _layout(weight: Tensor) -> Tensor:
    rows = 1024  # of x, which oneDNN asks for, and which hardly matter
    layout: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return layout


def fusible(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can multiply these, ``(..., in)`` and ``(out, in)``."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in FUSED_DTYPES
        and _available(x.dtype)
        and x.numel() > 0
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _available(dtype: torch.dtype) -> bool:
    """From torch 2.4 on, which also has all the questions above; in bfloat16 where the processor can."""
    known = torch.__version__ >= (2, 4) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[operator]
    if not known or not torch.backends.mkldnn.enabled:
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def keeps_layouts(dtype: torch.dtype) -> bool:
    """Tell whether layouts of weights in this dtype are kept during a call, here on the CPU."""
    return dtype == torch.bfloat16 and _available(dtype) and _lays_out()


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """:func:`torch.nn.functional.scaled_dot_product_attention` in the dtype of the values.

    q ``(B, H, l, d)``, k and v ``(B, H, L, d)`` -> ``(B, H, l, d)``; q and k may be of higher precision.

    PyTorch's fused kernel for CPUs is no faster in bfloat16 than in float32. So there the products are made
    one after the other, in portions that stay in the processor's caches: scores and softmax in float32, as
    the fused kernel has them, and the product with the values in bfloat16.
    """
    if mask is None and k.shape == v.shape and _in_portions(q, k, v):
        return _attention_in_portions(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, scale=scale)


def _in_portions(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return (
        v.device.type == "cpu"
        and v.dtype == torch.bfloat16
        and q.shape[-3] * q.shape[-2] * k.shape[-2] >= FEW_SCORES
        and _available(v.dtype)
        and not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _attention_in_portions(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Some heads at a time, and where the scores of one are too many, some of its rows."""
    batch, heads, rows, _ = q.shape
    columns = k.shape[-2]
    out = torch.empty(batch, rows, heads, v.shape[-1], dtype=v.dtype)  # what comes next wants heads together
    together = min(heads, max(1, SCORES // (rows * columns)))
    together = math.ceil(heads / math.ceil(heads / together))  # as many portions, of more equal sizes
    high = rows if together > 1 else max(1, SCORES // columns)
    q = q if scale == 1 else q.float() * scale
    for b in range(batch):
        for first in range(0, heads, together):
            some = slice(first, first + together)
            keys = k[b, some].float()
            for top in range(0, rows, high):
                part = slice(top, top + high)
                scores = _products(q[b, some, part].float(), keys)  # (l, H, L)
                weights = torch.softmax(scores, -1, out=scores).transpose(0, 1)
                weights = weights.to(v.dtype, memory_format=torch.contiguous_format)
                out[b, part, some] = torch.bmm(weights, v[b, some]).transpose(0, 1)
    return out.transpose(1, 2)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """``(H, l, d)`` by ``(H, L, d)`` -> ``(l, H, L)``, as a convolution that mixes channels in H groups.

    Only because PyTorch leaves float32 convolutions to oneDNN, and products to MKL.
    """
    groups, length, _ = x.shape
    channels = x.transpose(0, 1).reshape(1, length, 1, -1).permute(0, 3, 1, 2)  # last in memory
    products = F.conv2d(channels, y.flatten(0, 1)[:, :, None, None], groups=groups)
    return products.permute(0, 2, 3, 1).reshape(length, groups, -1)
