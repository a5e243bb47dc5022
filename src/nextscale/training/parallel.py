"""Data-parallel training: every process computes its share of each batch, and all make the same step.

A batch is cut into parts, processes times accumulation. Random decisions of a part come from (seed,
iteration, part), so two processes train as one that accumulates two parts does, up to the order of sums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.sampling.processes import Processes
from nextscale.training.wording import named

Loss = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Team:
    """The processes of a training run, as one of them sees it.

    accumulate: parts that each process cuts its share into, to save memory.
    model, state: what must be the same everywhere: weights, and what upkeep remembers.
    """

    processes: Processes
    accumulate: int
    model: nn.Module
    state: Mapping[str, Tensor]

    def check(self, batch_size: int) -> None:
        """Raises InvalidArgumentError for a batch with fewer examples than parts."""
        parts = self.processes.count * self.accumulate
        if batch_size < parts:
            raise InvalidArgumentError(
                f"a batch of {batch_size} cannot be cut into {parts} parts ({self.processes.count} "
                f"processes, {self.accumulate} each); use a larger {named('batch_size')}"
            )

    def begin(self, step: int) -> None:
        """Everybody begins with the main process's weights.

        Raises CheckpointError if processes found different checkpoints.
        """
        if self.processes.count == 1:
            return
        theirs = torch.tensor(float(step), device=self._device)
        self.processes.share([theirs])
        if int(theirs) != step:
            raise CheckpointError(
                f"this process would go on from step {step}, the main process from {int(theirs)}; the output "
                f"folder must be the same for all"
            )
        with torch.no_grad():
            self.processes.share([*self.model.parameters(), *self.model.buffers(), *self.state.values()])

    def parts(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The number and the rows of each part of a batch that is ours."""
        cut = rows.tensor_split(self.processes.count * self.accumulate)
        first = self.processes.rank * self.accumulate
        yield from ((i, cut[i]) for i in range(first, first + self.accumulate))

    def backward(
        self, rows: Tensor, seed: int, loss_of: Loss, stop: bool
    ) -> tuple[Tensor, dict[str, Tensor], bool]:
        """Gradients of the whole batch, the same in all processes.

        seed: of the iteration. loss_of: rows to their mean loss and what to log.
        stop: whether this process was asked to.
        Returns the loss of the whole batch, what to log of our last part, and whether any was asked to stop.
        """
        before = {name: value.clone() for name, value in self.state.items()}
        total, metrics = torch.zeros((), device=self._device), dict[str, Tensor]()
        for number, part in self.parts(rows):
            torch.manual_seed(part_seed(seed, number))
            loss, metrics = loss_of(part)
            weighted = loss * (len(part) / len(rows)) if len(part) != len(rows) else loss
            weighted.backward()
            total += weighted.detach()
        alone = self.processes.count == 1
        return total, metrics, stop if alone else self._meet(before, total, stop)

    def _meet(self, before: Mapping[str, Tensor], total: Tensor, stop: bool) -> bool:
        """Add up gradients, losses and what upkeep remembers; whether anybody was asked to stop."""
        votes = torch.tensor(float(stop), device=self._device)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for p in parameters:
            if p.grad is None:  # unused in this part; sums need the same shapes everywhere
                p.grad = torch.zeros_like(p)
        self.processes.add_up([*(p.grad for p in parameters if p.grad is not None), total, votes])
        gained = {name: value - before[name] for name, value in self.state.items()}
        self.processes.add_up(list(gained.values()))
        for name, value in self.state.items():
            value.copy_(before[name] + gained[name])
        # Batch statistics follow the examples a process saw; what they are on average is what counts.
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.processes.average([b for m in norms for b in (m.running_mean, m.running_var) if b is not None])
        return bool(votes > 0)

    def after_step(self, upkeep: Callable[[], None]) -> None:
        """Upkeep of the main process; what it changed is changed everywhere."""
        if self.processes.count == 1:
            upkeep()
            return
        if not self.state:  # a task that remembers nothing has no upkeep
            return
        tensors = [*self.model.parameters(), *self.model.buffers(), *self.state.values()]
        versions = [t._version for t in tensors]
        if self.processes.is_main:
            upkeep()
        changed = torch.tensor(float(versions != [t._version for t in tensors]), device=self._device)
        self.processes.share([changed])
        if changed:
            with torch.no_grad():
                self.processes.share(tensors)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def part_seed(seed: int, part: int) -> int:
    """The seed of the random decisions of one part of an iteration's batch, below 2^32.

    A hash, since torch's generator on the CPU looks at the lower 32 bits of a seed alone: whatever is added
    above them is lost, and what is added below meets other iterations.
    """
    digest = hashlib.sha256(f"{seed} {part}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
