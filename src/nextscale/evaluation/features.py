"""Feature spaces: pictures in, the tensors that figures are computed from out.

All of them are used alike. What they return has one row per picture, float32 on the CPU:

``"features"`` ``(B, d)``: for Fréchet and kernel distances and nearest neighbours;
``"logits"`` ``(B, C)``: where the space has a classifier;
``"spatial"`` ``(B, s)``: for sFID, of Inception only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextscale.errors import DataError, InvalidArgumentError
from nextscale.evaluation.inception import SHA256, SIDE, load_inception, resize_tensorflow1
from nextscale.evaluation.provenance import Report, silent
from nextscale.evaluation.recognition import CLASSIFIER, load_classifier
from nextscale.usual import with_usual_defaults
from nextscale.weights.digest import weights_digest

SPACES = (CLASSIFIER, "inception", "inception-clean", "pixels", "dinov2")
MOST_PIXELS = 64 * 64
KERNEL_DIVISOR = "kernel_divisor"


class FeatureSpace(ABC):
    """One way to look at pictures.

    name: of :data:`SPACES`. classes: how many classes the logits have, if these are the classes that pictures
    are asked for, so that they can be recognised; else ``None``.
    """

    name: str
    classes: int | None = None
    batch_size = 100

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What the features depend on, as JSON: weights by digest, how pictures are resized."""

    @abstractmethod
    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        """Of at most ``batch_size`` uint8 pictures ``(B, 3, H, W)``."""

    def check_size(self, size: tuple[int, int]) -> None:  # noqa: B027 - most take any size
        """Raises InvalidArgumentError for pictures (height, width) that this space does not take."""

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Tensors of uint8 pictures ``(B, 3, H, W)``, however many.

        Raises InvalidArgumentError for anything else, DataError if features are not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            raise InvalidArgumentError(
                f"pictures must be uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        self.check_size((images.shape[2], images.shape[3]))
        # TF32 would cost three digits; figures must not depend on the GPU.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            parts = [self._compute(part) for part in images.split(self.batch_size)]
        out = {key: torch.cat([p[key].float().cpu() for p in parts]) for key in parts[0]}
        for key, values in out.items():
            if not bool(values.isfinite().all()):
                raise DataError(f"the {key} of {self.name} are not finite for some pictures")
        return out


class ClassifierSpace(FeatureSpace):
    """The embedded classifier or one of the user's: works offline, for pictures of its size."""

    name = CLASSIFIER
    batch_size = 250

    def __init__(self, source: str | Path = CLASSIFIER, *, device: str | torch.device = "auto") -> None:
        self.network = load_classifier(source, device=str(device))
        self.classes = self.network.config.num_classes
        self.digest = weights_digest(self.network)

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "weights_sha256": self.digest, "layer": "penultimate", "resize": None}

    def check_size(self, size: tuple[int, int]) -> None:
        height, width = self.network.size
        if size != (height, width):
            raise InvalidArgumentError(
                f"the classifier takes pictures of {width}x{height} pixels, not {size[1]}x{size[0]}; use "
                f"another feature space, for instance inception, or train a classifier for this size"
            )

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        pixels = images.to(next(self.network.parameters()).device).float() / 127.5 - 1
        features = self.network.features(pixels)
        return {"features": features, "logits": self.network.head(features)}


class InceptionSpace(FeatureSpace):
    """Inception with the published weights; ``clean`` resizes with antialiasing instead of as published."""

    batch_size = 50

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        clean: bool = False,
        sha256: str = SHA256,
        device: str | torch.device = "auto",
        report: Report = silent,
    ) -> None:
        self.name = "inception-clean" if clean else "inception"
        self.network = load_inception(source, sha256=sha256, device=device, report=report)
        self.clean, self.digest = clean, sha256.lower()

    def description(self) -> dict[str, Any]:
        rule = "PIL bicubic in float, antialiased, clipped" if self.clean else "TensorFlow 1 bilinear"
        return {"name": self.name, "weights_file_sha256": self.digest, "layer": "pool_3", "resize": rule}

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        device = next(self.network.parameters()).device
        resized = resize_clean(images).to(device) if self.clean else resize_tensorflow1(images.to(device))
        out: dict[str, Tensor] = self.network(resized)
        return out


class PixelSpace(FeatureSpace):
    """The pixels themselves, 0 to 255, channel by channel: for small pictures, and as a plain check.

    For the kernel distance they are divided by 255; see :func:`for_kernel`.
    """

    name = "pixels"

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "range": [0, 255], KERNEL_DIVISOR: 255, "resize": None}

    def check_size(self, size: tuple[int, int]) -> None:
        if size[0] * size[1] > MOST_PIXELS:
            raise InvalidArgumentError(
                f"pictures of {size[1]}x{size[0]} have {3 * size[0] * size[1]:,} values, too many for "
                f"covariances; use another feature space, for instance inception"
            )

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": images.flatten(1).float()}


def for_kernel(features: Tensor, space: Mapping[str, Any]) -> Tensor:
    """Features ``(N, d)`` as the kernel distance takes them: on the scale that its cubic kernel is made for.

    space: the description of the feature space they are of. Most spaces have entries of the order of one; of
    pixels up to 255 the kernel would be dominated by the cube of their size, and be 10^12.
    """
    return features / space.get(KERNEL_DIVISOR, 1)


def resize_clean(images: Tensor, side: int = SIDE) -> Tensor:
    """clean-fid's resize: Pillow's bicubic filter on float channels, widened when shrinking, then clipped.

    images: uint8 ``(B, 3, H, W)``. Returns float32 ``(B, 3, side, side)``, 0..255, not rounded.
    """
    channels = images.flatten(0, 1).float().cpu().numpy()
    resized = [
        np.asarray(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC)) for c in channels
    ]
    return torch.from_numpy(np.stack(resized)).clamp(0, 255).view(-1, 3, side, side)


@with_usual_defaults
def open_space(
    name: str,
    weights: str | Path | None = None,
    *,
    sha256: str | None = None,
    device: str | torch.device = "auto",
    report: Report = silent,
) -> FeatureSpace:
    """A feature space by name.

    weights: a classifier's folder, Inception's weight file, or a hub id or folder of a DINOv2; ``None`` takes
        the embedded classifier, and downloads the others once.
    sha256: what Inception's file must have, where it is not the published one.
    report: told before a download.
    Raises InvalidArgumentError for an unknown name, and what loading the weights raises.
    """
    if name == CLASSIFIER:
        return ClassifierSpace(weights or CLASSIFIER, device=device)
    if name in ("inception", "inception-clean"):
        clean = name == "inception-clean"
        return InceptionSpace(weights, clean=clean, sha256=sha256 or SHA256, device=device, report=report)
    if name == "pixels":
        return PixelSpace()
    if name == "dinov2":
        from nextscale.evaluation.dinov2 import LARGE, DINOv2Space

        return DINOv2Space(weights or LARGE, device=device)
    raise InvalidArgumentError(f"unknown feature space {name!r}; known: {', '.join(SPACES)}")
