"""The multi-scale residual vector quantizer of VAR and HART.

A latent is written as a sum over scales: the codes of a ``p x p`` map, enlarged to the latent's size and
passed through a small residual convolution. Sums are kept in float32 whatever the dtype of the weights,
because a rounded running sum would change the tokens of every finer scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError
from nextscale.nn.initial import Embedding
from nextscale.scales import Grid, ScaleSchedule

NEAREST_ROWS = 2048


def shrink(x: Tensor, grid: Grid) -> Tensor:
    """Average ``(B, C, h, w)`` over the cells of a coarser grid; cells overlap where sizes do not divide."""
    return x if tuple(x.shape[-2:]) == grid else F.interpolate(x, size=grid, mode="area")


def enlarge(x: Tensor, grid: Grid) -> Tensor:
    """Bicubic enlargement (half-pixel centres, a = -0.75, no anti-aliasing) to a finer grid."""
    if tuple(x.shape[-2:]) == grid:
        return x
    if x.device.type == "cuda" and not torch.is_autocast_enabled("cuda"):
        # PyTorch's kernel walks through all maps of a batch for each of their cells, of which there are few.
        return enlarged_by_products(x, grid)
    return F.interpolate(x, size=grid, mode="bicubic")


def enlarged_by_products(x: Tensor, grid: Grid) -> Tensor:
    """The same by a matrix for the rows and one for the columns."""
    rows, columns = (_bicubic(n, m, x.dtype, x.device) for n, m in zip(x.shape[2:], grid, strict=True))
    return rows @ x @ columns.T


@lru_cache(maxsize=64)
@torch.inference_mode(False)
@torch.no_grad()
def _bicubic(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix ``(after, before)`` of an enlargement along one axis."""
    cells = torch.eye(before, dtype=torch.float64, device="cpu").view(before, 1, before, 1)
    enlarged = F.interpolate(cells, size=(after, 1), mode="bicubic")
    return enlarged.view(before, after).T.contiguous().to(device, dtype)


def nearest_tick(num_ticks: int, num_scales: int) -> list[int]:
    """Which of ``num_ticks`` shared convolutions serves each of ``num_scales`` scales.

    Ticks lie evenly in [e, 1 - e], e = 1/(3K) for K = 4 and 1/(2K) otherwise; a scale takes the one nearest
    to its relative position k/(S-1). Ties do occur (scales 2 and 7 of ten) and the published weights depend
    on how they fall, so this has to be NumPy's float64 ``linspace`` and the first minimum, not an equivalent
    formula.
    """
    if num_scales < 2:
        raise InvalidArgumentError(f"the quantizer needs at least 2 scales, got {num_scales}")
    e = 1 / 3 / num_ticks if num_ticks == 4 else 1 / 2 / num_ticks
    ticks = np.linspace(e, 1 - e, num_ticks)
    return [int(np.argmin(np.abs(ticks - k / (num_scales - 1)))) for k in range(num_scales)]


class Phi(nn.Conv2d):
    """The residual convolution ``(1 - r) h + r conv(h)`` that smooths an enlarged code map."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, h: Tensor) -> Tensor:  # (B, z, P, P) float32 -> same
        return h * (1 - self.ratio) + super().forward(h.to(self.weight.dtype)).float() * self.ratio


class _Shared(nn.Module):
    """One convolution for all scales, stored under the published key ``qresi``."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.qresi = Phi(channels, ratio)

    def pick(self, num_scales: int) -> list[Phi]:
        return [self.qresi] * num_scales


class _PartlyShared(nn.Module):
    """K convolutions picked by nearest tick, stored under the published key ``qresi_ls``."""

    def __init__(self, channels: int, ratio: float, count: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(channels, ratio) for _ in range(count))

    def pick(self, num_scales: int) -> list[Phi]:
        return [self.qresi_ls[i] for i in nearest_tick(len(self.qresi_ls), num_scales)]  # type: ignore[misc]


class _OwnPerScale(nn.ModuleList):
    """One convolution per scale, picked by nearest tick when another number of scales is in use."""

    def pick(self, num_scales: int) -> list[Phi]:
        return [self[i] for i in nearest_tick(len(self), num_scales)]  # type: ignore[misc]


class _Identity(nn.Module):
    def pick(self, num_scales: int) -> list[nn.Identity]:
        return [nn.Identity()] * num_scales


class Quantized(NamedTuple):
    """One scale's outcome while a latent is quantized.

    tokens: int64 ``(B, h, w)``; f_hat: the partial sum after this scale, float32 ``(B, z, P, P)``; rest: what
    the scales before had left of the latent, which these tokens were chosen from, same shape.
    """

    tokens: Tensor
    f_hat: Tensor
    rest: Tensor


class MultiScaleQuantizer(nn.Module):
    """Codebook and convolutions; turns latents into token maps and back.

    vocab_size, z_channels: shape of the codebook.
    quant_resi: mixing ratio of the convolutions; 0 leaves them out.
    share_quant_resi: 1 = one convolution, n = n shared by the scales, 0 = one per scale.
    using_znorm: choose codes by cosine instead of Euclidean distance.
    last_phi: whether the finest scale has a convolution, as in VAR, or adds its codes as they are, as in
        HART; methods can be asked for the other convention. Tokens are the same under both.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        z_channels: int,
        schedule: ScaleSchedule,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        using_znorm: bool = False,
        last_phi: bool = True,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.using_znorm = using_znorm
        self.last_phi = last_phi
        self.embedding = Embedding(vocab_size, z_channels)
        self.quant_resi: nn.Module
        if abs(quant_resi) <= 1e-6:
            self.quant_resi = _Identity()
        elif share_quant_resi == 1:
            self.quant_resi = _Shared(z_channels, quant_resi)
        elif share_quant_resi == 0:
            self.quant_resi = _OwnPerScale(Phi(z_channels, quant_resi) for _ in schedule)
        else:
            self.quant_resi = _PartlyShared(z_channels, quant_resi, share_quant_resi)

    @property
    def vocab_size(self) -> int:
        return self.embedding.num_embeddings

    @property
    def z_channels(self) -> int:
        return self.embedding.embedding_dim

    def phis(self, num_scales: int, *, last_phi: bool | None = None) -> list[nn.Module]:
        """The convolution of every scale; its choice depends on their number only, never on their sizes."""
        picked: list[nn.Module] = self.quant_resi.pick(num_scales)  # type: ignore[operator]
        wanted = self.last_phi if last_phi is None else last_phi
        return picked if wanted else [*picked[:-1], nn.Identity()]

    def nearest(self, z: Tensor) -> Tensor:
        """Codes nearest to vectors ``(..., z)`` in float32 -> int64 ``(...)``."""
        codebook = self.embedding.weight.float()
        if self.using_znorm:
            return (F.normalize(z, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(-1)
        # |z|^2 is the same for all codes and drops out of the comparison. Rows go in portions whose distances
        # stay in the processor's cache.
        bias, rows = codebook.square().sum(-1), z.reshape(-1, z.shape[-1])
        parts = rows.split(NEAREST_ROWS)
        found = [torch.addmm(bias, part, codebook.T, alpha=-2).argmin(-1) for part in parts]
        return torch.cat(found).view(z.shape[:-1])

    def lookup(self, tokens: Tensor) -> Tensor:
        """Token map ``(B, h, w)`` -> code vectors ``(B, z, h, w)`` float32."""
        return self.embedding(tokens).permute(0, 3, 1, 2).float()

    def term(
        self, codes: Tensor, step: int, schedule: ScaleSchedule, *, last_phi: bool | None = None
    ) -> Tensor:
        """What one scale adds to the latent: ``phi_k(enlarge(codes))``, ``(B, z, P, P)`` float32.

        codes: ``(B, z, h, w)``, of the codebook or mixtures of it.
        """
        phi = self.phis(schedule.num_steps, last_phi=last_phi)[step]
        result: Tensor = phi(enlarge(codes, schedule.final))
        return result

    def residual_chain(
        self, f: Tensor, schedule: ScaleSchedule | None = None, *, last_phi: bool | None = None
    ) -> Iterator[Quantized]:
        """Quantize a latent ``(B, z, P, P)`` scale by scale, coarse to fine."""
        schedule = schedule or self.schedule
        # Tokens are chosen on the detached residual: gradients reach the codebook and the convolutions
        # through f_hat, and the encoder through the losses its caller builds.
        f = f.detach().float()
        f_hat = torch.zeros_like(f)
        rest = f
        for step, grid in enumerate(schedule):
            z = shrink(rest, grid)
            tokens = self.nearest(z.permute(0, 2, 3, 1))
            term = self.term(self.lookup(tokens), step, schedule, last_phi=last_phi)
            f_hat = f_hat + term
            yield Quantized(tokens, f_hat, rest)
            rest = rest - term.detach()

    def partial_sums(
        self, tokens: Sequence[Tensor], schedule: ScaleSchedule, *, last_phi: bool | None = None
    ) -> Iterator[Tensor]:
        """The latent after every scale from known token maps ``(B, h, w)``, float32 ``(B, z, P, P)``."""
        f_hat: Tensor | None = None
        for step, maps in enumerate(tokens):
            term = self.term(self.lookup(maps), step, schedule, last_phi=last_phi)
            f_hat = term if f_hat is None else f_hat + term
            yield f_hat
