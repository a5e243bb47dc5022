"""Training of the small classifier that later measures generated pictures."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.nn.classifier import SmallClassifier
from nextscale.training.data import ImageSource, to_float
from nextscale.training.pictures import save_grid
from nextscale.training.views import random_turns
from nextscale.weights.layout import save_module


class ClassifierTask:
    """Cross-entropy with label smoothing on mirrored, shifted and partly covered pictures.

    shift: largest translation in pixels; borders are reflected.
    turn: also turn pictures by random quarter turns.
    cutout: side in pixels of a square that is set to grey, anywhere, and cut off at the borders; 0 for none.
    """

    def __init__(
        self,
        model: SmallClassifier,
        data: ImageSource,
        held_out: ImageSource,
        *,
        shift: int = 2,
        cutout: int = 0,
        turn: bool = False,
        label_smoothing: float = 0.1,
    ) -> None:
        self.model, self.data, self.held_out, self.turn = model, data, held_out, turn
        self.shift, self.cutout, self.label_smoothing = shift, cutout, label_smoothing
        self.num_examples = len(data)
        self.rival = None
        self.state: dict[str, Tensor] = {}

    def loss(self, rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(self.model.parameters()).device
        images = self._augment(to_float(self.data.batch(rows))).to(device)
        labels = self.data.labels[rows].to(device)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return loss, {"accuracy": (logits.argmax(-1) == labels).float().mean()}

    def _augment(self, images: Tensor) -> Tensor:
        n, _, h, w = images.shape
        images = torch.where(torch.rand(n, 1, 1, 1) < 0.5, images.flip(-1), images)
        if self.turn:
            images = random_turns(images)
        padded = F.pad(images, (self.shift,) * 4, mode="reflect")
        top, left = torch.randint(2 * self.shift + 1, (2, n))
        rows = (top[:, None] + torch.arange(h))[:, None, :, None]
        columns = (left[:, None] + torch.arange(w))[:, None, None, :]
        shifted = padded[
            torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns
        ]
        return self._cover(shifted) if self.cutout else shifted

    def _cover(self, images: Tensor) -> Tensor:
        n, _, h, w = images.shape
        top, left = torch.randint(h, (n, 1)), torch.randint(w, (n, 1))  # centre of the square
        reach = self.cutout / 2
        rows = (torch.arange(h) + 0.5 - top).abs() < reach
        columns = (torch.arange(w) + 0.5 - left).abs() < reach
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)

    def after_step(self, step: int, total: int) -> None:
        """Nothing to do."""

    def evaluate(self, model: SmallClassifier) -> dict[str, float]:
        return {"accuracy": accuracy(model, self.held_out)}

    def sample(self, model: SmallClassifier, path: Path) -> None:
        """Held-out pictures the classifier is most certain of and wrong about."""
        rows = torch.arange(min(1000, len(self.held_out)))
        images, labels = to_float(self.held_out.batch(rows)), self.held_out.labels[rows]
        with torch.inference_mode():
            probabilities = model(images.to(next(model.parameters()).device)).softmax(-1).cpu()
        sure, guess = probabilities.max(-1)
        worst = torch.where(guess == labels, -1.0, sure).argsort(descending=True)[:24]
        save_grid(images[worst], path, columns=8)

    def save(self, model: SmallClassifier, folder: Path) -> None:
        save_module(model, model.config.to_dict(), folder / "classifier")


@torch.inference_mode()
def accuracy(model: SmallClassifier, data: ImageSource, *, batch_size: int = 500) -> float:
    """Share of pictures recognised, one look at each, no averaging over mirrored copies."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for rows in torch.arange(len(data)).split(batch_size):
        guess = model(to_float(data.batch(rows)).to(device)).argmax(-1).cpu()
        right += int((guess == data.labels[rows]).sum())
    return right / len(data)
