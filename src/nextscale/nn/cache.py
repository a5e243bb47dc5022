"""Keys and values of past positions, in memory that is allocated once per generation."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError


class KVCache:
    """Static cache of one attention layer: ``(B, H, capacity, d)`` for keys and values."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.length = 0

    @classmethod
    def layers(
        cls,
        count: int,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> list[KVCache]:
        """The caches of ``count`` layers, in one piece of memory: so that all of it is given back at once."""
        room = torch.empty(count, 2, batch, heads, capacity, head_dim, dtype=dtype, device=device)
        return [cls(*layer.unbind()) for layer in room]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values ``(B, H, l, d)`` of new positions, in the cache's dtype; return all so far.

        Raises InvalidArgumentError if they are more than the capacity.
        """
        keys, values = self.room(k.shape[2])
        keys.copy_(k)
        values.copy_(v)
        return self.stored

    def room(self, count: int) -> tuple[Tensor, Tensor]:
        """Where keys and values ``(B, H, count, d)`` of new positions go; they count as stored from now on.

        Raises InvalidArgumentError if they are more than the capacity.
        """
        start, end = self.length, self.length + count
        if end > self.keys.shape[2]:  # a slice would quietly be too short
            raise InvalidArgumentError(
                f"the cache has room for {self.keys.shape[2]} positions, not for {start} + {count}"
            )
        self.length = end
        return self.keys[:, :, start:end], self.values[:, :, start:end]

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions so far, ``(B, H, L, d)`` each."""
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]
