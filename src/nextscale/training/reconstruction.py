"""What the trainings of tokenizers share: pictures in, pictures out, and how much was lost on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.training.data import ImageSource, to_float
from nextscale.training.judges import Judges
from nextscale.training.pictures import save_grid
from nextscale.training.views import random_turns
from nextscale.weights.layout import save_module

Tokenizer = TypeVar("Tokenizer", VARTokenizer, InfinityTokenizer)

# Of every scale, coarse to fine: what was chosen, and the latent so far (B, d, H, W).
Scales = Iterable[tuple[Tensor, Tensor]]


class ReconstructionTask(ABC, Generic[Tokenizer]):
    """Reconstruction error and quantizer loss of a tokenizer.

    flip: mirror half of the pictures. turn: turn them by random quarter turns.
    judges: for a perceptual and an adversarial term.
    """

    def __init__(
        self,
        model: Tokenizer,
        data: ImageSource,
        held_out: ImageSource,
        *,
        flip: bool = True,
        turn: bool = False,
        judges: Judges | None = None,
        eval_images: int = 1000,
    ) -> None:
        self.model: Tokenizer = model
        self.data, self.held_out = data, held_out
        self.num_examples = len(data)
        self.flip, self.turn = flip, turn
        self.judges = judges
        self.rival = None if judges is None else judges.adversary
        self.eval_rows = torch.arange(min(eval_images, len(held_out)))
        self.state: dict[str, Tensor] = {}

    def loss(self, rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = to_float(self.data.batch(rows, torch.default_generator)).to(self.model.device)
        if self.flip:
            mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
            images = torch.where(mirrored.to(images.device), images.flip(-1), images)
        if self.turn:
            images = random_turns(images)
        recon, quantizer_loss, chosen = self.model.training_forward(images)
        errors = (recon.float() - images).square().mean((1, 2, 3))
        figures = {"psnr": psnr(errors).mean(), "quantizer": quantizer_loss.detach()}
        loss = relative_error(errors)
        if self.judges is not None:
            last = self.model.decoder.conv_out.weight
            loss, judged = self.judges.loss(loss, recon, images, last, step / total)
            figures |= judged
        return loss + quantizer_loss, {**figures, **self.observe(images, chosen)}

    @abstractmethod
    def observe(self, images: Tensor, chosen: list[Tensor]) -> dict[str, Tensor]:
        """Look at a batch and what was chosen for it at every scale; returns what to log."""

    def after_step(self, step: int, total: int) -> None:
        """Nothing to do, unless a quantizer needs upkeep."""

    @abstractmethod
    def evaluate(self, model: Tokenizer) -> dict[str, float]:
        """Figures on held-out pictures."""

    def sample(self, model: Tokenizer, path: Path) -> None:
        """Eight originals above their reconstructions."""
        images = to_float(self.held_out.batch(self.eval_rows[:8]))
        save_grid(torch.cat([images, model.decode(model.encode(images)).cpu()]), path, columns=8)

    def save(self, model: Tokenizer, folder: Path) -> None:
        save_module(model, model.config.to_dict(), folder / "tokenizer")


def relative_error(errors: Tensor) -> Tensor:
    """Mean squared errors ``(B,)``, each weighted by its inverse -> scalar.

    Its gradient is that of the mean logarithm of the errors, hence of the mean PSNR over pictures, times the
    errors' harmonic mean; so smooth pictures count as much as busy ones.
    """
    weights = 1 / errors.detach().clamp_min(1e-8)
    return (errors * (weights / weights.mean())).mean()


def psnr(mean_squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1] (peak-to-peak 2)."""
    return 10 * torch.log10(4 / mean_squared_error.detach().float())


@torch.inference_mode()
def measure_reconstruction(
    model: Tokenizer,
    scales: Callable[[Tensor], Scales],
    tally: Callable[[int, Tensor], None],
    data: ImageSource,
    rows: Tensor | None,
    batch_size: int,
) -> dict[str, float]:
    """Errors on real pictures, as a whole and after every scale.

    scales: quantizes features. tally: gets the number of a scale and what was chosen for a batch.

    Returns ``psnr`` (mean over pictures of each one's PSNR in dB, pixels rounded to 8 bit), ``psnr_pooled``
    (of the mean squared error over all pixels), and per scale k ``psnr_k`` and ``mse_k`` (of the picture and
    of the latent after that scale).
    """
    rows = torch.arange(len(data)) if rows is None else rows
    latent: dict[int, float] = {}
    pixels: dict[int, float] = {}
    per_image: list[Tensor] = []
    for chunk in rows.split(batch_size):
        images = to_float(data.batch(chunk)).to(model.device)
        f = model.features(images)
        for k, (chosen, f_hat) in enumerate(scales(f)):
            tally(k, chosen)
            recon = ((model.decode_latent(f_hat) + 1) * 127.5).round() / 127.5 - 1
            errors = (recon - images).square().mean((1, 2, 3)).cpu()
            latent[k] = latent.get(k, 0) + float(F.mse_loss(f_hat, f)) * len(chunk)
            pixels[k] = pixels.get(k, 0) + float(psnr(errors.clamp_min(1e-10)).sum())
        per_image.append(errors)  # of the last scale
    errors = torch.cat(per_image)
    figures = {
        "psnr": float(psnr(errors.clamp_min(1e-10)).mean()),
        "psnr_pooled": float(psnr(errors.mean())),
    }
    for k in latent:
        figures[f"psnr_{k}"] = pixels[k] / len(rows)
        figures[f"mse_{k}"] = latent[k] / len(rows)
    return figures
