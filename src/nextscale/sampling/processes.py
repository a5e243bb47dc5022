"""Which of the processes of a launch this one is, and what they do together: all of it through accelerate.

``torchrun`` and ``accelerate launch`` start processes and tell each its number; accelerate knows how to read
that and how to talk between them. A process that nobody launched is alone, and needs no accelerate.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError, MissingDependencyError
from nextscale.nn.placement import place


@dataclass(frozen=True)
class Processes:
    """A process among ``count``.

    rank: its number, from 0. device: what the launcher gave it; ``None`` without one.
    """

    rank: int = 0
    count: int = 1
    device: str | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that talks to people and writes files."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, which all call this with the same shapes."""
        self._together(tensors, "sum")

    def average(self, tensors: Sequence[Tensor]) -> None:
        """The same with their means."""
        self._together(tensors, "mean")

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the main process, in place. All must call this with the same shapes."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.copy_(broadcast(tensor.detach().to(self.device).contiguous(), from_process=0))

    @torch.no_grad()
    def _together(self, tensors: Sequence[Tensor], how: str) -> None:
        if self.count == 1 or not tensors:
            return
        from accelerate.utils import reduce

        for dtype in {t.dtype for t in tensors}:  # one message each, however many tensors
            same = [t for t in tensors if t.dtype == dtype]
            # Messages go from device to device; some tensors are kept in the memory of the processor.
            flat = torch.cat([t.detach().reshape(-1).to(self.device) for t in same])
            flat = reduce(flat, reduction=how)
            for tensor, part in zip(same, flat.split([t.numel() for t in same]), strict=True):
                tensor.copy_(part.view_as(tensor))


# How long processes wait for each other: one of them may be measuring what was trained so far.
PATIENCE = timedelta(hours=2)

_joined: ContextVar[Processes | None] = ContextVar("joined", default=None)


# What launchers set for each process. Some of them alone were left over by another program.
SET_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WAITING = 20.0  # seconds for the others, after which it is said that they are waited for


def launched() -> bool:
    """Whether a launcher (``accelerate launch``, ``torchrun``) started this process as one of several.

    Raises InvalidArgumentError, naming them, for variables that are no launcher's.
    """
    count = _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if count <= 1:
        return False
    missing = [name for name in SET_BY_LAUNCHERS if not os.environ.get(name)]
    if missing:
        raise InvalidArgumentError(
            f"WORLD_SIZE is {count}, as in a launch of {count} processes, but {missing[0]} is not set; "
            f"{_REMEDY}"
        )
    rank = _number("RANK")
    if rank >= count:
        raise InvalidArgumentError(f"RANK is {rank} and WORLD_SIZE {count}, which is no launch; {_REMEDY}")
    return True


_REMEDY = (
    "if they are left over, unset RANK and WORLD_SIZE; to start several processes use torchrun or accelerate "
    "launch"
)


def _number(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidArgumentError(
            f"{name} is {text[:40]!r}; accelerate launch and torchrun set it to a number. If it is left "
            f"over, unset it"
        )
    return int(text)


@contextmanager
def joined(
    device: str | None = None, waiting: Callable[[str], None] = lambda text: None
) -> Iterator[Processes]:
    """This process among those of its launch; alone without one. Inside of another, it is the same.

    device: what was asked for, ``"cpu"`` say. waiting: told after a while that others are waited for.
    Raises MissingDependencyError where a launch needs accelerate, and InvalidArgumentError if the processes
    cannot find each other.
    """
    known = _joined.get()
    if known is not None or not launched():
        yield known or Processes()
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise MissingDependencyError("several processes need accelerate; install nextscale[accel]") from None
    on_cpu = place(device or "auto").device.type == "cpu"
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    others = (
        f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: waiting for the other processes at {where}; {_REMEDY}"
    )
    timer = threading.Timer(WAITING, waiting, [others])
    timer.daemon = True
    timer.start()
    try:
        state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        PartialState._reset_state()  # it would take itself for complete the next time
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidArgumentError(
            f"the processes of this launch do not find each other at {where} ({reason}); {_REMEDY}"
        ) from None
    finally:
        timer.cancel()
    own = str(state.device) if device in (None, "auto", state.device.type) else device
    token = _joined.set(Processes(state.process_index, state.num_processes, own))
    try:
        yield Processes(state.process_index, state.num_processes, own)
    finally:
        _joined.reset(token)
        state.destroy_process_group()
