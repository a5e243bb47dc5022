"""VAR's tokenizer: pictures to one token map per scale, and back.

Source: Tian et al. 2024 (arXiv 2404.02905). Parameter names are the keys of the published file
``vae_ch160v4096z32.pth``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.nn.residual_tokenizer import ResidualTokenizer, ResidualTokenizerConfig
from nextscale.scales import ScaleSchedule


@dataclass(frozen=True)
class VARTokenizerConfig(ResidualTokenizerConfig):
    """Sizes of the tokenizer; the defaults are the published ones."""


class VARTokenizer(ResidualTokenizer):
    """Convolutional autoencoder around a multi-scale residual quantizer."""

    config: VARTokenizerConfig

    @torch.no_grad()
    def decode(self, tokens: Sequence[Tensor], schedule: ScaleSchedule | None = None) -> Tensor:
        """Token maps, one ``(B, h, w)`` tensor per step -> pictures ``(B, 3, H, W)`` float32 in [-1, 1].

        The first maps alone give the picture as it is after those steps, at full size. schedule: the list of
        scales the maps were made with, where it is not the tokenizer's own.
        """
        return self.decode_latent(self.partial_sums(tokens, schedule)[-1])

    def training_forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Unclamped reconstruction, quantizer loss and token maps, with gradients.

        The loss is the mean over scales of ``mse(f_hat_k, sg(f)) + beta * mse(sg(f_hat_k), f)``; the decoder
        sees ``f + sg(f_hat - f)``, so its gradient reaches the encoder straight through.
        """
        f, loss, chain = self.training_pass(images)
        return self.straight_through(f, chain[-1].f_hat), loss, [q.tokens for q in chain]
