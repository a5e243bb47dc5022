"""Training of the VQ tokenizer, with the figures people ask for: codebook usage and error per scale."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.nn.quantizer import shrink
from nextscale.training.data import ImageSource, to_float
from nextscale.training.pictures import save_grid
from nextscale.weights.layout import save_module

IDLE = 0.05


class TokenizerTask:
    """Reconstruction and codebook loss of a :class:`VARTokenizer`.

    flip: mirror half of the pictures.
    revive_every: iterations between revivals of idle codes (chosen less than :data:`IDLE` times as often as
        the average code since the last revival); a revived code takes the place of a residual the encoder
        produced just now, badly coded ones first. Revivals end at 70 % of the run, so that the last codes
        have time to settle.
    """

    def __init__(
        self,
        model: VARTokenizer,
        data: ImageSource,
        held_out: ImageSource,
        *,
        flip: bool = True,
        revive_every: int = 100,
        eval_images: int = 1000,
    ) -> None:
        self.model = model
        self.data, self.held_out = data, held_out
        self.num_examples = len(data)
        self.flip, self.revive_every = flip, revive_every
        self.eval_rows = torch.arange(min(eval_images, len(held_out)))
        self.state = {"hits": torch.zeros(model.config.vocab_size, dtype=torch.long)}

    def loss(self, rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = to_float(self.data.batch(rows, torch.default_generator)).to(self.model.device)
        if self.flip:
            mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
            images = torch.where(mirrored.to(images.device), images.flip(-1), images)
        recon, quantizer_loss, tokens = self.model.training_forward(images)
        errors = (recon.float() - images).square().mean((1, 2, 3))
        self._observe(images, tokens)
        figures = {"psnr": psnr(errors).mean(), "quantizer": quantizer_loss.detach()}
        return relative_error(errors) + quantizer_loss, figures

    def _observe(self, images: Tensor, tokens: list[Tensor]) -> None:
        flat = torch.cat([t.flatten() for t in tokens]).cpu()
        self.state["hits"] += torch.bincount(flat, minlength=len(self.state["hits"]))
        self._images = images

    def after_step(self, step: int, total: int) -> None:
        first = step == 0
        if not first and (step % self.revive_every or step > 0.7 * total):
            return
        hits = self.state["hits"]
        idle = torch.arange(len(hits)) if first else (hits < IDLE * hits.float().mean()).nonzero().flatten()
        if len(idle):
            self._revive(idle)
        hits.zero_()

    @torch.no_grad()
    def _revive(self, idle: Tensor) -> None:
        """Replace codes by residuals of the last batch, drawn in proportion to their squared coding error."""
        quantizer = self.model.quantize
        f = rest = self.model.features(self._images)
        residuals, errors = [], []
        for q, grid in zip(quantizer.residual_chain(f), quantizer.schedule, strict=True):
            wanted = shrink(rest, grid)
            residuals.append(wanted.permute(0, 2, 3, 1).flatten(0, 2))
            errors.append((wanted - quantizer.lookup(q.tokens)).square().sum(1).flatten())
            rest = f - q.f_hat
        pool, weights = torch.cat(residuals), torch.cat(errors)
        idle = idle[: len(pool)].to(pool.device)
        drawn = torch.multinomial(weights + 1e-12, len(idle))
        quantizer.embedding.weight[idle] = pool[drawn].to(quantizer.embedding.weight.dtype)

    def evaluate(self, model: VARTokenizer) -> dict[str, float]:
        return measure_tokenizer(model, self.held_out, self.eval_rows)

    def sample(self, model: VARTokenizer, path: Path) -> None:
        """Eight originals above their reconstructions."""
        images = to_float(self.held_out.batch(self.eval_rows[:8]))
        save_grid(torch.cat([images, model.decode(model.encode(images)).cpu()]), path, columns=8)

    def save(self, model: VARTokenizer, folder: Path) -> None:
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
def measure_tokenizer(
    model: VARTokenizer, data: ImageSource, rows: Tensor | None = None, *, batch_size: int = 250
) -> dict[str, float]:
    """Reconstruction and codebook figures on real pictures.

    Returns ``psnr`` (mean over pictures of each one's PSNR in dB, pixels rounded to 8 bit), ``psnr_pooled``
    (of the mean squared error over all pixels), ``codebook_used`` (share of codes chosen at least once),
    ``perplexity`` of the code histogram, and per scale k ``psnr_k`` and ``mse_k`` (of the picture and of the
    latent after that scale) and ``used_k`` (share of codes that scale chose).
    """
    rows = torch.arange(len(data)) if rows is None else rows
    steps, vocab = model.schedule.num_steps, model.config.vocab_size
    counts = torch.zeros(steps, vocab, dtype=torch.long)
    latent, pixels = torch.zeros(steps), torch.zeros(steps)
    per_image: list[Tensor] = []
    for chunk in rows.split(batch_size):
        images = to_float(data.batch(chunk)).to(model.device)
        f = model.features(images)
        chain = list(model.quantize.residual_chain(f))
        for k, q in enumerate(chain):
            counts[k] += torch.bincount(q.tokens.flatten().cpu(), minlength=vocab)
            latent[k] += F.mse_loss(q.f_hat, f).cpu() * len(chunk)
            recon = ((model.decode_latent(q.f_hat) + 1) * 127.5).round() / 127.5 - 1
            errors = (recon - images).square().mean((1, 2, 3)).cpu()
            pixels[k] += psnr(errors.clamp_min(1e-10)).sum()
        per_image.append(errors)  # of the last scale
    errors = torch.cat(per_image)
    share = counts.sum(0) / counts.sum()
    figures = {
        "psnr": float(psnr(errors.clamp_min(1e-10)).mean()),
        "psnr_pooled": float(psnr(errors.mean())),
        "codebook_used": float((counts.sum(0) > 0).float().mean()),
        "perplexity": float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum())),
    }
    for k in range(steps):
        figures[f"psnr_{k}"] = float(pixels[k] / len(rows))
        figures[f"mse_{k}"] = float(latent[k] / len(rows))
        figures[f"used_{k}"] = float((counts[k] > 0).float().mean())
    return figures
