"""Pictures seen from other sides: mirrored, and turned by quarter turns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError

TURNS = (0, 1, 2, 3)


def turned(images: Tensor, quarters: int) -> Tensor:
    """Turn pictures ``(B, C, H, W)`` by so many quarter turns, counter-clockwise."""
    return images.rot90(quarters, (2, 3))


def random_turns(images: Tensor) -> Tensor:
    """Turn each square picture ``(B, C, H, W)`` by a random number of quarter turns."""
    check_square(images.shape[2:])
    quarters = torch.randint(len(TURNS), (len(images),)).to(images.device)
    out = images.clone()
    for k in TURNS[1:]:
        rows = (quarters == k).nonzero().flatten()
        out[rows] = turned(images[rows], k)
    return out


def check_square(size: Sequence[int]) -> None:
    """Raises InvalidArgumentError for a height and a width that differ: quarter turns would swap them."""
    if size[0] != size[1]:
        raise InvalidArgumentError(
            f"the recipe turns pictures by quarter turns, which needs square ones; got {size[1]}x{size[0]} "
            f"pixels. Take another recipe"
        )
