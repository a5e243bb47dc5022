"""The next-scale loop: predict a grid of tokens, guide, draw, accept, until the finest grid is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nextscale.generation.tokens import Drawer
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

    def accept(self, step: GuidanceStep, tokens: Tensor, filtered: Tensor) -> None:
        """Take the tokens ``(B, l)`` drawn from the filtered logits, and get ready for the next step."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """What a step callback sees.

    index: the step, from 0. grid: its ``(height, width)``.
    logits: float32 ``(B, l, C)`` after classifier-free guidance, before SSG and before temperature.
    guided: the logits after all guidance, before temperature and filters; what was sampled from.
    tokens: int64 ``(B, h, w)``. feature_map: the summed latent with this step's tokens, ``(B, z, H, W)``.
    """

    index: int
    grid: Grid
    logits: Tensor
    guided: Tensor
    tokens: Tensor
    feature_map: Tensor


StepCallback = Callable[[StepInfo], None]


@torch.no_grad()
def generate(
    session: Session, guidance: GuidanceChain, draw: Drawer, on_step: StepCallback | None = None
) -> list[Tensor]:
    """Run one batch to its end and return its tokens, an int64 ``(B, h, w)`` tensor per step."""
    drawn: list[Tensor] = []
    with guidance.open(session.schedule.grids) as guide:
        for step in session.steps():
            logits, guided = guide(step, session.predict(step))
            tokens, filtered = draw(guided, step.index)
            session.accept(step, tokens, filtered)
            drawn.append(tokens.unflatten(1, step.grid))
            if on_step is not None:
                on_step(StepInfo(step.index, step.grid, logits, guided, drawn[-1], session.feature_map))
    return drawn
