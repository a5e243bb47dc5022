"""Matrix products, on CPUs through oneDNN, which also applies the GELU that follows.

PyTorch hands float32 products on a CPU to MKL, which on the AMD processor tried reaches half of what oneDNN
does (``docs/performance.md`` has the figures), and adds the bias by copying it into every row first. The
operator used here is the one that PyTorch's own compiler calls; it knows no gradients. Where it cannot be
used, everything is computed by :func:`torch.nn.functional.linear`; the two agree to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FUSED_DTYPES = (torch.float32, torch.bfloat16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, then GELU (the tanh form) if asked for.

    x ``(..., in)``, weight ``(out, in)``, bias ``(out,)`` -> ``(..., out)``.
    """
    if fusible(x, weight):
        name, form = ("gelu", "tanh") if gelu else ("none", "")
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], form)
        return result
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


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
