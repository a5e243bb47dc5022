"""Features as the metrics take them: a table with a row per picture, all of it numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError


def check_rows(rows: Tensor, name: str = "features") -> None:
    """Raises InvalidArgumentError, naming shape or row, unless this is a finite table ``(N, d)``.

    name: how messages call it.
    """
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InvalidArgumentError(f"{name} must be (N, d), one row per picture, got {tuple(rows.shape)}")
    if rows.is_complex() or rows.dtype == torch.bool:
        raise InvalidArgumentError(f"{name} must be real numbers, got {rows.dtype}")
    check_finite(rows, name)


def check_finite(rows: Tensor, name: str) -> None:
    """Raises InvalidArgumentError, naming the first row of ``(N, ...)`` with something that is no number."""
    finite = rows.isfinite()
    if not bool(finite.all()):
        whole = finite if finite.ndim < 2 else finite.flatten(1).all(1)
        bad = whole.logical_not().nonzero().flatten().tolist()
        raise InvalidArgumentError(
            f"{name} are NaN or infinite in {len(bad)} of {len(rows)} rows, the first of them row {bad[0]}; "
            f"no figure can be computed from them"
        )
