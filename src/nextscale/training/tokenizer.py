"""Training of the VQ tokenizer, with the figures people ask for: codebook usage and error per scale."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.nn.quantizer import shrink
from nextscale.training.data import ImageSource
from nextscale.training.judges import Judges
from nextscale.training.reconstruction import ReconstructionTask, Scales, measure_reconstruction

IDLE = 0.05


class TokenizerTask(ReconstructionTask[VARTokenizer]):
    """Reconstruction and codebook loss of a :class:`VARTokenizer`.

    flip, turn, judges: see :class:`ReconstructionTask`.
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
        turn: bool = False,
        judges: Judges | None = None,
        revive_every: int = 100,
        eval_images: int = 1000,
    ) -> None:
        super().__init__(model, data, held_out, flip=flip, turn=turn, judges=judges, eval_images=eval_images)
        self.revive_every = revive_every
        self.state = {"hits": torch.zeros(model.config.vocab_size, dtype=torch.long)}

    def observe(self, images: Tensor, chosen: list[Tensor]) -> dict[str, Tensor]:
        flat = torch.cat([t.flatten() for t in chosen]).cpu()
        self.state["hits"] += torch.bincount(flat, minlength=len(self.state["hits"]))
        self._images = images
        return {}

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
        if not torch.isfinite(weights.sum()):  # the run diverges, which the next gradient will tell
            return
        idle = idle[: len(pool)].to(pool.device)
        drawn = torch.multinomial(weights + 1e-12, len(idle))
        quantizer.embedding.weight[idle] = pool[drawn].to(quantizer.embedding.weight.dtype)

    def evaluate(self, model: VARTokenizer) -> dict[str, float]:
        return measure_tokenizer(model, self.held_out, self.eval_rows)


def measure_tokenizer(
    model: VARTokenizer, data: ImageSource, rows: Tensor | None = None, *, batch_size: int = 250
) -> dict[str, float]:
    """Reconstruction and codebook figures on real pictures.

    Those of :func:`measure_reconstruction`, and ``codebook_used`` (share of codes chosen at least once),
    ``perplexity`` of the code histogram, and per scale k ``used_k`` (share of codes that scale chose).
    """
    vocab = model.config.vocab_size
    counts = torch.zeros(model.schedule.num_steps, vocab, dtype=torch.long)

    def tally(step: int, tokens: Tensor) -> None:
        counts[step] += torch.bincount(tokens.flatten().cpu(), minlength=vocab)

    def scales(f: Tensor) -> Scales:
        return ((q.tokens, q.f_hat) for q in model.quantize.residual_chain(f))

    figures = measure_reconstruction(model, scales, tally, data, rows, batch_size)
    share = counts.sum(0) / counts.sum()
    figures["codebook_used"] = float((counts.sum(0) > 0).float().mean())
    figures["perplexity"] = float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))
    used = (counts > 0).float().mean(1)
    return {**figures, **{f"used_{k}": float(u) for k, u in enumerate(used)}}
