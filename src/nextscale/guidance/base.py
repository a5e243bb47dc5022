"""What guidance methods have in common, and how several of them act one after the other.

A *method* (:class:`Guidance`) is a frozen description that can be shared between calls and threads. It says
which branches of the model it needs, once, because every branch owns rows of the KV cache. For each
generation it opens a *state* (:class:`GuidanceState`), which holds what one step must remember for the next
and is closed when the generation ends, also when it ends with an exception.

A :class:`GuidanceChain` runs several methods in order and takes care of that opening and closing::

    chain = GuidanceChain((ClassifierFreeGuidance(1.5), ScaledSpatialGuidance(0.6)))
    with chain.open(grids) as guide:
        for index in range(len(grids)):
            logits, guided = guide(GuidanceStep(index, grids), {"cond": cond, "uncond": uncond})
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError

Grid = tuple[int, int]
CONDITIONAL = "cond"
UNCONDITIONAL = "uncond"


def as_grid(value: Sequence[int], name: str = "grid") -> Grid:
    """``(height, width)`` as two positive built-in integers.

    Raises:
        GridError: if it is anything else; the message says which argument and what was found.
    """
    try:
        height, width = value
        if isinstance(height, bool) or isinstance(width, bool):
            raise TypeError
        grid = operator.index(height), operator.index(width)
    except (TypeError, ValueError):
        raise GridError(f"{name} must be (height, width), two integers; got {value!r}") from None
    if grid[0] < 1 or grid[1] < 1:
        raise GridError(f"{name} must have at least one row and one column; got {grid}")
    return grid


def as_grids(values: Iterable[Sequence[int]]) -> tuple[Grid, ...]:
    """The grids of one generation, at least one.

    Raises:
        GridError: if there is none, or one is not a grid.
    """
    grids = tuple(as_grid(value, f"grids[{index}]") for index, value in enumerate(values))
    if not grids:
        raise GridError("a generation needs at least one grid; got none")
    return grids


@dataclass(frozen=True)
class GuidanceStep:
    """Where a generation stands when guidance is asked for.

    index: the step, counted from 0.
    grids: the ``(height, width)`` token grid of every step of this generation.
    positions: for a step that predicts only part of its grid, the row-major cells being predicted, an int64
        tensor ``(B, l)``; ``None`` when the logits cover the whole grid. Such partial draws leave no memory.
    """

    index: int
    grids: tuple[Grid, ...]
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < len(self.grids):
            raise InvalidArgumentError(
                f"step {self.index} is outside of a generation of {len(self.grids)} steps"
            )

    @property
    def grid(self) -> Grid:
        """The token grid of this step."""
        return self.grids[self.index]

    @property
    def num_steps(self) -> int:
        """The number of steps of the generation."""
        return len(self.grids)


class GuidanceState(Protocol):
    """One generation's memory of one method."""

    def __call__(self, step: GuidanceStep, branches: Mapping[str, Tensor]) -> Tensor:
        """Branch logits, each ``(B, l, C)`` or ``(B, l, bits, 2)``, to guided logits of the same shape and
        dtype.

        The inputs are not modified. Where the method has nothing to do, the result *is* the ``"cond"``
        tensor; otherwise it shares no memory with the inputs. Whatever is remembered is a copy, so the caller
        may overwrite both inputs and result afterwards.
        """
        ...

    def end(self) -> None:
        """Drop everything remembered. Called exactly once, whatever happened in between."""
        ...


@runtime_checkable
class Guidance(Protocol):
    """A guidance method: a frozen description, free of tensors."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The model branches whose logits this method reads, always including ``"cond"``."""
        ...

    def begin(self, grids: Sequence[Grid]) -> GuidanceState:
        """Start one generation over these grids; checks per-step settings against their number."""
        ...


class GuidedLogits(NamedTuple):
    """The two tensors a step reports.

    logits: after the branches were combined (classifier-free guidance) and before every later method.
    guided: after all methods: what is filtered and sampled from. It is the same tensor object as ``logits``
        where no later method acted on this step, so filters must not work in place if ``logits`` is still
        needed.
    """

    logits: Tensor
    guided: Tensor


class ChainState:
    """The open states of a :class:`GuidanceChain` during one generation."""

    def __init__(self, states: Sequence[GuidanceState], first_combines: bool) -> None:
        self._states = tuple(states)
        self._first_combines = first_combines

    def __call__(self, step: GuidanceStep, branches: Mapping[str, Tensor]) -> GuidedLogits:
        """Run every method on this step's branch logits, each ``(B, l, C)`` or ``(B, l, bits, 2)``.

        Raises:
            InvalidArgumentError: if a branch is missing.
        """
        combined = guided = require_branch(branches, CONDITIONAL)
        for position, state in enumerate(self._states):
            guided = state(step, branches if position == 0 else {CONDITIONAL: guided})
            if position == 0 and self._first_combines:
                combined = guided
        return GuidedLogits(combined, guided)


@dataclass(frozen=True)
class GuidanceChain:
    """Guidance methods that act one after the other on the same logits; an empty chain guides nothing.

    Only the first method may read other branches than ``"cond"``: it combines them into one tensor, which the
    others refine. ``None`` entries are dropped, so optional methods can be listed without a condition.

    Raises:
        InvalidArgumentError: if something is not a guidance method, or a later one reads further branches.
    """

    methods: tuple[Guidance, ...]

    def __init__(self, methods: Iterable[Guidance | None] = ()) -> None:
        chosen = tuple(method for method in methods if method is not None)
        for position, method in enumerate(chosen):
            if not isinstance(method, Guidance):
                raise InvalidArgumentError(
                    f"{method!r} is no guidance method: it needs `branches` and `begin(grids)`"
                )
            if position and set(method.branches) != {CONDITIONAL}:
                raise InvalidArgumentError(
                    f"{method!r} reads the branches {method.branches}; such a method must come first"
                )
        object.__setattr__(self, "methods", chosen)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches the model must compute, ``"cond"`` first."""
        names = [name for method in self.methods for name in method.branches]
        return tuple(dict.fromkeys([CONDITIONAL, *names]))

    @contextmanager
    def open(self, grids: Iterable[Sequence[int]]) -> Iterator[ChainState]:
        """Begin every method for one generation over these grids, and end all that began, whatever happens.

        Raises:
            InvalidArgumentError: if a method's per-step settings do not fit the grids.
        """
        checked = as_grids(grids)
        with ExitStack() as stack:
            states = []
            for method in self.methods:
                state = method.begin(checked)
                stack.callback(state.end)
                states.append(state)
            first_combines = bool(self.methods) and set(self.methods[0].branches) != {CONDITIONAL}
            yield ChainState(states, first_combines)


def require_branch(branches: Mapping[str, Tensor], name: str) -> Tensor:
    """The logits of one branch.

    Raises:
        InvalidArgumentError: if the model did not deliver this branch.
    """
    if name not in branches:
        raise InvalidArgumentError(
            f"guidance needs the branch {name!r}; the model delivered {sorted(branches)}"
        )
    return branches[name]


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The type arithmetic happens in: float64 if a tensor has it, else float32.

    Raises:
        InvalidArgumentError: if a tensor is not floating point.
    """
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise InvalidArgumentError(
                f"logits must be floating point, such as torch.float32; got {tensor.dtype}"
            )
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
