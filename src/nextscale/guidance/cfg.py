"""Classifier-free guidance of next-scale models, under both conventions in use.

    extra        ``(1 + t) * cond - t * uncond``   VAR and HART; t is the extra weight, neutral at 0
    interpolate  ``s * cond + (1 - s) * uncond``   Infinity; s is the usual guidance scale, neutral at 1

They describe the same family (``s = 1 + t``) with different neutral values and different habits over the
steps: VAR and HART let t rise linearly from 0 at the first step, Infinity takes one s per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance.base import (
    CONDITIONAL,
    UNCONDITIONAL,
    Grid,
    GuidanceStep,
    as_grids,
    compute_dtype,
    require_branch,
)
from nextscale.guidance.removed import keep_removed
from nextscale.guidance.schedules import (
    StepStrength,
    Strength,
    StrengthLike,
    by_step,
    check_number,
    check_strength,
    is_single,
    picture_rows,
    resolve_strength,
    settings_from_dict,
    strength_to_json,
)

Convention = Literal["extra", "interpolate"]
Ramp = Literal["constant", "linear", "linear-hold"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)
RAMPS: tuple[str, ...] = get_args(Ramp)

_NEUTRAL = {"extra": 0.0, "interpolate": 1.0}
_METHOD = "classifier_free_guidance"
_SETTINGS = ("scale", "convention", "ramp")


def classifier_free_guidance(
    cond: Tensor, uncond: Tensor, *, scale: float | Sequence[float], convention: Convention = "extra"
) -> Tensor:
    """Combine two branches, exactly as the formula of the convention is written.

    Args:
        cond, uncond: logits, or hidden states where a model guides those; any equal shapes. A choice that is
            ``-inf`` in ``cond`` stays so.
        scale: t for ``"extra"``, s for ``"interpolate"``; or one for each picture, along the first axis.
        convention: see the module.

    Returns:
        The same shape and dtype; float16 and bfloat16 are computed in float32. At the neutral scale it is
        ``cond`` itself, the same tensor.

    Raises:
        GridError: if the shapes differ, or there is another number of scales than of pictures.
        InvalidArgumentError: for an unknown convention, a scale that is negative, not finite or beyond
            :data:`~nextscale.guidance.schedules.MOST`, or integer logits; and on a CPU, where the result
            would be NaN or infinite otherwise.
    """
    if isinstance(scale, Sequence):
        values = [check_number(value, f"scale[{index}]") for index, value in enumerate(scale)]
        return combine_each(cond, uncond, values, convention, _one)
    return _one(cond, uncond, check_number(scale, "scale"), convention)


def _one(cond: Tensor, uncond: Tensor, scale: float, convention: Convention) -> Tensor:
    combined = combine(cond, uncond, scale, convention)
    if combined is cond:
        return cond
    base = uncond if convention == "interpolate" and scale == 0 else cond
    return keep_removed(combined, base, {"cond": cond, "uncond": uncond}, f"scale {scale:g}")


def combine(cond: Tensor, uncond: Tensor, scale: StepStrength, convention: Convention) -> Tensor:
    """:func:`classifier_free_guidance` as it is in a generation: numbers are not looked at.

    Raises:
        GridError: if the shapes differ, or there is another number of scales than of pictures.
        InvalidArgumentError: for an unknown convention or integer logits.
    """
    check_convention(convention)
    if cond.shape != uncond.shape:
        raise GridError(
            f"the branches differ in shape: cond {tuple(cond.shape)}, uncond {tuple(uncond.shape)}"
        )
    if isinstance(scale, tuple):
        return combine_each(cond, uncond, scale, convention, combine)
    if scale == _NEUTRAL[convention]:
        return cond
    dtype = compute_dtype(cond, uncond)
    if convention == "interpolate" and scale == 0:
        return uncond.to(cond.dtype, copy=True)  # 0 times an infinity is none
    c, u = cond.to(dtype), uncond.to(dtype)
    combined = (
        ((1 + scale) * c).sub_(scale * u) if convention == "extra" else (scale * c).add_((1 - scale) * u)
    )
    return combined.to(cond.dtype)


def combine_each(
    cond: Tensor,
    uncond: Tensor,
    scales: Sequence[float],
    convention: Convention,
    one: Callable[[Tensor, Tensor, float, Convention], Tensor],
) -> Tensor:
    """Combine the branches of every picture with a scale of its own, as ``one`` does for a single scale.

    scales: one for each entry of the branches' first axis. If all are neutral, the result is ``cond`` itself.
    Raises GridError if the shapes differ, or there is another number of scales than of pictures.
    """
    if cond.ndim == 0 or cond.shape != uncond.shape or len(scales) != len(cond):
        raise GridError(
            f"{len(scales)} scales, one a picture, for branches {tuple(cond.shape)} and {tuple(uncond.shape)}"
        )
    if all(scale == _NEUTRAL[convention] for scale in scales):
        return cond
    combined = cond.clone()
    for scale in dict.fromkeys(scales):
        rows = [index for index, own in enumerate(scales) if own == scale]
        combined[rows] = one(cond[rows], uncond[rows], scale, convention)
    return combined


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Guidance towards the condition, away from the unconditional prediction.

    scale: t (``"extra"``) or s (``"interpolate"``): a number, one value per step, or a callable that gets
        every :class:`GuidanceStep` once, when a generation begins, and returns a number. Finite, at least 0.
        Or per picture: ``(B, 1)``, a number for each, or ``(B, steps)``.
    convention: ``"extra"`` or ``"interpolate"``, see the module.
    ramp: how a number is spread over K steps. ``"constant"``; ``"linear"``: from neutral at the first step to
        ``scale`` at the last, in proportion to k / (K - 1), neutral if K = 1; ``"linear-hold"``: the same,
        but the last step repeats the one before it, which is what HART does. ``None`` is ``"linear"`` for a
        number under ``"extra"`` and ``"constant"`` otherwise; it reads back as the ramp that was chosen.

    Raises:
        InvalidArgumentError: for unknown names, values out of range, or a ramp beside values given per step.
    """

    scale: Strength
    convention: Convention = "extra"
    ramp: Ramp | None = None

    def __init__(
        self, scale: StrengthLike, *, convention: Convention = "extra", ramp: Ramp | None = None
    ) -> None:
        check_convention(convention)
        checked = check_strength(scale, "scale")
        single = is_single(checked)
        if ramp is None:
            ramp = "linear" if single and convention == "extra" else "constant"
        if ramp not in RAMPS:
            raise InvalidArgumentError(f"unknown ramp {ramp!r}; choose one of {', '.join(RAMPS)}")
        if ramp != "constant" and not single:
            raise InvalidArgumentError(
                f"the ramp {ramp!r} shapes a single number, but scale is already given per step; "
                f"use one of the two"
            )
        object.__setattr__(self, "scale", checked)
        object.__setattr__(self, "convention", convention)
        object.__setattr__(self, "ramp", ramp)

    @property
    def branches(self) -> tuple[str, ...]:
        """``("cond",)`` if every step is neutral, else ``("cond", "uncond")``, as for any callable."""
        rows = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        values = [value for row in rows for value in (row if isinstance(row, tuple) else (row,))]
        if all(value == _NEUTRAL[self.convention] for value in values):
            return (CONDITIONAL,)
        return (CONDITIONAL, UNCONDITIONAL)

    def scales(self, grids: Iterable[Sequence[int]]) -> tuple[StepStrength, ...]:
        """The t or s of every step of a generation over these grids; one per picture where they differ.

        Raises:
            InvalidArgumentError: if the values given per step are not one per step.
        """
        checked = as_grids(grids)
        rows = picture_rows(self.scale)
        if self.ramp == "constant" or not is_single(self.scale):
            return resolve_strength(self.scale, checked, name="scale")
        if rows is not None:
            return by_step([self._ramped(float(row), len(checked)) for row in rows])  # type: ignore[arg-type]
        return self._ramped(float(self.scale), len(checked))  # type: ignore[arg-type]

    def _ramped(self, scale: float, steps: int) -> tuple[float, ...]:
        neutral, last = _NEUTRAL[self.convention], steps - 1
        # scale * (k / (K - 1)) in this order: the rounding of the official code.
        ramped = [neutral + (scale - neutral) * (index / max(last, 1)) for index in range(steps)]
        if self.ramp == "linear-hold" and last > 0:
            ramped[last] = ramped[last - 1]
        return tuple(ramped)

    def begin(self, grids: Sequence[Grid]) -> ClassifierFreeState:
        """Start one generation.

        Raises:
            InvalidArgumentError: if the values given per step are not one per step.
        """
        return ClassifierFreeState(self.scales(grids), self.convention)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them.

        Raises:
            InvalidArgumentError: if the scale is a callable.
        """
        scale = strength_to_json(self.scale, "scale")
        return {"method": _METHOD, "scale": scale, "convention": self.convention, "ramp": self.ramp}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> ClassifierFreeGuidance:
        """The inverse of :meth:`to_dict`.

        Raises:
            InvalidArgumentError: for settings of something else, missing or unknown entries, or bad values.
        """
        values = settings_from_dict(settings, _METHOD, _SETTINGS)
        if "scale" not in values:
            raise InvalidArgumentError(f"the settings of {_METHOD!r} need a scale; got {settings!r}")
        return cls(**values)


class ClassifierFreeState:
    """One generation of :class:`ClassifierFreeGuidance`; it remembers nothing."""

    def __init__(self, scales: Sequence[StepStrength], convention: Convention) -> None:
        self._scales = tuple(scales)
        self._convention = convention

    def __call__(self, step: GuidanceStep, branches: Mapping[str, Tensor]) -> Tensor:
        """Combine this step's branches; ``"uncond"`` is needed only where the step is not neutral.

        Raises:
            InvalidArgumentError: if a needed branch is missing.
            GridError: if the branches differ in shape.
        """
        cond = require_branch(branches, CONDITIONAL)
        scale = self._scales[step.index]
        if scale == _NEUTRAL[self._convention]:
            return cond
        uncond = require_branch(branches, UNCONDITIONAL)
        return combine(cond, uncond, scale, self._convention)

    def end(self) -> None:
        """Nothing to drop."""


def check_convention(convention: str) -> None:
    """Raises InvalidArgumentError, naming the known ones, for an unknown convention."""
    if convention not in CONVENTIONS:
        raise InvalidArgumentError(
            f"unknown convention {convention!r}; choose one of {', '.join(CONVENTIONS)}"
        )
