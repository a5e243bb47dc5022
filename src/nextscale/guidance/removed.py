"""Logits of minus infinity, by which a choice is forbidden, in the formulas of guidance.

A forbidden choice stays forbidden, whatever a formula makes of infinities. Where it is allowed now and was
forbidden in what it is compared with, no number is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError


def keep_removed(guided: Tensor, logits: Tensor, others: Mapping[str, Tensor], what: str) -> Tensor:
    """Guided logits with ``-inf`` wherever ``logits``, of the same shape, have it.

    others: what else went into the formula, by name. what: names the strength and its value.

    On a CPU, raises InvalidArgumentError, naming the tensor or the strength, if anything else is infinite or
    NaN. On a GPU nobody looks, since looking would be to wait; it stays infinite or NaN.
    """
    compiling = getattr(torch.compiler, "is_compiling", bool)()  # older ones cannot be asked
    looks = guided.device.type == "cpu" and not compiling
    # A sum is quick, and not finite if anything is not.
    if looks and math.isfinite(float(guided.detach().sum(dtype=torch.float64))):
        return guided
    removed = logits == -math.inf
    kept = guided.masked_fill(removed, -math.inf)
    if looks and not bool((removed | kept.isfinite()).all()):
        raise InvalidArgumentError(_reason(logits, removed, others, what, guided.dtype))
    return kept


def _reason(
    logits: Tensor, removed: Tensor, others: Mapping[str, Tensor], what: str, dtype: torch.dtype
) -> str:
    if not bool((removed | logits.isfinite()).all()):
        return "logits hold NaN or +inf; only finite numbers, and -inf for forbidden choices, can be guided"
    for name, tensor in others.items():
        if not bool(tensor.isfinite().all()):
            return (
                f"{name} hold NaN or infinities where logits are finite; pass both before top-k and top-p, "
                f"or forbid the same choices in both"
            )
    kind = str(dtype).removeprefix("torch.")
    return f"{what} makes numbers beyond {kind} of these logits; use less, or logits of a larger type"
