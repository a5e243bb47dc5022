"""Whole numbers as people have them: Python's, numpy's, or single entries of tensors."""

from __future__ import annotations

import operator
from typing import Any


def as_whole(value: Any) -> int | None:
    """Take a whole number of any kind as an ``int``; ``None`` for everything else, booleans included."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_python(value: Any) -> Any:
    """Turn a single number of numpy's, or of a tensor, into Python's; leave everything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def plain(value: Any) -> Any:
    """Turn a number of numpy's into Python's, for :func:`json.dumps` (its ``default``).

    Raises TypeError for what is no single number.
    """
    number = as_python(value)
    if number is value:
        raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")
    return number
