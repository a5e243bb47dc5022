"""The adversarial term of a tokenizer's training: a discriminator that learns to tell reconstructions apart.

As in VQGAN (Esser et al. 2021, arXiv 2012.09841), whose discriminator judges patches (Isola et al. 2017,
arXiv 1611.07004), with the hinge loss (Lim and Ye 2017, arXiv 1705.02894) and a late start. So that it does
not learn few pictures by heart, it sees what :func:`augment` makes of them (Zhao et al. 2020,
arXiv 2006.10738).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError

RAMP = 0.05  # share of the run in which the term reaches its weight, while the discriminator finds its feet
GROUPS = 8


@dataclass(frozen=True)
class AdversarySettings:
    """weight: length of the term's gradient at the decoder's last layer, in lengths of the others' there.

    start: share of the run before the discriminator begins to learn; the term then grows over :data:`RAMP`.
    channels: of the discriminator's first layer; each further one has twice as many.
    layers: that halve the picture. A patch is 16 pixels wide with one, 34 with two, 70 with three.
    lr: peak rate, which follows the schedule of the run.
    augment: whether the discriminator sees recoloured, shifted and partly covered pictures.
    """

    weight: float = 0.5
    start: float = 0.3
    channels: int = 32
    layers: int = 2
    lr: float = 5e-4
    augment: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InvalidArgumentError(f"the adversarial weight must be 0 or more, got {self.weight!r}")
        if not 0 <= self.start < 1:
            raise InvalidArgumentError(
                f"the adversarial start is a share of the run in [0, 1), got {self.start!r}"
            )
        if self.channels < GROUPS or self.channels % GROUPS or self.layers < 1:
            raise InvalidArgumentError(
                f"a discriminator has a multiple of {GROUPS} channels and at least one layer, got "
                f"{self.channels} and {self.layers}"
            )


class PatchDiscriminator(nn.Module):
    """Pictures ``(B, 3, H, W)`` in [-1, 1] -> a score for every patch, ``(B, 1, h, w)``; high is real.

    Its norms are those of single pictures, so that what it says of one does not depend on the others, nor on
    how a batch is cut.
    """

    def __init__(self, channels: int = 32, layers: int = 2) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            wide, stride = channels * 2**i, 2 if i < layers else 1
            parts += [
                nn.Conv2d(wide // 2, wide, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(GROUPS, wide),
                nn.LeakyReLU(0.2),
            ]
        parts.append(nn.Conv2d(channels * 2**layers, 1, 4, padding=1))
        self.layers = nn.Sequential(*parts)
        for part in self.layers:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images.contiguous(memory_format=torch.channels_last))
        return scores.float()


class Adversary:
    """A discriminator with its optimiser: what a run's checkpoint has to hold of it.

    device: where the pictures are. Random numbers come from PyTorch's global generator, which a run seeds for
    every iteration, so there is no state of them to keep.
    """

    def __init__(self, settings: AdversarySettings, device: torch.device) -> None:
        self.settings = settings
        self.network = PatchDiscriminator(settings.channels, settings.layers).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.lr, betas=(0.5, 0.9), weight_decay=0.0, fused=True
        )
        self.learns = False

    def begin(self, progress: float) -> bool:
        """Whether the discriminator learns after this share of the run; asked before every iteration."""
        self.learns = progress >= self.settings.start
        return self.learns

    def weight(self, progress: float) -> float:
        """The term's weight after this share of the run: it grows over :data:`RAMP`."""
        return self.settings.weight * min(1.0, max(0.0, (progress - self.settings.start) / RAMP))

    def judge(self, recon: Tensor, images: Tensor) -> Judgement:
        """Scores of reconstructions ``(B, 3, H, W)``, which are a leaf, beside those of the originals."""
        view = augment if self.settings.augment else lambda x: x
        fake, real = self.network(view(recon)), self.network(view(images))
        (gradient,) = torch.autograd.grad(-fake.mean(), recon, retain_graph=True)
        loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        own = torch.autograd.grad(loss, list(self.network.parameters()))
        return Judgement(-fake.detach().mean(), gradient, loss.detach(), own)

    def step(self, rate: float) -> None:
        """Descend along the gradients at hand; rate: share of the peak rate."""
        if not self.learns:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * rate
        self.optimizer.step()


@dataclass(frozen=True)
class Judgement:
    """term: mean of minus the scores of reconstructions, which the tokenizer lowers; gradient: of that with
    respect to the reconstructions.
    loss: the discriminator's hinge loss (1 at the beginning, 0 when it is always right and sure); own: its
    gradients, one per parameter.
    """

    term: Tensor
    gradient: Tensor
    loss: Tensor
    own: tuple[Tensor, ...]


def augment(images: Tensor) -> Tensor:
    """Recolour, shift and partly cover pictures ``(B, 3, H, W)`` in [-1, 1], each in its own way.

    Brightness by up to 0.5, saturation up to twofold, contrast between half and one and a half, a shift of up
    to an eighth of each side, and a square of half the sides in grey: the published choice, each part of
    which can be differentiated.
    """
    n, _, h, w = images.shape
    u = torch.rand(3, n, 1, 1, 1).to(images.device)
    x = images + (u[0] - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * u[1]) + grey
    centre = x.mean((1, 2, 3), keepdim=True)
    x = (x - centre) * (u[2] + 0.5) + centre
    return _cover(_shift(x, h // 8, w // 8), h // 2, w // 2)


def _shift(images: Tensor, rows: int, columns: int) -> Tensor:
    """Move each picture by up to so many pixels; what comes in is grey."""
    n, _, h, w = images.shape
    down, right = torch.randint(2 * rows + 1, (n,)).tolist(), torch.randint(2 * columns + 1, (n,)).tolist()
    padded = F.pad(images, (columns, columns, rows, rows))
    return torch.stack([p[:, i : i + h, j : j + w] for p, i, j in zip(padded, down, right, strict=True)])


def _cover(images: Tensor, high: int, wide: int) -> Tensor:
    """Set a rectangle to grey in each picture, centred anywhere and cut off at the borders."""
    n, _, h, w = images.shape
    top = torch.randint(h + 1, (n, 1)) - high // 2
    left = torch.randint(w + 1, (n, 1)) - wide // 2
    rows, columns = torch.arange(h), torch.arange(w)
    covered = ((rows >= top) & (rows < top + high))[:, :, None] & (
        (columns >= left) & (columns < left + wide)
    )[:, None, :]
    return images.masked_fill(covered[:, None].to(images.device), 0.0)
