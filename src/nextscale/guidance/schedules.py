"""Strengths that change from step to step.

A strength is a number, one value per step, or a callable of the step. It can also be one per picture: a
two-dimensional list, array or tensor with a row for every picture, where all rows have either one value,
which counts as that picture's number, or one per step. A number can be shaped by a named schedule. With K
steps, k counted from 0, and ``h_k x w_k`` the grid of step k, the schedules multiply it by

    constant   1
    linear     k / (K - 1)
    cosine     (1 - cos(pi k / (K - 1))) / 2
    bandwidth  1 - (h_{k-1} w_{k-1}) / (h_k w_k), the share of the spatial frequencies that are new at step k

linear and cosine rise from 0 at the first step to 1 at the last; with a single step both are 0. bandwidth is
1 at the first step, where every frequency is new. What linear and cosine mean here is this library's choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, get_args

from nextscale.errors import InvalidArgumentError
from nextscale.guidance.base import Grid, GuidanceStep, as_grids

ScheduleName = Literal["constant", "linear", "cosine", "bandwidth"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)

MOST = 1e6  # of a strength: logits times the product of two of them are far from the end of float32

StrengthFunction = Callable[[GuidanceStep], float]
PictureStrengths = tuple[tuple[float, ...], ...]  # (B, 1) or (B, steps)
StepStrength = float | tuple[float, ...]  # of one step: for all pictures, or one for each
Strength = float | tuple[float, ...] | PictureStrengths | StrengthFunction
StrengthLike = float | Sequence[float] | Sequence[Sequence[float]] | StrengthFunction


def schedule_weights(schedule: ScheduleName, grids: Iterable[Sequence[int]]) -> tuple[float, ...]:
    """The factor of a named schedule at every step.

    Raises:
        InvalidArgumentError: for an unknown schedule.
        GridError: if the grids are not grids.
    """
    check_schedule(schedule)
    checked = as_grids(grids)
    if schedule == "constant":
        return (1.0,) * len(checked)
    if schedule == "bandwidth":
        areas = [height * width for height, width in checked]
        return (1.0, *(1.0 - before / now for before, now in itertools.pairwise(areas)))
    rise = [index / max(len(checked) - 1, 1) for index in range(len(checked))]
    if schedule == "linear":
        return tuple(rise)
    return tuple((1.0 - math.cos(math.pi * x)) / 2.0 for x in rise)


def resolve_strength(
    strength: StrengthLike,
    grids: Iterable[Sequence[int]],
    *,
    schedule: ScheduleName = "constant",
    name: str = "beta",
) -> tuple[StepStrength, ...]:
    """One value per step, the first step included whether it is used or not; per picture where they differ.

    Args:
        strength: a number, which ``schedule`` shapes; one value per step; one of both per picture; or a
            callable, which gets the :class:`GuidanceStep` of every step in turn (without positions) and
            returns a number.
        grids: ``(height, width)`` of every step.
        schedule: a named schedule; only a number can be combined with one other than ``"constant"``.
        name: how messages call the strength.

    Raises:
        InvalidArgumentError: for a value that is negative or not finite, a wrong number of values, or a
            schedule where the values are already given per step.
    """
    checked = as_grids(grids)
    strength = check_strength(strength, name)
    check_schedule(schedule, strength, name)
    rows = picture_rows(strength)
    if rows is not None:
        return by_step([_resolve_one(row, checked, schedule, f"{name}[{i}]") for i, row in enumerate(rows)])
    return _resolve_one(strength, checked, schedule, name)  # type: ignore[arg-type]


def _resolve_one(
    strength: float | tuple[float, ...] | StrengthFunction,
    checked: tuple[Grid, ...],
    schedule: ScheduleName,
    name: str,
) -> tuple[float, ...]:
    """The values of a strength that is the same for all pictures, or of one picture."""
    if callable(strength):
        steps = (GuidanceStep(index, checked) for index in range(len(checked)))
        return tuple(check_number(strength(step), f"{name}(step {step.index})") for step in steps)
    if isinstance(strength, tuple):
        if len(strength) != len(checked):
            raise InvalidArgumentError(
                f"{name} has {len(strength)} values, but the generation has {len(checked)} steps; give one "
                f"value per step, the first step included, or a single number"
            )
        return strength
    return tuple(strength * weight for weight in schedule_weights(schedule, checked))


def picture_rows(strength: object) -> list[float | tuple[float, ...]] | None:
    """Give a strength in its canonical form for every picture; ``None`` if it is the same for all."""
    if not isinstance(strength, tuple) or not isinstance(strength[0], tuple):
        return None
    return [row[0] if len(row) == 1 else row for row in strength]


def by_step(rows: Sequence[Sequence[float]]) -> tuple[StepStrength, ...]:
    """Values of every picture, each one per step, as values per step; one number where pictures agree."""
    return tuple(values[0] if len(set(values)) == 1 else values for values in zip(*rows, strict=True))


def is_single(strength: object) -> bool:
    """Whether a strength in its canonical form is one number, or one for each picture, that can be shaped."""
    rows = picture_rows(strength)
    return isinstance(strength, float) or (rows is not None and isinstance(rows[0], float))


def check_schedule(schedule: str, strength: Strength | None = None, name: str = "beta") -> None:
    """Raises InvalidArgumentError for an unknown schedule, or one beside a strength that says it all."""
    if schedule not in SCHEDULES:
        raise InvalidArgumentError(f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    if schedule != "constant" and strength is not None and not is_single(strength):
        raise InvalidArgumentError(
            f"the schedule {schedule!r} shapes a single number, but {name} is already given per step; "
            f"use one of the two"
        )


def check_strength(strength: object, name: str) -> Strength:
    """A strength in its canonical, immutable form: a float, a tuple of floats, a tuple of such tuples, or the
    callable itself.

    Arrays and tensors of one and two dimensions count as lists.

    Raises:
        InvalidArgumentError: for anything else, or a value that is negative or not finite.
    """
    if isinstance(strength, Real):
        return check_number(strength, name)
    values = strength.tolist() if hasattr(strength, "tolist") else strength
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        if not values:
            raise InvalidArgumentError(
                f"{name} is an empty list; give one value per step, or a single number"
            )
        values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
        if isinstance(values[0], Sequence) and not isinstance(values[0], str | bytes):
            return _check_rows(values, name)
        return tuple(check_number(value, f"{name}[{index}]") for index, value in enumerate(values))
    if callable(strength):
        return strength
    return check_number(values, name)


def _check_rows(rows: Sequence[Any], name: str) -> PictureStrengths:
    lengths = {len(row) if isinstance(row, Sequence) and not isinstance(row, str) else -1 for row in rows}
    if len(lengths) != 1 or lengths & {0, -1}:
        raise InvalidArgumentError(
            f"{name} per picture is a row for each, all with one value or all with one value per step; "
            f"got {rows!r}"
        )
    return tuple(
        tuple(check_number(value, f"{name}[{i}][{k}]") for k, value in enumerate(row))
        for i, row in enumerate(rows)
    )


def check_number(value: Any, name: str) -> float:
    """A number from 0 to :data:`MOST`, as a float.

    Raises:
        InvalidArgumentError: for anything else, booleans included.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidArgumentError(f"{name} must be a number of at least 0; got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number < 0.0:
        raise InvalidArgumentError(f"{name} must be finite and at least 0; got {number}")
    if number > MOST:
        raise InvalidArgumentError(f"{name} must be at most {MOST:,.0f}; got {number:g}")
    return number


def strength_to_json(strength: Strength | None, name: str) -> float | list[float] | list[list[float]] | None:
    """A strength as JSON can hold it.

    Raises:
        InvalidArgumentError: for a callable.
    """
    if callable(strength):
        raise InvalidArgumentError(
            f"{name} is the callable {strength!r}, which cannot be stored; use its values, one per step"
        )
    if not isinstance(strength, tuple):
        return strength
    return [list(value) if isinstance(value, tuple) else value for value in strength]  # type: ignore[return-value]


def settings_from_dict(settings: Any, method: str, allowed: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments in a stored description of a method, checked for their names.

    Raises:
        InvalidArgumentError: if it is not a mapping, describes another method, or has unknown entries.
    """
    if not isinstance(settings, Mapping) or settings.get("method", method) != method:
        raise InvalidArgumentError(f"these are not the settings of {method!r}: {settings!r}")
    unknown = sorted(set(settings) - {"method", *allowed})
    if unknown:
        raise InvalidArgumentError(
            f"unknown settings {unknown} for {method!r}; known are {', '.join(allowed)}"
        )
    return {key: value for key, value in settings.items() if key != "method"}
