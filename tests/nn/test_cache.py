from __future__ import annotations

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.nn.cache import KVCache


def make(capacity: int = 6, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache.layers(2, 2, 3, capacity, 4, dtype=dtype, device=torch.device("cpu"))[1]


@pytest.mark.parametrize("capacity", [6, 3, 0])
def test_returns_all_that_was_appended(capacity: int):
    cache = make(capacity)
    lengths = {6: (1, 2, 3), 3: (1, 2, 3), 0: (6,)}[capacity]  # the last are beyond the capacity, or not
    parts = [torch.randn(2, 3, n, 4) for n in lengths]
    for i, part in enumerate(parts):
        keys, values = cache.append(part, -part)
        expected = torch.cat(parts[: i + 1], dim=2)
        assert torch.equal(keys, expected)
        assert torch.equal(values, -expected)
    assert cache.length == 6


def test_memory_is_allocated_once():
    cache = make()
    where = cache.keys.data_ptr(), cache.values.data_ptr()
    for _ in range(3):
        keys, values = cache.append(torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4))
        assert (keys.data_ptr(), values.data_ptr()) == where


def test_what_comes_last_is_not_kept():
    cache = make(capacity=2)
    stored = torch.randn(2, 3, 2, 4)
    cache.append(stored, stored)
    keys, values = cache.append(torch.ones(2, 3, 5, 4), torch.ones(2, 3, 5, 4))
    assert keys.shape == values.shape == (2, 3, 7, 4)
    assert torch.equal(cache.keys, stored)
    assert torch.equal(cache.values, stored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_holds_the_given_type(dtype: torch.dtype):
    keys, values = make(dtype=dtype).append(torch.ones(2, 3, 1, 4), torch.ones(2, 3, 1, 4))
    assert keys.dtype == values.dtype == dtype


@pytest.mark.parametrize(("stored", "then"), [([1], 2), ([2, 3], 1)])
def test_positions_that_follow_the_last_are_an_error(stored: list[int], then: int):
    cache = make(capacity=2)
    for count in stored:
        cache.append(*[torch.ones(2, 3, count, 4)] * 2)
    expected = rf"room for 2 positions, not for {sum(stored)} \+ {then}"
    with pytest.raises(InvalidArgumentError, match=expected):
        cache.append(*[torch.ones(2, 3, then, 4)] * 2)
