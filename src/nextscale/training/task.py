"""What can be trained, and where a training says how far it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class Rival(Protocol):
    """Something that learns against the model, by gradients that the model's loss leaves with it."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def step(self, rate: float) -> None:
        """Descend; rate: the model's learning rate as a share of its peak."""
        ...


class Task(Protocol[Model]):
    """Something to train."""

    model: Model
    num_examples: int
    state: dict[str, Tensor]
    """What upkeep remembers between iterations, changed in place; checkpoints store it."""

    @property
    def rival(self) -> Rival | None:
        """What learns against the model, if anything does."""
        ...

    def loss(self, rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a batch of row numbers, and what to log beside it."""
        ...

    def after_step(self, step: int, total: int) -> None:
        """Upkeep between iterations that is not gradient descent."""
        ...

    def evaluate(self, model: Model) -> dict[str, float]:
        """Figures on held-out data, with the averaged weights."""
        ...

    def sample(self, model: Model, path: Path) -> None:
        """A picture of what the model does now."""
        ...

    def save(self, model: Model, folder: Path) -> None:
        """The averaged weights in the layout that pipelines load."""
        ...


class Reporter(Protocol):
    """Where progress goes: the command line draws a bar, the default prints lines."""

    def __call__(self, record: dict[str, Any], step: int, total: int) -> None: ...


def print_report(record: dict[str, Any], step: int, total: int) -> None:
    """One plain line per record."""
    values = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
    print(f"{step}/{total}  {values}", flush=True)
