"""A small convolutional classifier: the ruler that quality is measured with offline.

The layout follows what is known to train fast on CIFAR-10: a fixed whitening of 2x2 patches, stages of two
convolutions that shrink early (three for 32 pixels), and a final maximum over the picture.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError
from nextscale.scales import Grid

PATCH = 2


@dataclass(frozen=True)
class ClassifierConfig:
    """widths: channels of the stages, each of which halves the picture; the last is that of the features.

    size: height and width in pixels of the pictures it is for, or one number for both.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (32, 128, 160)
    size: int | Grid = (32, 32)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        size = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        object.__setattr__(self, "size", size)
        least = PATCH - 1 + 2 ** len(self.widths)
        if len(size) != 2 or min(size) < least:
            raise InvalidArgumentError(
                f"a classifier of {len(self.widths)} stages needs pictures of {least} pixels a side or more, "
                f"got the size {self.size}"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Stage(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class SmallClassifier(nn.Module):
    """Pictures ``(B, 3, H, W)`` in [-1, 1] to class logits, and to features."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        patch = 3 * PATCH**2
        self.whiten = nn.Conv2d(3, 2 * patch, PATCH)
        channels = (2 * patch, *config.widths)
        self.stages = nn.ModuleList(_Stage(i, o) for i, o in zip(channels, channels[1:], strict=False))
        self.head = nn.Linear(config.widths[-1], config.num_classes)

    @property
    def size(self) -> Grid:
        """Height and width in pixels of the pictures it was trained on."""
        return cast(Grid, self.config.size)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute what each layer makes of the pictures, fine to coarse: ``(B, C, h, w)`` each."""
        x = F.gelu(self.whiten(images.contiguous(memory_format=torch.channels_last)))  # twice as fast so
        made = [x]
        for stage in self.stages:
            made.append(stage(made[-1]))
        return made

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer: ``(B, widths[-1])`` float32."""
        return self.maps(images)[-1].amax((2, 3)).float()

    def forward(self, images: Tensor) -> Tensor:
        """Class logits ``(B, num_classes)``."""
        logits: Tensor = self.head(self.features(images))
        return logits

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Let every convolution of the stages begin by passing its input on, in its first channels.

        Deep signals are useful from the first iteration on; airbench (arXiv 2404.00498) reports the gain.
        """
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight[: module.in_channels])

    @torch.no_grad()
    def set_whitening(self, images: Tensor, *, eps: float = 5e-4) -> None:
        """Fix the first convolution so that 2x2 patches come out uncorrelated and with unit variance.

        images: ``(N, 3, H, W)`` in [-1, 1]. Every direction appears with both signs.
        """
        patches = F.unfold(images, PATCH).transpose(1, 2).flatten(0, 1).double()  # (N * cells, 3 * PATCH^2)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        weight = (vectors / (values + eps).sqrt()).T.view(-1, 3, PATCH, PATCH)
        self.whiten.weight.copy_(torch.cat([weight, -weight]))
        self.whiten.bias.zero_()  # type: ignore[union-attr]
        self.whiten.requires_grad_(False)
