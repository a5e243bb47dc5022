"""The semantic residual: what a step says that the step before did not, and how far SSG can push it.

The residual of step k is ``r = l_k - prior(l_{k-1})``, and SSG draws from ``l_k + beta r``. Logits mean the
same with a constant added to all choices of a decision (a token, or one bit of a bitwise one), so everything
here is of logits less their mean over the choices.

**Where guidance saturates.** As a function of beta, the logits of every choice are straight lines with the
residual as their slopes. So the choice with the largest residual is the likeliest from some beta on and stays
it, and as beta grows all probability goes to it: beyond, more beta changes nothing. Two curves say how near
that is, both rising from beta to beta and ending at 1: the share of decisions that are ``settled``, their
likeliest choice being that last one already; and ``reached``, the probability that lies on it, which is 1
minus the total variation distance to the limit. Two more say how far guidance has gone from where it began:
``moved``, the share of decisions whose likeliest choice is another than without guidance, and ``kl``, the
Kullback-Leibler divergence of the guided from the unguided prediction, which rises to a limit of its own.
All of them are before temperature and filters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.spectra import cosine_transform
from nextscale.generation.loop import StepInfo
from nextscale.guidance.prior import Norm, PriorKind, spatial_prior
from nextscale.guidance.ssg import Remember
from nextscale.scales import Grid

BETAS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
STATISTICS = ("energy", "share", "new", "entropy", "predicted", "guided")
"""What :func:`residual_statistics` gives: see there."""
CURVES = ("kl", "moved", "settled", "reached")
"""What :func:`saturation` gives: see the module."""
_CHUNK = 1 << 24  # logits that are looked at at once


def residual_statistics(
    logits: Tensor, residual: Tensor, guided: Tensor, *, coarse: Grid, fine: Grid, choices: int
) -> Tensor:
    """Energy and entropy of the residual of every image: ``(B, 6)``, float64 on the CPU.

    logits, residual, guided: ``(B, h*w, C)`` on the grid ``fine``, of this step, as defined above, and what
        was sampled from. coarse: the grid of the step before. choices: C, or 2 for bits.

    ``energy``: mean square over cells and channels. ``share``: that divided by the same of the logits.
    ``new``: the part of the residual's energy at frequencies that the coarse grid cannot hold: outside of
    the ``h_coarse x w_coarse`` lowest coefficients of its cosine transform. ``entropy``: of the residual read
    as logits, ``predicted``: of the unguided prediction, ``guided``: of the guided one; nats per decision,
    at most ``ln(choices)``.
    """
    b, _, c = logits.shape
    centred = [
        _decisions(x, choices) - _decisions(x, choices).mean(-1, keepdim=True) for x in (residual, logits)
    ]
    energy, whole = (x.square().mean((1, 2)).double() for x in centred)
    down, across = (
        cosine_transform(torch.eye(f), 0)[:k].to(residual) for f, k in zip(fine, coarse, strict=True)
    )
    cells = centred[0].reshape(b, *fine, c)
    low = torch.einsum("yh,bhwc->bywc", down, cells)
    low = torch.einsum("xw,bywc->byxc", across, low)  # orthonormal, so that energies add up
    kept = low.square().sum((1, 2, 3)).double() / cells[0].numel()
    tiny = torch.finfo(torch.float32).tiny
    new = (1 - kept / energy.clamp(min=tiny)).clamp(0, 1) * (energy > 0)
    entropies = [_entropy(_decisions(x, choices)) for x in (residual, logits, guided)]
    return torch.stack([energy, energy / whole.clamp(min=tiny), new, *entropies], 1).cpu()


def saturation(logits: Tensor, residual: Tensor, guided: Iterable[Tensor], *, choices: int) -> Tensor:
    """The four :data:`CURVES`: ``(B, 4, number of strengths)``, float64 on the CPU.

    logits, residual: ``(B, h*w, C)``. guided: ``logits + beta * residual`` for every strength wanted.
    """
    begun = _decisions(logits, choices)
    first, last = begun.argmax(-1), _decisions(residual, choices).argmax(-1)
    start = begun.logsumexp(-1)
    found = []
    for values in guided:
        z = _decisions(values, choices)
        highest, likeliest = z.max(-1)
        p = z.softmax(-1)
        total = highest - p.gather(-1, likeliest[..., None]).squeeze(-1).log()  # logsumexp of z
        kl = ((p * (z - begun)).sum(-1) - total + start).clamp(min=0)
        reached = p.gather(-1, last[..., None]).squeeze(-1)
        found.append([kl, likeliest != first, likeliest == last, reached])
    stacked = torch.stack([torch.stack([x.float().mean(1) for x in four], 1) for four in found], 2)
    return stacked.double().cpu()


def _decisions(logits: Tensor, choices: int) -> Tensor:
    """``(B, cells, C)`` as ``(B, decisions, choices)``."""
    return logits.reshape(len(logits), -1, choices)


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean(1).double()


def settled_at(betas: Sequence[float], settled: Sequence[float], share: float = 0.5) -> float | None:
    """The strength at which a rising curve reaches a share, between two strengths by a straight line.

    ``None`` if it does not within the given strengths.
    """
    before = None
    for beta, value in zip(betas, settled, strict=True):
        if value >= share:
            if before is None or value == before[1]:
                return float(beta)
            return float(before[0] + (beta - before[0]) * (share - before[1]) / (value - before[1]))
        before = (beta, value)
    return None


@dataclass
class _Batch:
    """The steps of one batch so far; what a step said is kept for the next one alone."""

    previous: tuple[Grid, Tensor] | None
    statistics: list[Tensor]
    curves: list[Tensor]


class ResidualObserver:
    """A step callback that measures the residual of every step but the first.

    kind, norm, remember: the prior, as :class:`~nextscale.guidance.ssg.ScaledSpatialGuidance` has them.
    betas: strengths of the curves, from 0 up.

    A grid that is predicted in parts counts once all of it is there.
    """

    def __init__(
        self,
        kind: PriorKind = "dse",
        norm: Norm = "ortho",
        remember: Remember = "unguided",
        betas: Sequence[float] = BETAS,
    ) -> None:
        self.kind, self.norm, self.remember, self.betas = kind, norm, remember, tuple(betas)
        self._batches: list[_Batch] = []
        self._parts: tuple[Tensor, Tensor, Tensor] | None = None  # tokens, logits and guided of half a grid

    def __call__(self, info: StepInfo) -> None:
        logits, guided = info.logits, info.guided
        h, w = info.grid
        if logits.shape[1] != h * w:
            whole = self._gathered(info)
            if whole is None:
                return
            logits, guided = whole
        if info.index == 0:
            self._batches.append(_Batch(None, [], []))
        if not self._batches:
            raise InvalidArgumentError("this observer did not see the first step of the batch")
        batch = self._batches[-1]
        if batch.previous is not None:
            choices = logits.shape[2] if info.tokens.ndim == 3 else logits.shape[2] // info.tokens.shape[3]
            statistics, curves = self._measured(batch.previous, logits, guided, info.grid, choices)
            batch.statistics.append(statistics)
            batch.curves.append(curves)
        batch.previous = (info.grid, guided if self.remember == "guided" else logits)

    def rows(self) -> tuple[Tensor, Tensor]:
        """What was seen of every image, in order; nothing is kept afterwards.

        float64 ``(N, K - 1, 6)`` with the :data:`STATISTICS`, and ``(N, K - 1, 4, len(betas) + 1)`` with the
        :data:`CURVES` at every strength and, at the end, of what was sampled from.
        """
        done, self._batches = self._batches, []
        if not done or not done[0].statistics:
            raise InvalidArgumentError("no step after the first was seen")
        parts = [(torch.stack(b.statistics, 1), torch.stack(b.curves, 1)) for b in done]
        statistics, curves = (torch.cat(list(rows)) for rows in zip(*parts, strict=True))
        return statistics, curves

    def _measured(
        self, previous: tuple[Grid, Tensor], logits: Tensor, guided: Tensor, fine: Grid, choices: int
    ) -> tuple[Tensor, Tensor]:
        coarse, before = previous
        statistics, curves = [], []
        size = max(1, _CHUNK // logits[0].numel())
        for now, then, used in zip(*(x.split(size) for x in (logits, before, guided)), strict=True):
            prior = spatial_prior(
                then, coarse=coarse, fine=fine, kind=self.kind, norm=self.norm, position_dim=1
            )
            residual = now - prior
            strengths = (used if beta is None else now + beta * residual for beta in (*self.betas, None))
            statistics.append(
                residual_statistics(now, residual, used, coarse=coarse, fine=fine, choices=choices)
            )
            curves.append(saturation(now, residual, strengths, choices=choices))
        return torch.cat(statistics), torch.cat(curves)

    def _gathered(self, info: StepInfo) -> tuple[Tensor, Tensor] | None:
        """Logits and guided logits of a whole grid, once its last part is there.

        Which cells a part is of can be read off the tokens: those that were not drawn before, in order.
        """
        tokens = info.tokens.flatten(1, 2)
        drawn = (tokens if tokens.ndim == 2 else tokens[..., 0]) >= 0  # (B, h*w)
        if self._parts is None:
            empty = info.logits.new_zeros(len(drawn), drawn.shape[1], info.logits.shape[2])
            self._parts = (torch.zeros_like(drawn), empty, empty.clone())
        before, logits, guided = self._parts
        fresh = drawn & ~before
        logits[fresh] = info.logits.flatten(0, 1)
        guided[fresh] = info.guided.flatten(0, 1)
        self._parts = (drawn, logits, guided)
        if not bool(drawn.all()):
            return None
        self._parts = None
        return logits, guided
