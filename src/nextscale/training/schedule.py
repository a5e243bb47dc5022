"""Learning rate and weight decay over the iterations of a run.

The shapes and their constants are those of VAR's published training recipe (arXiv 2404.02905 and its code).
"""

from __future__ import annotations

import math

from nextscale.errors import InvalidArgumentError

NAMES = ("cos", "lin", "lin0", "lin00", "exp", "lin<T>")


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup: int,
    total: int,
    shape: str = "cos",
    start: float = 0.005,
    end: float = 0.01,
) -> float:
    """Learning rate of iteration ``step`` (from 0) out of ``total``.

    Rises linearly from ``start * peak`` to ``peak`` over ``warmup`` iterations, then falls to ``end * peak``.
    shape: ``cos`` half cosine; ``lin00`` a line; ``lin0`` / ``lin`` the same after a plateau of 5 % / 15 %;
        ``exp`` geometric after a plateau of 15 %; ``lin<T>`` with a number T: two lines that meet at u = T.
    """
    if step < warmup:
        return peak * (start + (1 - start) * step / warmup)
    u = (step - warmup) / max(total - 1 - warmup, 1)
    return peak * _decay(shape, u, end)


def _decay(shape: str, u: float, end: float) -> float:
    if shape == "cos":
        return end + (1 - end) * (0.5 + 0.5 * math.cos(math.pi * u))
    if shape in ("lin", "lin0", "lin00"):
        plateau = {"lin": 0.15, "lin0": 0.05, "lin00": 0.0}[shape]
        return 1.0 if u < plateau else end + (1 - end) * (1 - u) / (1 - plateau)
    if shape == "exp":
        return 1.0 if u < 0.15 else end ** ((u - 0.15) / 0.85)
    try:
        turn = float(shape.removeprefix("lin"))
    except ValueError:
        turn = math.nan
    if not (shape.startswith("lin") and 0 < turn < 1):
        raise InvalidArgumentError(f"unknown schedule {shape!r}; known: {', '.join(NAMES)} with T in (0, 1)")
    middle = (1 + end + (1 - end) * (1 - turn)) / 2
    if u < turn:
        return 1 + (middle - 1) * u / turn
    return end + (middle - end) * (1 - u) / (1 - turn)


def weight_decay(step: int, *, start: float, end: float, total: int) -> float:
    """Weight decay of an iteration: a half cosine from ``start`` to ``end``."""
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * step / max(total - 1, 1)))
