"""What the trainings of transformers share: stages, held-out losses per scale, and a grid of pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity.pipeline import InfinityPipeline
from nextscale.families.infinity.transformer import InfinityTransformer
from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.transformer import VARTransformer
from nextscale.scales import ScaleSchedule
from nextscale.training.pictures import save_grid

Transformer = TypeVar("Transformer", VARTransformer, InfinityTransformer)

SHOWN_CLASSES, SHOWN_EACH = 10, 4
EVAL_BATCH = 100


class NextScaleTask(ABC, Generic[Transformer]):
    """Loss of every scale given the coarser scales and the class or its caption.

    encoded: ``(views, N, ...)`` from :func:`~nextscale.training.cache.encode_dataset`; each draw
        takes one view at random. held_out: the same of other pictures; its first set is measured on.
    labels, held_out_labels: int64, one per picture.
    stages: ``(share of the run, number of scales)`` pairs: train on the coarsest scales first, where the
        class is decided and a step costs a fraction. The rest of the run trains on all scales.
    """

    def __init__(
        self,
        model: Transformer,
        schedule: ScaleSchedule,
        encoded: Tensor,
        labels: Tensor,
        held_out: Tensor,
        held_out_labels: Tensor,
        *,
        stages: Sequence[tuple[float, int]] = (),
        eval_images: int = 1000,
    ) -> None:
        if len(encoded[0]) != len(labels):
            raise InvalidArgumentError(f"{len(encoded[0])} encoded pictures but {len(labels)} labels")
        for share, scales in stages:
            if not (0 < share < 1 and 2 <= scales <= schedule.num_steps):
                raise InvalidArgumentError(
                    f"a stage is (share of the run, number of scales), as in (0.3, 4); got {(share, scales)}"
                )
        self.model: Transformer = model
        self.schedule = schedule
        self.encoded, self.labels = encoded, labels
        self.held_out = held_out[0][:eval_images], held_out_labels[:eval_images]
        self.stages = stages
        self.state: dict[str, Tensor] = {}
        self.num_examples = len(labels)
        self.rival = None

    def num_scales(self, progress: float) -> int:
        """How many scales are trained on after this share of the run."""
        reached = 0.0
        for share, scales in self.stages:
            reached += share
            if progress < reached:
                return scales
        return self.schedule.num_steps

    def drawn(self, rows: Tensor) -> Tensor:
        """The encoded pictures of some rows, each from one of the sets at random."""
        which = torch.randint(len(self.encoded), (len(rows),))
        return self.encoded[which, rows]

    @abstractmethod
    def loss(self, rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]: ...

    def after_step(self, step: int, total: int) -> None:
        """Nothing to do."""

    @abstractmethod
    def position_losses(self, model: Transformer, encoded: Tensor, labels: Tensor) -> Tensor:
        """Losses ``(B, L)`` of held-out pictures in nats, with nothing dropped or disturbed."""

    @torch.inference_mode()
    def evaluate(self, model: Transformer) -> dict[str, float]:
        """Held-out loss in nats, over all positions and per scale."""
        encoded, labels = self.held_out
        sums = torch.zeros(self.schedule.num_tokens, dtype=torch.float64)
        for rows in torch.arange(len(labels)).split(EVAL_BATCH):
            sums += self.position_losses(model, encoded[rows], labels[rows]).sum(0).cpu().double()
        mean = sums / len(labels)
        spans = map(self.schedule.span, range(self.schedule.num_steps))
        return {
            "loss": float(mean.mean()),
            **{f"loss_{k}": float(mean[span].mean()) for k, span in enumerate(spans)},
        }

    @abstractmethod
    def pipeline(self, model: Transformer) -> VARPipeline | InfinityPipeline:
        """The complete model, with the tokenizer and what the data say of the classes."""

    @abstractmethod
    def draw(self, model: Transformer, labels: list[int]) -> Tensor:
        """One picture per class number, always from the same seeds: ``(B, 3, H, W)`` in [0, 1]."""

    def sample(self, model: Transformer, path: Path) -> None:
        """A row of four pictures per class (of the first ten), always from the same seeds."""
        count = min(SHOWN_CLASSES, self.num_classes)
        labels = [c for c in range(count) for _ in range(SHOWN_EACH)]
        save_grid(self.draw(model, labels) * 2 - 1, path, columns=2 * SHOWN_EACH)

    @property
    @abstractmethod
    def num_classes(self) -> int: ...

    def save(self, model: Transformer, folder: Path) -> None:
        """A complete model folder: transformer, tokenizer, what is known of the classes, and defaults."""
        self.pipeline(model).save_pretrained(folder)
