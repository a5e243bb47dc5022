"""What a model computes again and again, recorded as CUDA graphs: one launch in place of hundreds.

A small batch keeps a GPU waiting, since starting a kernel takes longer than the kernel. A graph starts all of
them at once. It holds addresses, not values: it reads and writes the same memory every time, so whatever goes
into a recording lives as long as the recording, and results are overwritten by the next replay.

Nothing here changes what is computed. The first generation of its kind runs as it is written, the second is
recorded, later ones are replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

RECORDED_BYTES = 2**31
"""Most memory that recordings of one module may hold between calls; with more, a GPU is busy without them."""

State = TypeVar("State")
Function = Callable[[Tensor], Tensor]


class _Replay(NamedTuple):
    graph: Any  # torch.cuda.CUDAGraph
    given: Tensor
    made: Tensor


class Recording(Generic[State]):
    """Functions of one tensor that run one after the other, again and again in the same order.

    state: what they share, and change. key, size: of what kind it is, and how many bytes it holds, roughly.
    """

    def __init__(self, state: State, key: Hashable, size: int) -> None:
        self.state, self.key, self.size = state, key, size
        self._replays: list[_Replay] = []
        self._next = 0
        self._pool: Any = None

    def rewind(self) -> None:
        self._next = 0

    def __call__(self, function: Function, given: Tensor) -> Tensor:
        """``function(given)``. The result is the recording's own, and is overwritten when it is replayed."""
        if self._next == len(self._replays):
            self._replays.append(self._record(function, given))
        replay = self._replays[self._next]
        self._next += 1
        replay.given.copy_(given)
        replay.graph.replay()
        return replay.made

    def _record(self, function: Function, given: Tensor) -> _Replay:
        # Outside of inference mode, as later calls may be: its tensors could not be written to there.
        with torch.cuda.device(given.device), torch.inference_mode(False), torch.no_grad():
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            own = given.clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                made = function(own)
        return _Replay(graph, own, made)


class Recordings:
    """The recordings of one module.

    They are given out to one user at a time, and are forgotten when the module's weights have moved. They do
    not take part in copies of the module.
    """

    def __init__(self) -> None:
        self._idle: dict[Hashable, Recording[Any]] = {}  # least recently used first
        self._asked: set[Hashable] = set()
        self._weights: Hashable = None

    def take(
        self, module: nn.Module, kind: Hashable, size: int, state: Callable[[], State]
    ) -> Recording[State] | None:
        """A recording for this kind of work, or ``None`` where it is not recorded, or not yet.

        module: the module whose weights are used. size: bytes that the recording would hold, roughly.
        state: makes the state of a new one.
        """
        weights = _addresses(module)
        if weights is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
            return None
        if weights != self._weights:
            self._idle.clear()
            self._weights = weights
        key = (kind, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        found = self._idle.pop(key, None)
        if found is None:
            if key not in self._asked:
                self._asked.add(key)
                return None
            if not self._make_room(size, next(module.parameters()).device):
                return None
            with torch.inference_mode(False):
                found = Recording(state(), key, size)
        found.rewind()
        return found

    def give_back(self, recording: Recording[Any]) -> None:
        """For the next user."""
        self._idle[recording.key] = recording

    def _make_room(self, size: int, device: torch.device) -> bool:
        """Forget what was not used for longest, until so much more may be held, if it may."""
        while self._idle and size + sum(r.size for r in self._idle.values()) > RECORDED_BYTES:
            del self._idle[next(iter(self._idle))]
        # Memory of recordings is its own; what ordinary work needs has to fit beside it.
        return size <= RECORDED_BYTES and 4 * size <= torch.cuda.mem_get_info(device)[0]

    def __deepcopy__(self, memo: Any) -> Recordings:
        return Recordings()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recordings, ()


def _addresses(module: nn.Module) -> Hashable:
    """Where a module's weights lie on a GPU; ``None`` on other devices, and where hooks want to be called."""
    if next(module.parameters()).device.type != "cuda":
        return None
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        return None
    return tuple((p.data_ptr(), p.dtype) for p in module.parameters())
