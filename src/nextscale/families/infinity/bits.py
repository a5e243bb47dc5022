"""Maps of bits: their two layouts, their codes, and what training does to them.

A map is channels-last. Cells ``(B, H, W, d)`` are the positions of the latent; tokens ``(B, h, w, D)`` are
those of the transformer's grid. With spatial patchify a token is a block of 2x2 cells and ``D = 4d``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.scales import Grid

PATCH = 2  # side of a token in cells, with spatial patchify
# Of the soft bits in the training loss: their probability at a code is sigmoid(4) = 0.98.
SHARPNESS = 4.0


class QuantizedBits(NamedTuple):
    """One scale's outcome while a latent is quantized, on the tokenizer's grid.

    bits: int64 ``(B, H_i, W_i, d)``. f_hat: the partial sum after this scale, float32 ``(B, d, H, W)``.
    residual: float32 ``(B, d, H_i, W_i)``, whose signs the bits are.
    """

    bits: Tensor
    f_hat: Tensor
    residual: Tensor


class SelfCorrection(NamedTuple):
    """What a transformer is trained on when some bits of its input are wrong.

    inputs: float32 ``(B, L - l_0, D)``, made with the flipped bits. targets: int64 ``(B, L, D)``, the right
    answers given these inputs.
    """

    inputs: Tensor
    targets: Tensor


def resize(x: Tensor, grid: Grid) -> Tensor:
    """Bilinear resizing of ``(B, C, h, w)`` (half-pixel centres), also to coarser grids without smoothing."""
    return x if tuple(x.shape[-2:]) == grid else F.interpolate(x, size=grid, mode="bilinear")


def to_tokens(cells: Tensor) -> Tensor:
    """Cells ``(B, 2h, 2w, d)`` -> tokens ``(B, h, w, 4d)``.

    Channel ``4k + 2a + b`` of token (r, s) is channel k of cell (2r + a, 2s + b): pixel-unshuffle by 2.
    """
    x = cells.unflatten(2, (-1, PATCH)).unflatten(1, (-1, PATCH))  # (B, h, a, w, b, d)
    return x.permute(0, 1, 3, 5, 2, 4).flatten(3)


def to_cells(tokens: Tensor) -> Tensor:
    """Tokens ``(B, h, w, 4d)`` -> cells ``(B, 2h, 2w, d)``, the inverse of :func:`to_tokens`."""
    x = tokens.unflatten(3, (-1, PATCH, PATCH))  # (B, h, w, d, a, b)
    return x.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)


def bit_codes(bits: Tensor) -> Tensor:
    """Bits ``(B, H, W, d)`` -> codes float32 ``(B, d, H, W)``: ``1/sqrt(d)`` for 1 and minus that for 0."""
    return ((2 * bits.float() - 1) / math.sqrt(bits.shape[3])).permute(0, 3, 1, 2)


def entropy_penalty(residual: Tensor) -> Tensor:
    """Entropy of the soft bits of ``(B, d, h, w)`` less that of their means, in bits per bit: -1 to 0.

    The entropy terms of binary spherical quantization (arXiv 2406.07548) with every bit on its own:
    ``mean H(p) - H(mean p)``, where ``p = sigmoid(2 tau u / sqrt(d))`` is the soft value of a bit, u the
    residual normalised over channels, and ``tau = SHARPNESS * d / 2``. A low entropy of every p makes bits
    decided; a high entropy of their mean over batch and cells makes both values equally frequent.
    """
    logits = F.normalize(residual, dim=1) * (SHARPNESS * residual.shape[1] ** 0.5)
    p = logits.sigmoid()
    each = F.binary_cross_entropy_with_logits(logits, p)  # against itself: the mean entropy
    mean = p.mean((0, 2, 3)).clamp(1e-6, 1 - 1e-6)  # (d,)
    # Not F.binary_cross_entropy, which raises, or on a GPU ends the process, where a run diverges.
    whole = (torch.special.entr(mean) + torch.special.entr(1 - mean)).mean()
    return (each - whole) / math.log(2)


def draw_flips(bits: Tensor, max_strength: float, generator: torch.Generator | None) -> Tensor:
    """Which bits to flip, 0 or 1 like ``bits``: each with the one probability drawn for all of them."""
    device = bits.device if generator is None else generator.device
    highest = round(100 * max_strength)
    strength = torch.randint(highest + 1, (), generator=generator, device=device) / 100
    return (torch.rand(bits.shape, generator=generator, device=device) < strength).to(bits)
