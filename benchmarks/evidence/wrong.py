"""SSG with grids that are not the model's: the same cells, read as long rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from design import WRONG_GRIDS
from torch import Tensor

from nextscale import ClassifierFreeGuidance, ScaledSpatialGuidance, VARPipeline
from nextscale.families.var.session import VARSession
from nextscale.generation.loop import generate
from nextscale.generation.tokens import Drawer, Filters
from nextscale.guidance.base import CONDITIONAL, GuidanceChain, GuidanceState, GuidanceStep


class OnWrongGrids:
    """A guidance method that tells SSG other grids than those the model predicts on."""

    branches = (CONDITIONAL,)

    def __init__(self, ssg: ScaledSpatialGuidance) -> None:
        self.ssg = ssg

    def begin(self, grids: Sequence[tuple[int, int]]) -> GuidanceState:
        state = self.ssg.begin(WRONG_GRIDS)

        class State:
            def __call__(self, step: GuidanceStep, branches: Mapping[str, Tensor]) -> Tensor:
                return state(GuidanceStep(step.index, WRONG_GRIDS), branches)

            def end(self) -> None:
                state.end()

        return State()


@torch.no_grad()
def draw_on_wrong_grids(
    pipe: VARPipeline,
    labels: Sequence[int],
    seeds: Sequence[int],
    ssg: ScaledSpatialGuidance,
    *,
    guidance_scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in [0, 1], from the draws that the pipeline would take for these seeds."""
    guidance = GuidanceChain([ClassifierFreeGuidance(guidance_scale), OnWrongGrids(ssg)])
    filters = Filters(temperature=temperature, top_k=top_k, top_p=top_p)
    draw = Drawer("paired", filters, seeds, pipe.device)
    session = VARSession(pipe.transformer, pipe.tokenizer, torch.tensor(labels), guidance.branches)
    generate(session, guidance, draw)
    return (pipe.tokenizer.decode_latent(session.feature_map) + 1) / 2
