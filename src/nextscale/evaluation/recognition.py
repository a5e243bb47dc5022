"""Does a classifier see in a generated picture the class that was asked for?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.rows import check_finite
from nextscale.nn.classifier import SmallClassifier
from nextscale.weights.classifier import CLASSIFIER, load_classifier

__all__ = ["CLASSIFIER", "load_classifier", "recognised", "share_interval"]


@torch.inference_mode()
def recognised(
    classifier: SmallClassifier, images: Tensor, labels: Sequence[int] | Tensor, *, batch_size: int = 500
) -> Tensor:
    """Whether each picture's most likely class is its label: bool ``(B,)``.

    images: float ``(B, 3, H, W)`` in [0, 1] of the classifier's size, as a pipeline returns them for
        ``output_type="pt"``; they are rounded to 8 bit first, because that is what a saved picture holds.
    """
    wanted = torch.as_tensor(labels)
    height, width = classifier.size
    if images.ndim != 4 or images.shape[1:] != (3, height, width) or len(images) != len(wanted):
        raise InvalidArgumentError(
            f"expected pictures (B, 3, {height}, {width}), a label each; got {tuple(images.shape)} and "
            f"{len(wanted)}"
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
