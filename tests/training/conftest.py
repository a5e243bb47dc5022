"""A few real-looking pictures: coloured gradients whose class decides the colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.training.data import ImageSource, open_images

NAMES = ("blue", "green", "red")


def picture(label: int, number: int, size: int = 32) -> Image.Image:
    ramp = np.linspace(0, 255, size)
    pixels = np.zeros((size, size, 3))
    pixels[..., 2 - label] = ramp[:, None] * (0.5 + 0.5 * np.cos(number)) + ramp[None] * 0.3
    pixels[..., (3 - label) % 3] = 40 + 5 * number
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for label, name in enumerate(NAMES):
        (root / name).mkdir()
        for number in range(20):
            picture(label, number).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def pictures(picture_folder: Path) -> ImageSource:
    return open_images(picture_folder, size=32)
