"""Sums of memory estimates; the parts are measured in the families' tests."""

from __future__ import annotations

import torch
from torch import nn

from nextscale.generation.memory import MemoryEstimate, weight_bytes


def test_the_peak_is_that_of_the_fuller_phase():
    first = MemoryEstimate(weights=100, cache=50, activations=30, decoder=60)
    assert first.total == 180
    assert MemoryEstimate(weights=100, cache=50, activations=30, decoder=90).total == 190
    many = MemoryEstimate(weights=3 * 2**30, cache=2**20, activations=2048, decoder=5)
    assert str(many) == (
        "3.001 GiB at the peak (weights 3 GiB, cache 1 MiB, activations 2 KiB, decoder 5 bytes)"
    )


def test_weights_are_counted_without_being_there():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))  # has a whole number among its buffers
    numbers = 3 * 5 + 5 + 4 * 5
    assert weight_bytes([module], torch.float32) == 4 * numbers + 8
    assert weight_bytes([module, module], torch.bfloat16) == 2 * (2 * numbers + 8)
