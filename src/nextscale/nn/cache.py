"""Keys and values of past positions, in memory that is allocated once per generation."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError


class KVCache:
    """Static cache of one attention layer: ``(B, H, capacity, d)`` for keys and values.

    It holds the positions that others follow. Those of the last step, which are two fifths of all in the
    published models, come when it is full: they are joined to the others for the one layer that reads them,
    and are gone when it has.
    """

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
        """The caches of ``count`` layers, in one piece of memory: so that all of it is given back at once.

        capacity: all positions but those of the last step.
        """
        room = torch.empty(count, 2, batch, heads, capacity, head_dim, dtype=dtype, device=device)
        return [cls(*layer.unbind()) for layer in room]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions, the new ones ``(B, H, l, d)`` stored in the cache's dtype.

        Raises InvalidArgumentError if they are neither within the capacity nor the first beyond it.
        """
        new = k.shape[2]
        keys, values = self.extended(new)
        keys[:, :, -new:] = k
        values[:, :, -new:] = v
        return keys, values

    def extended(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions, ``(B, H, L, d)``, of which the last ``count`` are to be written.

        They count as stored from now on. Raises what :meth:`append` raises.
        """
        start, end, capacity = self.length, self.length + count, self.keys.shape[2]
        if end > capacity and start != capacity:  # a slice would quietly be too short
            raise InvalidArgumentError(
                f"the cache has room for {capacity} positions, not for {start} + {count}"
            )
        self.length = end
        if end <= capacity:
            return self.keys[:, :, :end], self.values[:, :, :end]
        batch, heads, _, width = self.keys.shape
        joined = self.keys.new_empty(2, batch, heads, end, width)
        for all_so_far, stored in zip(joined, (self.keys, self.values), strict=True):
            all_so_far[:, :, :start] = stored
        return joined[0], joined[1]
