"""Operations and bytes of one generation, counted on the real modules without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nextscale.families.var.session import VARSession
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.guidance.base import CONDITIONAL, UNCONDITIONAL
from nextscale.scales import Grid

FLOAT32 = 4


@dataclass(frozen=True)
class StepCount:
    """One step of the transformer, all rows of the batch.

    flops: floating-point operations of matrix products and attention, a multiplication and an addition
        counted as two. weight_bytes: parameters read once. cache_bytes: keys and values read once.
    """

    grid: Grid
    flops: int
    weight_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class Counts:
    """Of one batch of pictures: every step, the projections of the condition before, the decoder after."""

    batch: int
    condition_flops: int
    steps: tuple[StepCount, ...]
    decoder_flops: int

    @property
    def transformer_flops(self) -> int:
        return self.condition_flops + sum(step.flops for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "transformer_flops": self.transformer_flops}


def count(
    transformer: VARTransformerConfig,
    tokenizer: VARTokenizerConfig,
    *,
    batch: int = 1,
    guided: bool = True,
    element: int = FLOAT32,
) -> Counts:
    """Count a generation of ``batch`` pictures.

    guided: with classifier-free guidance, which doubles the rows. element: bytes of a number.
    """
    branches = (CONDITIONAL, UNCONDITIONAL) if guided else (CONDITIONAL,)
    rows = batch * len(branches)
    meta = torch.device("meta")
    with meta:
        model, vae = VARTransformer(transformer).eval(), VARTokenizer(tokenizer).eval()
    labels = torch.zeros(batch, dtype=torch.int64, device=meta)
    made: list[VARSession] = []
    with torch.no_grad():
        condition = _flops(lambda: made.append(VARSession(model, vae, labels, branches)))
        session = made[0]
        weights = element * _step_weights(model)
        steps = []
        for step in session.steps():
            flops = _flops(partial(session.predict, step))
            h, w = step.grid
            cached = 2 * rows * session.caches[0].length * transformer.embed_dim * transformer.depth
            steps.append(StepCount(step.grid, flops, weights, element * cached))
            tokens = torch.zeros(batch, h * w, dtype=torch.int64, device=meta)
            session.accept(step, tokens, tokens)  # the second would be logits, which only soft codes need
        decoder = _flops(lambda: vae.decode_latent(session.feature_map))
    return Counts(batch, condition, tuple(steps), decoder)


def _step_weights(model: VARTransformer) -> int:
    """Parameters that a step reads: those of blocks and head, without the projections of the condition."""
    blocks = sum(p.numel() for name, p in model.blocks.named_parameters() if "ada_lin" not in name)
    parts: tuple[nn.Module, ...] = (model.word_embed, model.head_nm, model.head)
    return blocks + sum(p.numel() for part in parts for p in part.parameters())


def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
