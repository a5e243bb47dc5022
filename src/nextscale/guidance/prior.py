"""Spatial priors: what the logits of a coarse grid say about a finer one.

Every prior here is linear in the coarse logits and acts on each channel alone, so for a pair of grids it is
one matrix ``P`` of shape ``(h_fine * w_fine, h_coarse * w_coarse)``. Each is moreover a sum of at most three
Kronecker products of a matrix over rows and one over columns. Along an axis, from ``n`` to ``m`` cells, let

    ``N``  pick the nearest cell, ``B`` interpolate linearly (half-pixel centres, clamped edges),
    ``Q_n`` be the orthonormal DCT-II of ``n`` points, ``Q_m[:n]`` the first ``n`` rows of ``Q_m``,
    ``R = Q_m[:n]^T Q_m[:n] B``  the part of ``B`` at the ``n`` lowest frequencies,
    ``D = sqrt(m / n) Q_m[:n]^T Q_n``  the band-limited interpolation: coefficients copied, zeros above.

Then, with ``a = (h_coarse w_coarse / (h_fine w_fine)) ** e`` and ``e`` = 0, 1/2, 1 for the norms
``"forward"``, ``"ortho"``, ``"backward"``,

    nearest   ``N (x) N``
    bilinear  ``B (x) B``
    dct       ``a D (x) D``
    dse       ``B (x) B  -  R (x) R  +  a D (x) D``

The last line is the Discrete Spatial Enhancement of Scaled Spatial Guidance (arXiv 2602.05534) written out:
replace the low block of the upsampled map's spectrum by the coarse map's spectrum. See
``docs/method.md``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance.base import Grid, as_grid, compute_dtype
from nextscale.kernels import fused_for, fusible, linear

PriorKind = Literal["nearest", "bilinear", "dct", "dse"]
Norm = Literal["ortho", "forward", "backward"]
PRIOR_KINDS: tuple[str, ...] = get_args(PriorKind)
NORMS: tuple[str, ...] = get_args(Norm)

_NORM_EXPONENT = {"forward": 0.0, "ortho": 0.5, "backward": 1.0}

# One dense product does more arithmetic than the two of the separable form, yet runs it closer to the
# machine's peak. On one CPU core they take equal time where the arithmetic differs about threefold (grids
# near 16 x 16).
_DENSE_ADVANTAGE = 3.0
# Multiplications of one sample from which on oneDNN pays, which is called for one sample at a time.
_FUSED_WORK = 1 << 21


def prior_operator(
    coarse: Sequence[int],
    fine: Sequence[int],
    kind: PriorKind = "dse",
    *,
    norm: Norm = "ortho",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The matrix of a spatial prior.

    Args:
        coarse: ``(height, width)`` of the grid the prior is made from.
        fine: ``(height, width)`` of the grid it is made for, along no axis smaller than ``coarse``.
        kind: ``"nearest"`` (``nearest-exact``), ``"bilinear"``, ``"dct"`` or ``"dse"``.
        norm: the normalisation of the cosine transform with scipy's meaning; ``"nearest"`` and ``"bilinear"``
            do not depend on it.
        dtype: a floating type; the entries are computed in float64 and rounded once.
        device: where the result lives; the CPU if ``None``.

    Returns:
        ``(h_fine * w_fine, h_coarse * w_coarse)``, a new tensor. Rows and columns count cells row by row.

    Raises:
        GridError: if ``fine`` is smaller than ``coarse`` along an axis, or either is not a grid.
        InvalidArgumentError: for an unknown kind or norm, or a type that is not floating point.
    """
    coarse, fine = check_growth(coarse, fine)
    check_prior(kind, norm)
    if not dtype.is_floating_point:
        raise InvalidArgumentError(f"dtype must be a floating type, such as torch.float32; got {dtype}")
    with torch.inference_mode(False), torch.no_grad():
        matrix = _dense_matrix(_terms(coarse, fine, kind, norm))
        return matrix.to(dtype).to("cpu" if device is None else device)


def spatial_prior(
    previous: Tensor,
    *,
    coarse: Sequence[int],
    fine: Sequence[int],
    kind: PriorKind = "dse",
    norm: Norm = "ortho",
    position_dim: int | None = None,
) -> Tensor:
    """What the previous step's logits say about the next, finer grid.

    Args:
        previous: ``(..., h_coarse * w_coarse, C)``, cells row by row; or bit logits
            ``(B, h_coarse * w_coarse, bits, 2)``. Finite: a ``-inf`` from a filter becomes NaN all over its
            channel.
        coarse: ``(height, width)`` of ``previous``.
        fine: ``(height, width)`` of the result.
        kind: see :func:`prior_operator`.
        norm: see :func:`prior_operator`.
        position_dim: the axis that counts cells. ``None`` finds it: the second last one, or, in a 4-D tensor
            whose last axis has size 2, axis 1, whichever has the right size. If both have, that is an error.

    Returns:
        The same shape with ``h_fine * w_fine`` cells, a new tensor of the same dtype. float16 and bfloat16
        are computed in float32, whatever autocast says. With equal grids the values are those of
        ``previous``.

    Raises:
        GridError: if the grids do not fit each other or ``previous``, or the axis of the cells is ambiguous.
        InvalidArgumentError: for an unknown kind or norm, or integer logits.
    """
    coarse, fine = check_growth(coarse, fine)
    check_prior(kind, norm)
    dim = find_position_dim([(previous, coarse)], position_dim, indifferent=coarse == fine)
    dtype = compute_dtype(previous)
    if coarse == fine:
        return previous.clone()
    operator = spatial_operator(coarse, fine, kind, norm, dtype, previous.device)
    with no_autocast(previous):
        flat = flatten_cells(previous, dim).to(dtype)  # (N, h_c*w_c, X)
        prior = operator.apply(flat)  # (N, h_f*w_f, X)
    shape = (*previous.shape[:dim], fine[0] * fine[1], *previous.shape[dim + 1 :])
    return prior.to(previous.dtype).reshape(shape)


@dataclass(frozen=True)
class SpatialOperator:
    """A prior ready for use: ``prior = left @ (right applied along the coarse rows)``.

    Dense form: ``left`` is ``P`` itself and ``right`` is ``None``. Separable form of ``T`` Kronecker terms:
    ``right`` ``(T * w_fine, w_coarse)`` maps the columns of every coarse row, once per term, and ``left``
    ``(h_fine, h_coarse * T)`` maps the rows and sums the terms. Either way the last thing that happens is a
    single matrix product per sample, which can accumulate onto the logits.
    """

    left: Tensor
    right: Tensor | None
    coarse: Grid
    fine: Grid

    def apply(self, previous: Tensor) -> Tensor:
        """``P @ previous`` for each sample: ``(N, h_c*w_c, X)`` to ``(N, h_f*w_f, X)``."""
        columns = self._columns(previous)
        left = self.left.expand(len(previous), -1, -1)
        return torch.bmm(left, columns).reshape(len(previous), math.prod(self.fine), previous.shape[2])

    def accumulate(self, logits: Tensor, previous: Tensor, beta: float) -> Tensor:
        """``(1 + beta) * logits - beta * P @ previous`` in one multiply-accumulate.

        logits: ``(N, h_f*w_f, X)``; previous: ``(N, h_c*w_c, X)``; same dtype. Returns ``(N, h_f*w_f, X)``.
        """
        fused = fused_for(logits)
        if fused is not None and self.right is None and logits.dtype == torch.float32:
            return self.accumulate_parts(logits, fused.in_parts(previous), beta)
        columns = self._columns(previous)
        left = self.left.expand(len(previous), -1, -1)
        rows = logits.reshape(len(logits), left.shape[1], columns.shape[2])
        if self.left.numel() * columns.shape[2] >= _FUSED_WORK and fusible(columns, self.left):
            guided = rows * (1.0 + beta)
            for one, previous_one in zip(guided, columns, strict=True):
                one.sub_(linear(self.left, previous_one.T), alpha=beta)
            return guided.reshape(logits.shape)
        return torch.baddbmm(rows, left, columns, beta=1.0 + beta, alpha=-beta).reshape(logits.shape)

    def accumulate_parts(self, logits: Tensor, parts: Tensor, beta: float) -> Tensor:
        """The same for a dense operator, with previous logits in parts; see :mod:`nextscale.fused`."""
        made: Tensor = _fused().accumulate(logits, parts, self._left_in_parts, beta)
        return made

    @cached_property
    def _left_in_parts(self) -> Tensor:
        with torch.inference_mode(False):
            parts: Tensor = _fused().operator_in_parts(self.left)
        return parts

    def _columns(self, previous: Tensor) -> Tensor:
        if self.right is None:
            return previous
        (height, width), (samples, _, channels) = self.coarse, previous.shape
        rows = previous.reshape(samples * height, width, channels)  # (N*h_c, w_c, X)
        mapped = torch.bmm(self.right.expand(len(rows), -1, -1), rows)  # (N*h_c, T*w_f, X)
        return mapped.reshape(samples, self.left.shape[1], self.fine[1] * channels)  # (N, h_c*T, w_f*X)


def _fused() -> ModuleType:
    return importlib.import_module("nextscale.fused")


class Remembered:
    """A copy of logits, ``(B, l, C)`` or ``(B, l, bits, 2)``, in the form that the next grid is guided by."""

    def __init__(self, logits: Tensor, coarse: Grid, fine: Grid, kind: str, norm: str) -> None:
        self.parts: Tensor | None = None
        fused = fused_for(logits)
        if fused is not None and logits.ndim == 3 and logits.dtype == torch.float32 and coarse != fine:
            operator = spatial_operator(coarse, fine, kind, norm, logits.dtype, logits.device)
            if operator.right is None:
                self._operator, self.parts = operator, fused.in_parts(logits)
                return
        self._logits = logits.clone()

    @property
    def logits(self) -> Tensor:
        """The logits themselves."""
        return self._logits if self.parts is None else self.parts.float().sum(0)

    def accumulate(self, logits: Tensor, beta: float) -> Tensor | None:
        """:meth:`SpatialOperator.accumulate` where that can be done with what is kept, else ``None``."""
        if self.parts is None or logits.dtype != torch.float32 or fused_for(logits) is None:
            return None
        batch, _, channels = self.parts.shape[1:]
        if tuple(logits.shape) != (batch, math.prod(self._operator.fine), channels):
            return None
        return self._operator.accumulate_parts(logits, self.parts, beta)


@lru_cache(maxsize=512)
def spatial_operator(
    coarse: Grid, fine: Grid, kind: str, norm: str, dtype: torch.dtype, device: torch.device
) -> SpatialOperator:
    """The cached operator, in whichever form is cheaper. Callers check arguments and change no tensor."""
    terms = _terms(coarse, fine, kind, norm)
    (h_coarse, w_coarse), (h_fine, w_fine) = coarse, fine
    dense_cost = h_fine * w_fine * h_coarse * w_coarse
    separable_cost = len(terms) * h_coarse * w_fine * (w_coarse + h_fine)
    # Outside of inference mode, as in _terms: tensors born inside it can never take part in a backward pass,
    # and the first caller must not decide that for all later ones.
    with torch.inference_mode(False), torch.no_grad():
        if dense_cost <= _DENSE_ADVANTAGE * separable_cost:
            return SpatialOperator(_dense_matrix(terms).to(dtype).to(device), None, coarse, fine)
        left = torch.stack([rows for rows, _ in terms], dim=2).reshape(h_fine, -1)
        right = torch.cat([columns for _, columns in terms])
        return SpatialOperator(left.to(dtype).to(device), right.to(dtype).to(device), coarse, fine)


def _dense_matrix(terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([torch.kron(rows, columns) for rows, columns in terms]).sum(0)


@lru_cache(maxsize=256)
def _terms(coarse: Grid, fine: Grid, kind: str, norm: str) -> tuple[tuple[Tensor, Tensor], ...]:
    """The Kronecker terms ``(over rows, over columns)`` of a prior, in float64 on the CPU."""
    with torch.inference_mode(False), torch.no_grad():
        if coarse == fine:
            return ((_identity(fine[0]), _identity(fine[1])),)
        sizes = list(zip(coarse, fine, strict=True))
        if kind == "nearest":
            rows, columns = (_nearest(*size) for size in sizes)
            return ((rows, columns),)
        linear_rows, linear_columns = (_linear(*size) for size in sizes)
        if kind == "bilinear":
            return ((linear_rows, linear_columns),)
        amplitude = (math.prod(coarse) / math.prod(fine)) ** _NORM_EXPONENT[norm]
        band_rows, band_columns = (_band_limited(*size) for size in sizes)
        low = (amplitude * band_rows, band_columns)
        if kind == "dct":
            return (low,)
        removed_rows, removed_columns = (_lowpass(*size) @ _linear(*size) for size in sizes)
        return ((linear_rows, linear_columns), (-removed_rows, removed_columns), low)


def _identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64, device="cpu")


def _nearest(coarse: int, fine: int) -> Tensor:
    # torch finds the source cell of 2-D "nearest-exact" in float32, which decides at ties; so do we.
    scale = torch.tensor(coarse / fine, dtype=torch.float32, device="cpu")
    centres = torch.arange(fine, dtype=torch.float32, device="cpu") + 0.5
    cells = (centres * scale).floor().long().clamp(max=coarse - 1)
    return _identity(coarse)[cells]


def _linear(coarse: int, fine: int) -> Tensor:
    """Linear interpolation with half-pixel centres and clamped edges, ``(fine, coarse)``."""
    if coarse == fine:
        return _identity(fine)
    centres = torch.arange(fine, dtype=torch.float64, device="cpu") + 0.5
    source = (centres * (coarse / fine) - 0.5).clamp(min=0.0, max=coarse - 1.0)
    left = source.floor().long()
    right = (left + 1).clamp(max=coarse - 1)
    weight = (source - left).unsqueeze(1)
    cells = _identity(coarse)
    return (1.0 - weight) * cells[left] + weight * cells[right]


def _cosines(size: int) -> Tensor:
    """The orthonormal DCT-II of ``size`` points, ``(frequency, cell)``."""
    frequency = torch.arange(size, device="cpu").unsqueeze(1)
    cell = torch.arange(size, device="cpu")
    # Reducing the angle while it is an integer keeps the cosine's full precision.
    quarters = (frequency * (2 * cell + 1)) % (4 * size)
    basis = torch.cos(quarters.double() * (math.pi / (2 * size))) * math.sqrt(2.0 / size)
    basis[0] = math.sqrt(1.0 / size)
    return basis


def _band_limited(coarse: int, fine: int) -> Tensor:
    """``D``: the coarse cosine series evaluated at the fine cells, ``(fine, coarse)``."""
    if coarse == fine:
        return _identity(fine)
    return math.sqrt(fine / coarse) * _cosines(fine)[:coarse].T @ _cosines(coarse)


def _lowpass(coarse: int, fine: int) -> Tensor:
    """Projection of a fine axis onto its ``coarse`` lowest frequencies, ``(fine, fine)``."""
    if coarse == fine:
        return _identity(fine)
    low = _cosines(fine)[:coarse]
    return low.T @ low


def check_growth(coarse: Sequence[int], fine: Sequence[int]) -> tuple[Grid, Grid]:
    """Both grids, checked: the fine one at least as large as the coarse one along both axes.

    Raises:
        GridError: if it is not.
    """
    small, large = as_grid(coarse, "coarse"), as_grid(fine, "fine")
    if large[0] < small[0] or large[1] < small[1]:
        raise GridError(
            f"the fine grid {large} is smaller than the coarse grid {small} along an axis; priors only refine"
        )
    return small, large


def check_prior(kind: str, norm: str) -> None:
    """Raises InvalidArgumentError, naming the allowed values, for an unknown kind or norm."""
    if kind not in PRIOR_KINDS:
        raise InvalidArgumentError(f"unknown prior {kind!r}; choose one of {', '.join(PRIOR_KINDS)}")
    if norm not in NORMS:
        raise InvalidArgumentError(f"unknown norm {norm!r}; choose one of {', '.join(NORMS)}")


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on this tensor's device keep the dtype they are given."""
    try:
        return torch.autocast(tensor.device.type, enabled=False)
    except RuntimeError:  # a device without autocast, such as "meta"; torch 2.1 cannot be asked beforehand
        return nullcontext()


def find_position_dim(
    tensors: Sequence[tuple[Tensor, Grid]], position_dim: int | None, *, indifferent: bool
) -> int:
    """The axis, counted from the front, that counts grid cells in all these tensors of equal rank.

    ``indifferent`` says that the result will not depend on the choice, so that any fitting axis will do.

    Raises:
        GridError: if no axis fits all tensors, or more than one does and ``indifferent`` is false.
    """
    first = tensors[0][0]
    rank = first.ndim
    if position_dim is not None:
        if not -rank <= position_dim < rank:
            raise GridError(f"position_dim {position_dim} is outside of logits of shape {tuple(first.shape)}")
        candidates = [position_dim % rank]
    else:
        candidates = [rank - 2] if rank >= 2 else []
        if rank == 4 and first.shape[3] == 2:
            candidates.append(1)
    found = [dim for dim in candidates if all(t.shape[dim] == h * w for t, (h, w) in tensors)]
    if len(found) == 1 or (found and indifferent):
        return found[0]
    shapes = " and ".join(f"{tuple(t.shape)} on the grid {h}x{w}" for t, (h, w) in tensors)
    if found:
        raise GridError(
            f"logits of shape {shapes}: axis 1 and axis 2 could both count cells; pass position_dim"
        )
    raise GridError(f"logits of shape {shapes}: expected h*w cells along the second last axis (..., h*w, C)")


def flatten_cells(tensor: Tensor, dim: int) -> Tensor:
    """``(N, cells, X)``: everything before and after the axis of the cells folded into one axis each."""
    before, after = tensor.shape[:dim], tensor.shape[dim + 1 :]
    return tensor.reshape(math.prod(before), tensor.shape[dim], math.prod(after))
