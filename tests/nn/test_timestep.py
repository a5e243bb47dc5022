"""Sinusoids of whole numbers and their embedding."""

from __future__ import annotations

import math

import pytest
import torch

from nextscale.nn.timestep import TimestepEmbedding, sinusoids


def test_sinusoids_by_their_formula():
    numbers = [0, 1, 7, 571, 999]
    found = sinusoids(torch.tensor(numbers))
    assert found.shape == (5, 256)
    for row, n in zip(found.tolist(), numbers, strict=True):
        angles = [n * 10000 ** (-i / 128) for i in range(128)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert row == pytest.approx(expected, abs=1e-4)  # float32 angles up to 999


def test_any_leading_axes():
    embed = TimestepEmbedding(12).requires_grad_(False)
    numbers = torch.arange(6).view(2, 3)
    rows = embed(numbers)
    assert rows.shape == (2, 3, 12)
    torch.testing.assert_close(embed(numbers[1, 2]), rows[1, 2])


def test_keys_and_dtype():
    embed = TimestepEmbedding(8).to(torch.bfloat16)
    assert {k: tuple(v.shape) for k, v in embed.state_dict().items()} == {
        "mlp.0.weight": (8, 256),
        "mlp.0.bias": (8,),
        "mlp.2.weight": (8, 8),
        "mlp.2.bias": (8,),
    }
    assert embed(torch.tensor([3])).dtype == torch.bfloat16
