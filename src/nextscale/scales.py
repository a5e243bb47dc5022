"""The grid of tokens that a next-scale model predicts at every step.

A schedule is a plain value: no torch, cheap to compare, hash, print and store. Everything that depends on
"which positions belong to which step" (offsets, masks, guidance operators, decoding) is derived from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from nextscale.errors import GridError
from nextscale.whole import as_whole

Grid = tuple[int, int]


@dataclass(frozen=True)
class ScaleSchedule:
    """The ``(height, width)`` token grid of every step, coarse to fine.

    >>> schedule = ScaleSchedule.from_sides([1, 2, 4])
    >>> schedule.num_steps, schedule.num_tokens, schedule.offsets
    (3, 21, (0, 1, 5, 21))
    """

    grids: tuple[Grid, ...]

    def __post_init__(self) -> None:
        if not self.grids:
            raise GridError("a scale schedule needs at least one grid, got none")
        grids = tuple(_grid(g) for g in self.grids)
        for k, (coarse, fine) in enumerate(zip(grids, grids[1:], strict=False), start=1):
            if fine[0] < coarse[0] or fine[1] < coarse[1]:
                raise GridError(
                    f"grids must not shrink from one step to the next, but step {k} is {fine} after {coarse}"
                )
        object.__setattr__(self, "grids", grids)

    @classmethod
    def from_sides(cls, sides: Iterable[int | Grid]) -> ScaleSchedule:
        """From ``patch_nums``: the side of a square grid per step, or ``(height, width)`` pairs."""
        given: Iterable[Any] = sides
        return cls(tuple(_grid((s, s) if as_whole(s) is not None else s) for s in given))

    @classmethod
    def preset(cls, name: str) -> ScaleSchedule:
        """A published schedule by name; the names are the keys of :data:`PRESETS`."""
        try:
            return cls.from_sides(PRESETS[name])
        except KeyError:
            raise GridError(f"unknown scale schedule {name!r}; known: {', '.join(PRESETS)}") from None

    @property
    def num_steps(self) -> int:
        return len(self.grids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per step."""
        return tuple(h * w for h, w in self.grids)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each step starts in the flattened sequence, and the total at the end."""
        return tuple(accumulate(self.lengths, initial=0))

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def final(self) -> Grid:
        """The finest grid, which is the size of the latent."""
        return self.grids[-1]

    @property
    def sides(self) -> list[int | Grid]:
        """The inverse of :meth:`from_sides`: numbers for square grids, pairs for others."""
        return [h if h == w else (h, w) for h, w in self.grids]

    def span(self, step: int) -> slice:
        """The positions of one step in the flattened sequence of all steps."""
        offsets = self.offsets
        return slice(offsets[step], offsets[step + 1])

    def position(self, step: int) -> float:
        """Relative position of a step, ``k / (K - 1)``: 0 at the first step and 1 at the last."""
        return step / (self.num_steps - 1) if self.num_steps > 1 else 0.0

    def __iter__(self) -> Iterator[Grid]:
        return iter(self.grids)

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, step: int) -> Grid:
        return self.grids[step]

    def __str__(self) -> str:
        return " ".join(f"{h}x{w}" for h, w in self.grids)


def _grid(value: Sequence[int]) -> Grid:
    try:
        h, w = map(as_whole, value)
    except (TypeError, ValueError):
        h = w = None
    if h is None or w is None or min(h, w) < 1:
        raise GridError(f"a grid is a pair of positive whole numbers (height, width), got {value!r}")
    return (h, w)


# Published `patch_nums` lists (VAR) and the one of the embedded model.
PRESETS: MappingProxyType[str, tuple[int, ...]] = MappingProxyType(
    {
        "var-256": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        "var-512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
        "var-1024": (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
        "cifar10": (1, 2, 3, 4, 6, 8),
    }
)
