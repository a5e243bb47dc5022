"""A distance between pictures in the features of a network that has learned to see.

The form is that of LPIPS (Zhang et al. 2018, arXiv 1801.03924): at several depths, features of unit length
at every place, their squared difference, weighted by channel where learned weights are at hand, and averaged
over the places.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import CheckpointError
from nextscale.nn.classifier import SmallClassifier
from nextscale.weights.classifier import load_classifier
from nextscale.weights.files import build, read_weights

# VGG16 layer by layer: channels of a 3x3 convolution with its ReLU, or 0 for a maximum over 2x2.
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
# What the published weights expect: mean and deviation of ImageNet's pixels in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Eyes(Protocol):
    """A network whose feature maps are compared."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Pictures ``(B, 3, H, W)`` in [-1, 1] -> feature maps ``(B, C, h, w)``, fine to coarse."""
        ...


class Vgg16(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman 2014), under the names torchvision gives them."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG16:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The last map before each maximum, and the very last: five."""
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
        x = ((images + 1) / 2 - mean) / std
        x, made = x.contiguous(memory_format=torch.channels_last), []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                made.append(x)
            x = layer(x)
        return [*made, x]


class PerceptualDistance:
    """Mean over pictures of the distance of their feature maps.

    eyes: the network, which stays as it is. heads: per map non-negative weights ``(C,)`` of the channels, as
    LPIPS learned them from people's judgements; without them, all channels count alike.
    """

    def __init__(self, eyes: Eyes, heads: Sequence[Tensor] = ()) -> None:
        self.eyes, self.heads = eyes, tuple(heads)

    def __call__(self, recon: Tensor, images: Tensor) -> Tensor:
        """Scalar distance of ``(B, 3, H, W)`` in [-1, 1]; gradients reach the first argument."""
        with torch.no_grad():
            wanted = [_unit(m) for m in self.eyes.maps(images)]
        found = [_unit(m) for m in self.eyes.maps(recon)]
        total = torch.zeros((), device=recon.device)
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            squares = (a - b).square()
            if self.heads:
                squares = squares * self.heads[i].view(1, -1, 1, 1)
            total = total + squares.sum(1).mean()
        return total


def _unit(x: Tensor) -> Tensor:
    """Feature vectors of unit length at every place, in float32."""
    return F.normalize(x.float(), dim=1, eps=1e-10)


def open_perceptual(source: str | Path, device: torch.device) -> PerceptualDistance:
    """A distance from the weights of a network.

    source: a file with VGG16's weights (names ``features.N.weight`` and ``.bias``, as torchvision has them),
        perhaps with LPIPS's heads (``lin0.model.1.weight`` to ``lin4``) beside them; or a classifier of this
        library: a name, or the folder of its training.
    Raises CheckpointError for files that hold something else, ModelNotFoundError where nothing is found.
    """
    if Path(source).is_file():
        return _open_vgg(Path(source), device)
    classifier: SmallClassifier = load_classifier(source, device=str(device))
    return PerceptualDistance(classifier)


def _open_vgg(path: Path, device: torch.device) -> PerceptualDistance:
    found = read_weights(path)
    known = {k: v for k, v in found.items() if k.startswith("features.")}
    hint = "Expected the weights of VGG16's convolutions, features.0.weight to features.28.bias."
    eyes = build(Vgg16, known, source=str(path), dtype=torch.float32, device=device, hint=hint)
    names = [f"lin{i}.model.1.weight" for i in range(5)]
    heads = [found[name] for name in names if name in found]
    widths = [m.out_channels for m in eyes.features if isinstance(m, nn.Conv2d)]
    wanted = [widths[i] for i in (1, 3, 6, 9, 12)]
    if heads and [h.numel() for h in heads] != wanted:
        raise CheckpointError(
            f"{str(path)!r} has heads of {[h.numel() for h in heads]} channels ({', '.join(names)}), "
            f"expected {wanted}, or none"
        )
    return PerceptualDistance(eyes, [h.flatten().to(device, torch.float32) for h in heads])
