"""SSG for any next-scale sampling loop: an object that keeps count of the steps and remembers the logits."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance import GuidanceState, GuidanceStep, ScaledSpatialGuidance, as_ssg
from nextscale.guidance.base import CONDITIONAL, Grid, as_grid, as_grids
from nextscale.guidance.schedules import StrengthLike


class SpatialGuidanceHook:
    """Scaled Spatial Guidance in three calls::

        hook = SpatialGuidanceHook(ScaledSpatialGuidance(0.6))
        hook.begin(grids)  # before the loop
        for grid in grids:
            logits = ...  # after classifier-free guidance, before temperature, top-k and top-p
            logits = hook(logits)
            ...
        hook.end()  # after the loop

    A hook holds what one generation remembers, so generations that run at the same time need one each; the
    settings can be shared. If a generation fails half-way, :meth:`begin` drops what was left of it.

    Args:
        ssg: the settings, or just the strength.

    Raises:
        InvalidArgumentError: if ``ssg`` is neither.
    """

    def __init__(self, ssg: ScaledSpatialGuidance | StrengthLike) -> None:
        self.ssg = check_ssg(ssg)
        self._grids: tuple[Grid, ...] = ()
        self._index = 0
        self._state: GuidanceState | None = None

    @property
    def grids(self) -> tuple[Grid, ...]:
        """``(height, width)`` of every step of this generation; empty outside of one."""
        return self._grids

    @property
    def index(self) -> int:
        """The step that the next call belongs to, counted from 0."""
        return self._index

    def begin(self, grids: Iterable[int | Sequence[int]]) -> None:
        """Start one generation; one that is still open ends.

        Args:
            grids: ``(height, width)`` of every step, coarse to fine; a number stands for a square, and
                ``(1, height, width)`` is read as Infinity writes it.

        Raises:
            GridError: if a grid is none, or a guided step has a smaller grid than the step before it.
            InvalidArgumentError: if strengths given per step are not one per step.
        """
        self.end()
        checked = read_grids(grids)
        self._state = self.ssg.begin(checked)
        self._grids, self._index = checked, 0

    def __call__(self, logits: Tensor, *, positions: Tensor | None = None) -> Tensor:
        """The logits of the next step, guided.

        Args:
            logits: ``(B, h*w, C)``, or bit logits ``(B, h*w, bits, 2)``, cells row by row.
            positions: only for a last step that is drawn in several parts: the cells predicted this time,
                int64 ``(B, l)``, row-major; then ``logits`` have ``l`` cells. All parts are compared with the
                step before the last.

        Returns:
            The same shape and dtype. ``logits`` are not modified; where there is nothing to do, at the first
            step for example, they are what is returned.

        Raises:
            GridError: if the logits are not those of the next step's grid, or positions come too early.
            InvalidArgumentError: before :meth:`begin`, or after the last step.
        """
        if self._state is None:
            raise InvalidArgumentError("the hook has no grids yet; call begin(grids) before every generation")
        if self._index == len(self._grids):
            raise InvalidArgumentError(
                f"all {len(self._grids)} steps of this generation were guided already; "
                f"call begin(grids) before the next one"
            )
        check_cells(logits, self._grids, self._index, positions)
        step = GuidanceStep(self._index, self._grids, positions)
        guided = self._state(step, {CONDITIONAL: logits})
        if positions is None:
            self._index += 1
        return guided

    def end(self) -> None:
        """Drop everything remembered. Does nothing outside of a generation."""
        if self._state is not None:
            self._state.end()
        self._grids, self._index, self._state = (), 0, None


def check_ssg(value: Any) -> ScaledSpatialGuidance:
    """The settings themselves, or those of a strength.

    Raises:
        InvalidArgumentError: for anything else.
    """
    settings = as_ssg(value)
    if settings is None:
        raise InvalidArgumentError("ssg must be a ScaledSpatialGuidance or a strength such as 0.6; got None")
    return settings


def read_grids(schedule: Iterable[int | Sequence[int]]) -> tuple[Grid, ...]:
    """The token grid of every step, from any of the ways the official code writes them.

    ``patch_nums`` are the sides of squares, ``scale_schedule`` has ``(frames, height, width)``, and
    ``(height, width)`` is a grid already.

    Raises:
        GridError: for anything else, more than one frame included; the message names the entry.
    """
    return as_grids(_read_grid(entry, f"grids[{k}]") for k, entry in enumerate(schedule))


def _read_grid(entry: Any, name: str) -> Grid:
    try:
        side = operator.index(entry)
    except TypeError:
        pass
    else:
        return as_grid((side, side), name)
    if not hasattr(entry, "__len__") or len(entry) != 3:
        return as_grid(entry, name)
    frames, height, width = entry
    if frames != 1:
        raise GridError(f"{name} is {tuple(entry)}: SSG is defined for one picture, not for {frames} frames")
    return as_grid((height, width), name)


def check_cells(logits: Tensor, grids: Sequence[Grid], index: int, positions: Tensor | None = None) -> None:
    """Raises GridError unless the logits belong to this step: all of its cells, or some of the last one's."""
    height, width = grids[index]
    cells = logits.shape[1] if logits.ndim in {3, 4} else None
    if positions is not None and index != len(grids) - 1:
        raise GridError(
            f"positions were given at step {index}; only the last of the {len(grids)} steps may be in parts"
        )
    expected = height * width if positions is None else positions.shape[-1]
    if cells != expected:
        raise GridError(
            f"step {index} has the grid {height}x{width}; expected logits (B, {expected}, C), got "
            f"{tuple(logits.shape)}"
        )
