"""HART's hybrid tokenizer: pictures to one token map per scale and a continuous residual, and back.

Source: Tang et al. 2024 (arXiv 2410.10812). It is VAR's tokenizer with two ways of ending the sum over
scales. Generation, and encoding with the residual, add the finest scale's codes as they are, without the
convolution phi. The discrete helpers and the training objective that HART inherits from VAR apply phi there
too (``last_phi=True``). The tokens are the same either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nextscale.errors import GridError
from nextscale.nn.residual_tokenizer import ResidualTokenizer, ResidualTokenizerConfig
from nextscale.scales import ScaleSchedule


@dataclass(frozen=True)
class HARTTokenizerConfig(ResidualTokenizerConfig):
    """Sizes of the tokenizer; the defaults are those of the official configuration class (256 px)."""


class HARTTokenizer(ResidualTokenizer):
    """Convolutional autoencoder around a multi-scale residual quantizer whose error is kept.

    Residuals and rests are rows of the finest grid, ``(B, P * P, z)`` in row-major order.
    """

    LAST_PHI: ClassVar[bool] = False

    config: HARTTokenizerConfig

    @torch.no_grad()
    def encode_hybrid(
        self, images: Tensor, schedule: ScaleSchedule | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Pictures ``(B, 3, H, W)`` in [-1, 1] -> token maps, and what all scales but the last leave over.

        Returns one int64 ``(B, h, w)`` tensor per step, and the rest, float32 ``(B, P * P, z)``: from it the
        last map's codes have not been taken away yet; :meth:`residual` does so.
        """
        chain = self.quantized(images, schedule)
        return [q.tokens for q in chain], chain[-1].rest.flatten(2).transpose(1, 2)

    def residual(self, last: Tensor, rest: Tensor) -> Tensor:
        """What all scales leave over: the rest without the codes of the last token map ``(B, h, w)``."""
        codes = self.quantize.lookup(last.to(self.device))
        return rest.to(self.device) - codes.flatten(2).transpose(1, 2)

    def latent(
        self,
        tokens: Sequence[Tensor],
        residual: Tensor | None = None,
        schedule: ScaleSchedule | None = None,
        *,
        last_phi: bool | None = None,
    ) -> Tensor:
        """The summed latent, float32 ``(B, z, P, P)``; the arguments are those of :meth:`decode`."""
        f_hat = self.partial_sums(tokens, schedule, last_phi=last_phi)[-1]
        if residual is None:
            return f_hat
        steps = (schedule or self.schedule).num_steps
        b, z, h, w = f_hat.shape
        if len(tokens) != steps or residual.shape != (b, h * w, z):
            raise GridError(
                f"a residual belongs to all {steps} token maps and has the shape {(b, h * w, z)}, "
                f"got {tuple(residual.shape)} with {len(tokens)} maps"
            )
        return f_hat + residual.to(f_hat).transpose(1, 2).unflatten(2, (h, w))

    @torch.no_grad()
    def decode(
        self,
        tokens: Sequence[Tensor],
        residual: Tensor | None = None,
        schedule: ScaleSchedule | None = None,
        *,
        last_phi: bool | None = None,
    ) -> Tensor:
        """Token maps, one ``(B, h, w)`` tensor per step -> pictures ``(B, 3, H, W)`` float32 in [-1, 1].

        The first maps alone give the picture as it is after those steps, at full size.
        residual: ``(B, P * P, z)``, added to the codes; needs all maps.
        schedule: the list of scales the maps were made with, where it is not the tokenizer's own.
        last_phi: ``True`` for the inherited discrete reconstruction, with phi at the last scale too.
        """
        return self.decode_latent(self.latent(tokens, residual, schedule, last_phi=last_phi))

    def training_forward(
        self, images: Tensor, *, continuous: bool = True
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Unclamped reconstruction, quantizer loss and token maps, with gradients; phi at every scale.

        continuous: decode the latent itself, codes and residual together, instead of the codes alone. HART
        alternates between the two at random, one choice per batch, so that one decoder serves both.
        """
        f, loss, chain = self.training_pass(images, last_phi=True)
        f_hat = f if continuous else chain[-1].f_hat
        return self.straight_through(f, f_hat), loss, [q.tokens for q in chain]

    def freeze_codes(self) -> None:
        """Leave only the decoder's side to training, as HART does when it tunes VAR's tokenizer."""
        for part in (self.encoder, self.quant_conv, self.quantize):
            part.requires_grad_(False)
