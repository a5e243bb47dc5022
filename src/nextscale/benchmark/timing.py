"""Timing things beside each other, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

Seconds = Mapping[str, float]
"""Seconds by phase; ``"total"`` is all of it."""


@dataclass(frozen=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "lower_quartile": self.low, "upper_quartile": self.high}


def side_by_side(
    arms: Mapping[str, Callable[[], Seconds]],
    repeats: int,
    advance: Callable[[int], None] = lambda _: None,
    *,
    warm: int = 1,
) -> dict[str, list[Seconds]]:
    """Run every arm ``warm`` times to warm up, then ``repeats`` rounds, every second one in reverse order.

    advance: hears of every run that it was one.
    """
    names = list(arms)
    for name in names * warm:
        arms[name]()
        advance(1)
    found: dict[str, list[Seconds]] = {name: [] for name in names}
    for number in range(repeats):
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(arms[name]())
            advance(1)
    return found


def spread(runs: Sequence[Seconds], phase: str = "total") -> Spread:
    """Of one arm's seconds in a phase."""
    return Spread.of([run[phase] for run in runs])


def ratio(runs: Sequence[Seconds], base: Sequence[Seconds], phase: str = "total") -> Spread:
    """Of the quotients round by round: neighbours in time share what disturbed them."""
    return Spread.of([a[phase] / b[phase] for a, b in zip(runs, base, strict=True)])
