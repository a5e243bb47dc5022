"""Does a classifier see in a generated picture the class that was asked for?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.rows import check_finite
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.nn.placement import place
from nextscale.weights.layout import load_module, locate

CLASSIFIER = "cifar10-classifier"


def load_classifier(name: str | Path = CLASSIFIER, *, device: str = "auto") -> SmallClassifier:
    """The classifier that ships in the package, or one from a folder of ``nextscale train classifier``."""
    return load_module(
        lambda c: SmallClassifier(ClassifierConfig(**c)), locate(name), place(device, "float32")
    )


@torch.inference_mode()
def recognised(
    classifier: SmallClassifier, images: Tensor, labels: Sequence[int] | Tensor, *, batch_size: int = 500
) -> Tensor:
    """Whether each picture's most likely class is its label: bool ``(B,)``.

    images: float ``(B, 3, 32, 32)`` in [0, 1], as a pipeline returns them for ``output_type="pt"``; they are
        rounded to 8 bit first, because that is what a saved picture holds.
    """
    wanted = torch.as_tensor(labels)
    if images.ndim != 4 or images.shape[1:] != (3, 32, 32) or len(images) != len(wanted):
        raise InvalidArgumentError(
            f"expected pictures (B, 3, 32, 32), a label each; got {tuple(images.shape)} and {len(wanted)}"
        )
    check_finite(images, "pictures")
    rounded = (images * 255).round() / 127.5 - 1
    device = next(classifier.parameters()).device
    guesses = [classifier(part.to(device)).argmax(-1).cpu() for part in rounded.split(batch_size)]
    return torch.cat(guesses) == wanted.cpu()


def share_interval(hits: int, count: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, from ``hits`` out of ``count``."""
    share, z2 = hits / count, z * z
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)
