"""What a model computes again and again, recorded as CUDA graphs: one launch in place of thousands.

A small batch keeps a GPU waiting, since starting a kernel takes longer than the kernel. A graph starts all of
them at once. It holds addresses, not values: a replay reads and writes the same memory every time, so a
recording keeps the memory of the whole computation, and its inputs are copied in and its results copied out.

Nothing here changes what is computed. The first run of its kind is done as it is written, the second is
recorded, later ones are replayed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RECORDED_SHARE = 1 / 8
"""Most of a GPU's memory that the recordings of one owner may keep; what takes more keeps it busy anyway."""

Function = Callable[..., Sequence[Tensor]]

_capturing = threading.Lock()  # PyTorch captures on one stream


class Recording:
    """One function of tensors on a GPU, which waits for nothing and has no other inputs."""

    def __init__(self, function: Function, *given: Tensor) -> None:
        # Outside of inference mode, since later calls may be: its tensors could not be written to there.
        with torch.cuda.device(given[0].device), torch.inference_mode(False), torch.no_grad():
            self._given = [t.clone() for t in given]
            self._graph = torch.cuda.CUDAGraph()
            with _capturing, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._made = function(*self._given)

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        for own, value in zip(self._given, given, strict=True):
            own.copy_(value)
        self._graph.replay()
        return tuple(t.clone() for t in self._made)


class Recordings:
    """The recordings of one owner of models. They take no part in copies of it.

    Each is used by one thread at a time; a second thread makes its own. All are forgotten when weights have
    moved.
    """

    def __init__(self) -> None:
        self._idle: dict[Hashable, tuple[Recording, int]] = {}  # with their bytes; least recently used first
        self._asked: set[Hashable] = set()
        self._refused: set[Hashable] = set()
        self._sizes: dict[Hashable, int] = {}  # known once they were wanted, since telling may take a while
        self._weights: Hashable = None

    def run(
        self,
        modules: Sequence[nn.Module],
        kind: Hashable,
        size: Callable[[], int],
        function: Function,
        *given: Tensor,
    ) -> Sequence[Tensor]:
        """``function(*given)``, recorded if this kind of work was asked for before.

        modules: whose weights are used. kind: all that the function depends on but the values of weights and
        of what is given; hashable. size: tells the bytes that the function takes at its peak, roughly.
        """
        weights = _addresses(modules)
        if weights is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
            return function(*given)
        if weights != self._weights:
            self._idle.clear()
            self._weights = weights
        key = (kind, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        found = self._idle.pop(key, None) or self._record(key, size, function, *given)
        if found is None:
            return function(*given)
        made = found[0](*given)
        self._idle[key] = found
        return made

    def _record(
        self, key: Hashable, size: Callable[[], int], function: Function, *given: Tensor
    ) -> tuple[Recording, int] | None:
        first = key not in self._asked
        self._asked.add(key)
        if first or key in self._refused:
            return None
        if key not in self._sizes:
            self._sizes[key] = size()
        needed = self._sizes[key]
        if not self._make_room(needed, given[0].device):
            return None
        try:
            return Recording(function, *given), needed
        except RuntimeError:  # no memory for it, or something in it waits
            self._refused.add(key)
            return None

    def _make_room(self, size: int, device: torch.device) -> bool:
        """Forget what was not used for longest, until so much more may be kept, if it may."""
        free, whole = torch.cuda.mem_get_info(device)
        while self._idle and size + sum(kept for _, kept in self._idle.values()) > RECORDED_SHARE * whole:
            del self._idle[next(iter(self._idle))]
        # A recording's memory is its own; what ordinary work needs has to fit beside it.
        return size <= RECORDED_SHARE * whole and 3 * size <= free

    def __deepcopy__(self, memo: Any) -> Recordings:
        return Recordings()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recordings, ()


def _addresses(modules: Sequence[nn.Module]) -> Hashable:
    """Where weights lie on a GPU; ``None`` elsewhere, in training, and where hooks want to be called."""
    if any(next(module.parameters()).device.type != "cuda" for module in modules):
        return None
    parts = (part for module in modules for part in module.modules())
    if any(part.training or part._forward_hooks or part._forward_pre_hooks for part in parts):
        return None
    return tuple((p.data_ptr(), p.dtype) for module in modules for p in module.parameters())
