"""The next-scale loop: predict a grid of tokens, guide, draw, accept, until the finest grid is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nextscale.guidance.base import GuidanceChain, GuidanceStep
from nextscale.scales import Grid, ScaleSchedule


class Session(Protocol):
    """One batch in the making: what a model family implements so that the loop can drive it.

    A session owns everything that changes during a generation (KV cache, running sum of the latent); the
    model it belongs to stays as it is, so sessions do not disturb each other.
    """

    @property
    def schedule(self) -> ScaleSchedule: ...

    @property
    def feature_map(self) -> Tensor:
        """The latent as far as it is known, ``(B, z, h, w)``."""
        ...

    def steps(self) -> Iterable[GuidanceStep]:
        """What to predict, in order; a family may predict one grid in several parts."""
        ...

    def predict(self, step: GuidanceStep) -> Mapping[str, Tensor]:
        """Float32 logits ``(B, l, C)`` of every branch the guidance asked for."""
        ...

    def accept(self, step: GuidanceStep, tokens: Tensor, guided: Tensor) -> None:
        """Take the tokens ``(B, l)`` or bits ``(B, l, D)`` drawn from guided logits ``(B, l, C)``, and get
        ready for the next step."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """What a step callback sees.

    index: the step, from 0. grid: its ``(height, width)``.
    logits: float32 ``(B, l, C)`` after classifier-free guidance, before SSG and before temperature.
    guided: the logits after all guidance, before temperature and filters; what was sampled from.
    tokens: int64 ``(B, h, w)``, or ``(B, h, w, D)`` where a token is D bits; -1 where a grid is predicted in
        parts and a cell is still to come. feature_map: the summed latent with this step's tokens,
        ``(B, z, H, W)``.
    """

    index: int
    grid: Grid
    logits: Tensor
    guided: Tensor
    tokens: Tensor
    feature_map: Tensor


StepCallback = Callable[[StepInfo], None]
Draw = Callable[[Tensor, int, "Tensor | None"], Tensor]
"""Guided logits ``(B, l, C)``, the step, and positions as in a GuidanceStep, to tokens; such as a Drawer."""


@torch.no_grad()
def generate(
    session: Session, guidance: GuidanceChain, draw: Draw, on_step: StepCallback | None = None
) -> list[Tensor]:
    """Run one batch to its end and return its tokens, one int64 ``(B, h, w[, D])`` tensor per grid."""
    maps: list[Tensor] = []
    with guidance.open(session.schedule.grids) as guide:
        for step in session.steps():
            logits, guided = guide(step, session.predict(step))
            tokens = draw(guided, step.index, step.positions)
            session.accept(step, tokens, guided)
            maps[step.index :] = [_on_grid(tokens, step, maps[step.index :])]
            if on_step is not None:
                on_step(StepInfo(step.index, step.grid, logits, guided, maps[-1], session.feature_map))
    return maps


def _on_grid(tokens: Tensor, step: GuidanceStep, before: list[Tensor]) -> Tensor:
    """The step's token map; a part of it goes among those drawn before, as a new tensor."""
    if step.positions is None:
        return tokens.unflatten(1, step.grid)
    rest = tokens.shape[2:]
    h, w = step.grid
    cells = before[0].flatten(1, 2) if before else tokens.new_full((len(tokens), h * w, *rest), -1)
    index = step.positions.reshape(*step.positions.shape, *[1] * len(rest)).expand_as(tokens)
    return cells.scatter(1, index, tokens).unflatten(1, step.grid)
