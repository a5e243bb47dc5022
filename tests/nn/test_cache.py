from __future__ import annotations

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.nn.cache import KVCache


def make(capacity: int = 6, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache.layers(2, 2, 3, capacity, 4, dtype=dtype, device=torch.device("cpu"))[1]


def test_returns_all_that_was_appended():
    cache = make()
    parts = [torch.randn(2, 3, n, 4) for n in (1, 2, 3)]
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_holds_the_given_type(dtype: torch.dtype):
    keys, values = make(dtype=dtype).append(torch.ones(2, 3, 1, 4), torch.ones(2, 3, 1, 4))
    assert keys.dtype == values.dtype == dtype


def test_more_than_its_capacity_is_an_error():
    cache = make(capacity=2)
    cache.append(torch.ones(2, 3, 2, 4), torch.ones(2, 3, 2, 4))
    with pytest.raises(InvalidArgumentError, match=r"room for 2 positions, not for 2 \+ 1"):
        cache.append(torch.ones(2, 3, 1, 4), torch.ones(2, 3, 1, 4))
