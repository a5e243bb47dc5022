"""Random numbers without a state: each is a hash of the image's seed and of what it is for.

A number depends on (seed, stream, step, cell, entry) and on nothing else. So an image depends on its seed
alone: neither on its neighbours in a batch, nor on the order in which numbers are asked for, nor on what else
is drawn. The hash is whole-number arithmetic modulo 2^64 and gives the same bits on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final

import torch
from torch import Tensor

from nextscale.nn.placement import CPU

GOLDEN: Final = 0x9E3779B97F4A7C15
"""The increment of SplitMix64 (Steele, Lea and Flood, 2014): 2^64 divided by the golden ratio, made odd."""

ROUNDS: Final = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))
"""Shifts and factors of SplitMix64's finalizer (variant 13 of Stafford's)."""


class Stream(IntEnum):
    """What numbers are for. Each consumer has a stream of its own, so a new one never shifts another's."""

    TOKENS = 0  # one number per entry of a vocabulary, or per bit
    MIXTURES = 1  # of codes, see soft.py
    ORDER = 2  # in which the cells of a masked scale are predicted
    RESIDUAL = 3  # diffusion of what codes leave out


def signed(word: int) -> int:
    """Read a number modulo 2^64 as the int64 that has its bits."""
    word &= 2**64 - 1
    return word - 2**64 if word >> 63 else word


def scramble(words: Tensor) -> Tensor:
    """Hash 64-bit words: int64, any shape, to new ones of the same shape. A bijection."""
    for shift, factor in ROUNDS:
        # A shift of int64 repeats the sign, which is masked off again.
        high = (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        words = high.bitwise_xor_(words)
        if factor is not None:
            words.mul_(signed(factor))
    return words


def derive(keys: Tensor, numbers: Tensor | int) -> Tensor:
    """Make the keys of a next level: int64 keys, and whole numbers from 0, which broadcast with them."""
    if isinstance(numbers, int):
        return scramble(keys + signed(GOLDEN * (numbers + 1)))
    return scramble((numbers + 1).mul_(signed(GOLDEN)) + keys)


def uniform(words: Tensor) -> Tensor:
    """Turn hashed words into float64 numbers in (0, 1): odd multiples of 2^-53."""
    return (words >> 12).bitwise_and_(2**52 - 1).double().add_(0.5).mul_(2.0**-52)


def exponential(words: Tensor) -> Tensor:
    """Turn hashed words into float64 draws of Exp(1), between 1e-16 and 37."""
    return uniform(words).log_().neg_()


class Noise:
    """The numbers behind the images of a batch.

    seeds: one per image, from 0 up to 2^64; or an int64 tensor ``(B,)`` with their bits, as :attr:`seeds` is.
    device: where numbers are made; on the CPU in place of an Apple GPU, which has no float64.
    """

    def __init__(self, seeds: Sequence[int] | Tensor, device: torch.device = CPU) -> None:
        place = CPU if device.type == "mps" else device
        given: Any = seeds if isinstance(seeds, Tensor) else torch.tensor([signed(s) for s in seeds])
        self.seeds: Tensor = given.to(place)

    def keys(self, stream: Stream, step: int, cells: Tensor | int) -> Tensor:
        """Make one key per cell, int64 ``(B, l)``, for :func:`derive` to number entries.

        cells: int64 ``(B, l)``, the row-major cells of the step's grid; or how many, for all of them.
        """
        images = derive(self.seeds, 0)
        steps = derive(derive(images, int(stream)), step)
        if isinstance(cells, int):
            cells = torch.arange(cells, device=self.seeds.device)
        return derive(steps[:, None], cells.to(self.seeds.device))

    def words(self, stream: Stream, step: int, cells: Tensor | int, entries: int) -> Tensor:
        """Hash all entries of all cells: int64 ``(B, l, entries)``."""
        numbers = torch.arange(entries, device=self.seeds.device)
        return derive(self.keys(stream, step, cells)[..., None], numbers)

    def normal(self, stream: Stream, step: int, cells: Tensor | int, entries: int) -> Tensor:
        """Draw from the standard normal distribution, float32 ``(B, l, entries)`` (Box and Muller, 1958)."""
        pairs = self.words(stream, step, cells, 2 * entries).unflatten(-1, (entries, 2))
        radius = exponential(pairs[..., 0]).mul_(2).sqrt_()
        return (uniform(pairs[..., 1]).mul_(2 * math.pi).cos_() * radius).float()
