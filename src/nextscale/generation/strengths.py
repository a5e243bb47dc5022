"""Strengths of guidance that are one per picture, over the batches of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from nextscale.errors import InvalidArgumentError
from nextscale.guidance.cfg import ClassifierFreeGuidance, Convention
from nextscale.guidance.schedules import StepStrength, picture_rows
from nextscale.guidance.ssg import ScaledSpatialGuidance

Method = TypeVar("Method", bound="ClassifierFreeGuidance | ScaledSpatialGuidance | None")


def per_picture(*methods: ClassifierFreeGuidance | ScaledSpatialGuidance | None) -> bool:
    """Whether any of them has strengths that are one per picture."""
    return any(picture_rows(_strength(method)) is not None for method in methods)


def check_pictures(count: int, **methods: ClassifierFreeGuidance | ScaledSpatialGuidance | None) -> None:
    """Raises InvalidArgumentError, by the argument's name, for strengths of another number of pictures."""
    for name, method in methods.items():
        rows = picture_rows(_strength(method))
        if rows is not None and len(rows) != count:
            raise InvalidArgumentError(
                f"{name} has {len(rows)} rows, which are for {len(rows)} pictures, but {count} are made; for "
                f"all pictures give a number, or a flat list with one per step"
            )


def of_pictures(method: Method, span: slice) -> Method:
    """Take the strengths of some of the pictures, of guidance that is otherwise the same."""
    if isinstance(method, ClassifierFreeGuidance) and per_picture(method):
        return replace(method, scale=method.scale[span])  # type: ignore[index]
    if isinstance(method, ScaledSpatialGuidance) and per_picture(method):
        return replace(method, beta=method.beta[span])  # type: ignore[index]
    return method


def in_convention(strength: StepStrength, given: Convention, wanted: Convention) -> StepStrength:
    """A strength of classifier-free guidance under another convention: ``s = 1 + t``."""
    if given == wanted:
        return strength
    convert: Callable[[float], float] = (lambda t: 1 + t) if wanted == "interpolate" else (lambda s: s - 1)
    return tuple(map(convert, strength)) if isinstance(strength, tuple) else convert(strength)


def _strength(method: ClassifierFreeGuidance | ScaledSpatialGuidance | None) -> object:
    return method.scale if isinstance(method, ClassifierFreeGuidance) else method.beta if method else None
