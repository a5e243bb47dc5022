"""Scaled Spatial Guidance (SSG, arXiv 2602.05534): stress what a step adds to the coarser one before it.

With ``l_k`` the logits of step k and ``P`` the prior from step k-1 to step k (see
:mod:`nextscale.guidance.prior`),

    l_k + beta * (l_k - P l_{k-1})  =  (1 + beta) * l_k - beta * P l_{k-1}

is what is sampled from: one matrix product that accumulates onto the logits. The first step has no prior and
stays as it is. ``docs/method.md`` says where this comes from, and which parts are this library's choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance.base import (
    CONDITIONAL,
    Grid,
    GuidanceStep,
    as_grids,
    compute_dtype,
    require_branch,
)
from nextscale.guidance.prior import (
    Norm,
    PriorKind,
    Remembered,
    check_growth,
    check_prior,
    find_position_dim,
    flatten_cells,
    no_autocast,
    spatial_operator,
    spatial_prior,
)
from nextscale.guidance.removed import keep_removed
from nextscale.guidance.schedules import (
    ScheduleName,
    StepStrength,
    Strength,
    StrengthLike,
    check_number,
    check_schedule,
    check_strength,
    resolve_strength,
    settings_from_dict,
    strength_to_json,
)

Remember = Literal["unguided", "guided"]
REMEMBER: tuple[str, ...] = get_args(Remember)

DEFAULT_BETA = 0.6
"""The strength where neither the caller nor the model names one: a starting point, not a measured optimum."""

_METHOD = "scaled_spatial_guidance"
_SETTINGS = ("beta", "schedule", "prior", "norm", "remember", "start", "stop")
# What settings are that neither the caller nor the model names.
_SCHEDULE: ScheduleName = "constant"
_PRIOR: PriorKind = "dse"
_NORM: Norm = "ortho"
_REMEMBER: Remember = "unguided"
_START = 1  # also what a model's default replaces; 0 says the same, and stays
# (B, l, C) and (B, l, bits, 2) alike: what the loop passes has its cells along axis 1.
_LOOP_POSITION_DIM = 1


def scaled_spatial_guidance(
    logits: Tensor,
    previous: Tensor,
    *,
    coarse: Sequence[int],
    fine: Sequence[int],
    beta: float,
    kind: PriorKind = "dse",
    norm: Norm = "ortho",
    position_dim: int | None = None,
) -> Tensor:
    """``(1 + beta) * logits - beta * spatial_prior(previous)``.

    Args:
        logits: of this step, ``(..., h_fine * w_fine, C)``, cells row by row; or bit logits
            ``(B, h_fine * w_fine, bits, 2)``. Before temperature and filters: finite, but for choices that
            are forbidden, ``-inf`` in all cells of both; what is ``-inf`` here stays so.
        previous: of the step before, the same shape but for ``h_coarse * w_coarse`` cells.
        coarse: ``(height, width)`` of ``previous``.
        fine: ``(height, width)`` of ``logits``, along no axis smaller than ``coarse``.
        beta: the strength, at least 0 and at most :data:`~nextscale.guidance.schedules.MOST`.
        kind: ``"nearest"``, ``"bilinear"``, ``"dct"`` or ``"dse"``, see :func:`prior_operator`.
        norm: ``"ortho"``, ``"forward"`` or ``"backward"``, see :func:`prior_operator`.
        position_dim: the axis that counts cells, the same in both tensors. ``None`` finds it: the second last
            one, or, in 4-D tensors whose last axis has size 2, axis 1, whichever has the right sizes in both.
            Only equal grids could leave that open, and for those it makes no difference.

    Returns:
        A new tensor of the shape and dtype of ``logits``, which shares memory with neither input; for
        ``beta=0`` a bit for bit copy of ``logits``. float16 and bfloat16 are computed in float32, whatever
        autocast says. Gradients flow to both. On CUDA the product follows PyTorch's global TF32 setting, but
        for NVIDIA GPUs without gradients, where it is always about as exact as in float32, and numbers of
        ``previous`` beyond 65504 make NaN; see :mod:`nextscale.fused`.

    Raises:
        GridError: if the grids do not fit each other or the tensors, or the tensors each other.
        InvalidArgumentError: for a bad beta, an unknown kind or norm, or integer logits; and on a CPU, where
            logits that were finite would become NaN or infinite. (On a GPU they do: to look is to wait.)
    """
    beta = check_number(beta, "beta")
    guided = _guided(logits, previous, coarse, fine, beta, kind, norm, position_dim)
    return keep_removed(guided, logits, {"previous": previous}, f"beta {beta:g}")


def _guided(
    logits: Tensor,
    previous: Tensor,
    coarse: Sequence[int],
    fine: Sequence[int],
    beta: float,
    kind: PriorKind,
    norm: Norm,
    position_dim: int | None,
) -> Tensor:
    """:func:`scaled_spatial_guidance` as it is in a generation: numbers are not looked at."""
    coarse, fine = check_growth(coarse, fine)
    check_prior(kind, norm)
    dtype = compute_dtype(logits, previous)
    dim = _common_position_dim(logits, previous, coarse, fine, position_dim)
    if beta == 0.0:
        return logits.clone()
    with no_autocast(logits):
        base = flatten_cells(logits, dim).to(dtype)  # (N, h_f*w_f, X)
        memory = flatten_cells(previous, dim).to(dtype)  # (N, h_c*w_c, X)
        if coarse == fine:
            guided = torch.sub((1.0 + beta) * base, memory, alpha=beta)
        else:
            operator = spatial_operator(coarse, fine, kind, norm, dtype, logits.device)
            guided = operator.accumulate(base, memory, beta)
    return guided.to(logits.dtype).reshape(logits.shape)


def _common_position_dim(
    logits: Tensor, previous: Tensor, coarse: Grid, fine: Grid, position_dim: int | None
) -> int:
    shapes = f"logits {tuple(logits.shape)} on the grid {fine[0]}x{fine[1]} and previous logits"
    shapes += f" {tuple(previous.shape)} on the grid {coarse[0]}x{coarse[1]}"
    if logits.ndim != previous.ndim:
        raise GridError(f"{shapes} differ in their number of axes")
    pairs = [(logits, fine), (previous, coarse)]
    dim = find_position_dim(pairs, position_dim, indifferent=coarse == fine)
    expected = (*logits.shape[:dim], coarse[0] * coarse[1], *logits.shape[dim + 1 :])
    if previous.shape != expected:
        raise GridError(f"{shapes} do not belong together: the previous ones should have shape {expected}")
    return dim


@dataclass(frozen=True)
class ScaledSpatialGuidance:
    """Scaled Spatial Guidance as a setting: frozen, free of tensors, to be shared between calls and threads.

    With a strength it is complete, and means the same with every model. Without one, whatever is left at
    ``None``, and a ``start`` of 1, is what the model was tuned to, or the defaults named below.

    beta: the strength: a number, one value per step (the first is unused), a callable that gets every
        :class:`GuidanceStep` once, when a generation begins, and returns a number, or ``None`` for the
        default of the model, and :data:`DEFAULT_BETA` where it has none. Finite, at least 0. Or per picture:
        ``(B, 1)``, a number for each, or ``(B, steps)``.
    schedule: how a number is spread over the steps: ``"constant"`` (the default), ``"linear"``,
        ``"cosine"`` or ``"bandwidth"``, see :mod:`nextscale.guidance.schedules`.
    prior: ``"dse"`` (the default), ``"dct"``, ``"bilinear"`` or ``"nearest"``.
    norm: ``"ortho"`` (the default), ``"forward"`` or ``"backward"``.
    remember: what the next step's prior is made from: this step's ``"unguided"`` logits (after
        classifier-free guidance, before SSG; the default) or the ``"guided"`` ones.
    start: the first step that is guided, counted from 0. Step 0 never is.
    stop: the step before which guidance ends; ``None`` guides to the last.

    Raises:
        InvalidArgumentError: for unknown names or values out of range; the message lists what is allowed.
    """

    beta: Strength | None
    schedule: ScheduleName | None
    prior: PriorKind | None
    norm: Norm | None
    remember: Remember | None
    start: int
    stop: int | None

    def __init__(
        self,
        beta: StrengthLike | None = None,
        *,
        schedule: ScheduleName | None = None,
        prior: PriorKind | None = None,
        norm: Norm | None = None,
        remember: Remember | None = None,
        start: int = _START,
        stop: int | None = None,
    ) -> None:
        checked = None if beta is None else check_strength(beta, "beta")
        _check_range(start, stop)
        given = (schedule, prior, norm, remember)
        complete = (
            _SCHEDULE if schedule is None else schedule,
            _PRIOR if prior is None else prior,
            _NORM if norm is None else norm,
            _REMEMBER if remember is None else remember,
        )
        check_schedule(complete[0], checked)
        check_prior(complete[1], complete[2])
        if complete[3] not in REMEMBER:
            raise InvalidArgumentError(f"unknown remember {remember!r}; choose one of {', '.join(REMEMBER)}")
        values = (checked, *(given if checked is None else complete), start, stop)
        for name, value in zip(_SETTINGS, values, strict=True):
            object.__setattr__(self, name, value)

    @property
    def branches(self) -> tuple[str, ...]:
        """``("cond",)``: SSG costs no further pass of the model."""
        return (CONDITIONAL,)

    def with_defaults(self, default: ScaledSpatialGuidance | StrengthLike | None) -> ScaledSpatialGuidance:
        """These settings, if they name a strength; else those of ``default``, but for what is named here.

        default: a model's settings, or its strength alone; ``None`` leaves open what is open.
        """
        model = as_ssg(default)
        if self.beta is not None or model is None:
            return self
        named = {name: getattr(self, name) for name in _SETTINGS if getattr(self, name) is not None}
        if self.start == _START:
            del named["start"]
        return replace(model, **named)

    def betas(self, grids: Iterable[Sequence[int]]) -> tuple[StepStrength, ...]:
        """The strength that acts at every step, one per picture where they differ: 0 at the first one and
        outside of ``start`` and ``stop``.

        Raises:
            InvalidArgumentError: if the values given per step are not one per step, or a callable gives a bad
            one.
            GridError: if a guided step has a smaller grid than the step before it.
        """
        checked = as_grids(grids)
        beta = DEFAULT_BETA if self.beta is None else self.beta
        strengths = resolve_strength(beta, checked, schedule=self.schedule or _SCHEDULE)
        stop = len(checked) if self.stop is None else self.stop
        active = tuple(b if max(self.start, 1) <= k < stop else 0.0 for k, b in enumerate(strengths))
        for index, strength in enumerate(active):
            if strength:
                check_growth(checked[index - 1], checked[index])
        return active

    def begin(self, grids: Sequence[Grid]) -> ScaledSpatialState:
        """Start one generation over these grids. Raises what :meth:`betas` raises."""
        return ScaledSpatialState(self, grids)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them.

        Raises:
            InvalidArgumentError: if beta is a callable.
        """
        settings: dict[str, Any] = {"method": _METHOD, **{name: getattr(self, name) for name in _SETTINGS}}
        settings["beta"] = strength_to_json(self.beta, "beta")
        return settings

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> ScaledSpatialGuidance:
        """The inverse of :meth:`to_dict`; entries that are missing get their defaults.

        Raises:
            InvalidArgumentError: for settings of something else, unknown entries, or bad values.
        """
        return cls(**settings_from_dict(settings, _METHOD, _SETTINGS))


class _Memory(NamedTuple):
    step: int
    kept: Remembered


class ScaledSpatialState:
    """One generation of :class:`ScaledSpatialGuidance`: remembers the logits of one step, if needed."""

    def __init__(self, settings: ScaledSpatialGuidance, grids: Sequence[Grid]) -> None:
        self._prior, self._norm = settings.prior or _PRIOR, settings.norm or _NORM
        self._remember_guided = settings.remember == "guided"
        self._grids = as_grids(grids)
        self._betas = settings.betas(self._grids)
        self._memory: _Memory | None = None
        self._ended = False

    def __call__(self, step: GuidanceStep, branches: Mapping[str, Tensor]) -> Tensor:
        """Guide this step's ``"cond"`` logits, ``(B, l, C)`` or ``(B, l, bits, 2)``.

        A step that is not guided returns its input. So does one whose predecessor was skipped, since there is
        nothing to compare it with. With ``step.positions`` the prior is built on the whole grid and read at
        those cells; any number of such draws may follow one another, and they are not remembered.

        Raises:
            GridError: if the step's grids are not those the generation began with, or shapes do not fit.
            InvalidArgumentError: if ``"cond"`` is missing, or after :meth:`end`.
        """
        if self._ended:
            raise InvalidArgumentError("this generation has ended; begin a new one")
        if step.grids != self._grids:
            raise GridError(f"the generation began with the grids {self._grids}; this step has {step.grids}")
        logits = require_branch(branches, CONDITIONAL)
        guided = self._guide(step, logits)
        if step.positions is None:
            self._remember(step.index, guided if self._remember_guided else logits)
        return guided

    def end(self) -> None:
        """Drop the memory; the state cannot be used any more."""
        self._memory = None
        self._ended = True

    def _guide(self, step: GuidanceStep, logits: Tensor) -> Tensor:
        beta, memory = self._betas[step.index], self._memory
        if beta == 0.0 or memory is None or memory.step != step.index - 1:
            return logits
        if isinstance(beta, tuple):
            return self._guide_each(step, logits, memory, beta)
        guided = None if step.positions is not None else memory.kept.accumulate(logits, beta)
        if guided is not None:
            return guided
        return self._guide_all(step, logits, memory.kept.logits, step.positions, beta)

    def _guide_each(
        self, step: GuidanceStep, logits: Tensor, memory: _Memory, betas: tuple[float, ...]
    ) -> Tensor:
        """Pictures of one strength together, each as it would be guided without the others."""
        if len(betas) != len(logits):
            raise GridError(f"{len(betas)} strengths, one a picture, for logits {tuple(logits.shape)}")
        guided, previous = logits.clone(), memory.kept.logits
        for beta in dict.fromkeys(betas):
            rows = [index for index, own in enumerate(betas) if own == beta]
            if beta:
                positions = None if step.positions is None else step.positions[rows]
                guided[rows] = self._guide_all(step, logits[rows], previous[rows], positions, beta)
        return guided

    def _guide_all(
        self, step: GuidanceStep, logits: Tensor, previous: Tensor, positions: Tensor | None, beta: float
    ) -> Tensor:
        coarse, fine = self._grids[step.index - 1], step.grid
        kind, norm = self._prior, self._norm
        if positions is not None:
            previous = previous.to(compute_dtype(logits, previous))
            prior = spatial_prior(
                previous, coarse=coarse, fine=fine, kind=kind, norm=norm, position_dim=_LOOP_POSITION_DIM
            )
            return _guide_at(logits, prior, positions, beta)
        return _guided(logits, previous, coarse, fine, beta, kind, norm, _LOOP_POSITION_DIM)

    def _remember(self, index: int, logits: Tensor) -> None:
        following = index + 1
        self._memory = None
        if following < len(self._betas) and self._betas[following] != 0.0:
            # A copy: samplers, the official ones among them, filter logits in place.
            grids = self._grids[index], self._grids[following]
            self._memory = _Memory(index, Remembered(logits, *grids, self._prior, self._norm))


def _guide_at(logits: Tensor, prior: Tensor, positions: Tensor, beta: float) -> Tensor:
    """SSG of a part of the grid. logits ``(B, l, ...)``, prior ``(B, h*w, ...)``, positions ``(B, l)``."""
    cells = tuple(positions.shape)
    if (
        cells != tuple(logits.shape[:2])
        or prior.shape[:1] != logits.shape[:1]
        or prior.shape[2:] != logits.shape[2:]
    ):
        raise GridError(
            f"logits {tuple(logits.shape)}, positions {cells} and the prior {tuple(prior.shape)} do not fit; "
            f"expected logits (B, l, C), positions (B, l) and a prior (B, h*w, C)"
        )
    index = positions.reshape(*cells, *[1] * (prior.ndim - 2)).expand(*cells, *prior.shape[2:])
    with no_autocast(logits):
        guided = torch.sub((1.0 + beta) * logits.to(prior.dtype), prior.gather(1, index), alpha=beta)
    return guided.to(logits.dtype)


def as_ssg(value: ScaledSpatialGuidance | StrengthLike | None) -> ScaledSpatialGuidance | None:
    """What a pipeline's ``ssg=`` accepts: ``None`` for no guidance, a strength, or full settings.

    Raises:
        InvalidArgumentError: for a strength that is none.
    """
    if value is None or isinstance(value, ScaledSpatialGuidance):
        return value
    return ScaledSpatialGuidance(value)


def _check_range(start: int, stop: int | None) -> None:
    for name, value in (("start", start), ("stop", stop)):
        if value is None and name == "stop":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidArgumentError(f"{name} must be a step counted from 0; got {value!r}")
    if stop is not None and stop < start:
        raise InvalidArgumentError(f"stop ({stop}) must not be below start ({start})")
