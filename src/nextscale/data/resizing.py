"""Pictures of one size from pictures of another, by rules with names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from nextscale.errors import InvalidArgumentError

ENLARGE = 1.125  # shorter side before the crop, relative to the target (VAR's published data pipeline)

Rule = Callable[[Image.Image, tuple[int, int]], Image.Image]
"""A picture and ``(width, height)``: the picture of that size."""


def resized(image: Image.Image, size: tuple[int, int], rule: str) -> Image.Image:
    """Bring a picture to ``(height, width)`` by the rule of a name of :data:`RULES`."""
    return check_rule(rule)(image, (size[1], size[0]))


def check_rule(name: str) -> Rule:
    """The rule of a name. Raises InvalidArgumentError, naming those that there are, for another one."""
    if name not in RULES:
        raise InvalidArgumentError(f"unknown rule to resize {name!r}; known: {', '.join(RULES)}")
    return RULES[name]


def pixels_of(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 ``(3, H, W)``."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def training_crop(image: Image.Image, size: tuple[int, int], place: Sequence[float]) -> Tensor:
    """Resize (Lanczos) until both sides reach 1.125 x ``(height, width)``, then crop; ``place`` in [0, 1]
    says where.

    Pictures of this size stay as they are.
    """
    height, width = size
    if image.size != (width, height):
        scale = max(round(ENLARGE * s) / side for s, side in zip((width, height), image.size, strict=True))
        w, h = max(round(image.width * scale), width), max(round(image.height * scale), height)
        image = image.resize((w, h), Resampling.LANCZOS)
        left, top = round(place[0] * (w - width)), round(place[1] * (h - height))
        image = image.crop((left, top, left + width, top + height))
    return pixels_of(image)


def _adm(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As the references of ADM's evaluator were prepared (guided-diffusion, ``center_crop_arr``).

    Halved by area averages while it is at least twice as large, then bicubic, then the centre.
    """
    while image.width >= 2 * size[0] and image.height >= 2 * size[1]:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    return _covering(image, size, Resampling.BICUBIC)


def _covering(image: Image.Image, size: tuple[int, int], filter: Resampling) -> Image.Image:
    """The smallest enlargement or reduction that covers the size, then the centre."""
    scale = max(size[0] / image.width, size[1] / image.height)
    w, h = max(round(image.width * scale), size[0]), max(round(image.height * scale), size[1])
    image = image.resize((w, h), filter)
    left, top = (w - size[0]) // 2, (h - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _as_for_training(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(training_crop(image, (size[1], size[0]), (0.5, 0.5)).permute(1, 2, 0).numpy())


RULES: Mapping[str, Rule] = {
    "adm": _adm,
    "area": lambda image, size: _covering(image, size, Resampling.BOX),
    "bicubic": lambda image, size: _covering(image, size, Resampling.BICUBIC),
    "lanczos": lambda image, size: _covering(image, size, Resampling.LANCZOS),
    "training": _as_for_training,
}
"""``adm``: ADM's. ``area``, ``bicubic``, ``lanczos``: shorter side by that filter, then the centre.
``training``: what ``nextscale train`` makes of pictures that it does not crop at random."""
