"""Which of the processes of a launch this one is: asked of accelerate, which torchrun and its own launcher
feed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nextscale.errors import InvalidArgumentError, MissingDependencyError
from nextscale.nn.placement import place


@dataclass(frozen=True)
class Processes:
    """A process among ``count``. rank: its number, from 0. device: what the launcher gave it; ``None``
    without.
    """

    rank: int = 0
    count: int = 1
    device: str | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that talks to people."""
        return self.rank == 0


def launched() -> bool:
    """Whether a launcher (``accelerate launch``, ``torchrun``) started this process as one of several."""
    count = os.environ.get("WORLD_SIZE", "1")
    if not count.isdecimal():
        raise InvalidArgumentError(f"WORLD_SIZE is {count!r}; it is set by accelerate launch or torchrun")
    return int(count) > 1


@contextmanager
def joined(device: str | None = None) -> Iterator[Processes]:
    """This process among those of its launch; alone without one.

    device: what was asked for, ``"cpu"`` say. Raises MissingDependencyError where a launch needs accelerate.
    """
    if not launched():
        yield Processes()
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise MissingDependencyError("several processes need accelerate; install nextscale[accel]") from None
    state = PartialState(cpu=place(device or "auto").device.type == "cpu")
    own = str(state.device) if device in (None, "auto", state.device.type) else device
    try:
        yield Processes(state.process_index, state.num_processes, own)
    finally:
        state.destroy_process_group()
