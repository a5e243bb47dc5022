"""What the tests of several families share: measuring the memory that a computation takes."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside of it while they live; :attr:`peak` is their maximum.

    Tensors that existed before count nothing, as long as they are only read. arrays: count those of numpy
    too, with what else Python allocates, which is some ten thousand bytes.
    """

    def __init__(self, existing: Any = (), *, arrays: bool = False) -> None:
        super().__init__()
        self.current = self.peak = self.before = 0
        self.arrays = arrays
        self._known = {t.untyped_storage()._cdata for t in existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._track(tensor)
        others = tracemalloc.get_traced_memory()[0] - self.before if self.arrays else 0
        self.peak = max(self.peak, self.current + others)
        return out

    def __enter__(self) -> LiveBytes:
        if self.arrays:
            tracemalloc.start()
            self.before = tracemalloc.get_traced_memory()[0]
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        tracemalloc.stop()

    def _track(self, tensor: Tensor) -> None:
        if tensor.layout == torch._mkldnn:  # has no storage that can be asked
            key, size, storage = id(tensor), tensor.numel() * tensor.itemsize, tensor
        else:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.current += size
        weakref.finalize(storage, self._forget, key, size)  # the Python object lives as long as the storage

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.current -= size


@pytest.fixture(scope="session")
def live_bytes() -> Callable[..., LiveBytes]:
    """Makes a :class:`LiveBytes`; see there."""
    return LiveBytes
