"""Successive halving: how a budget of pictures is spent on candidates, and who goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.shards import SHARD
from nextscale.evaluation.sweep_file import SEED_STEP

SETS = 3  # of fresh seeds; differences must agree in all of them


@dataclass(frozen=True)
class Round:
    """candidates: how many draw in it. images: that each has at its end. drawn: by all of them, in it."""

    candidates: int
    images: int
    drawn: int


@dataclass(frozen=True)
class Budget:
    """How a number of pictures is spent.

    rounds: of the search. images: of every arm in every fresh set. sets: how many of those.
    """

    rounds: tuple[Round, ...]
    images: int
    sets: int

    @property
    def search(self) -> int:
        """Pictures drawn to find the best candidate."""
        return sum(r.drawn for r in self.rounds)

    @property
    def comparison(self) -> int:
        """Pictures drawn to compare it with no guidance."""
        return 2 * self.sets * self.images

    @property
    def total(self) -> int:
        """Pictures drawn at most; fewer if no guidance at all turns out best."""
        return self.search + self.comparison


def plan_budget(
    candidates: int, budget: int, *, classes: int, sets: int = SETS, shard: int = SHARD
) -> Budget:
    """Spend at most ``budget`` pictures: half on the search, half on the comparison.

    candidates: with no guidance among them. classes: every class gets as many pictures. shard: pictures per
        file of features; files that were begun are drawn again, which is counted, and avoided if possible.
    Raises InvalidArgumentError, naming the least budget, if there are too few pictures for every class.
    """
    if candidates < 2:
        raise InvalidArgumentError(f"there is nothing to choose from: {candidates} candidate")
    sizes = [candidates]
    while sizes[-1] > 2:
        sizes.append(-(-sizes[-1] // 2))
    # Each of the first round needs a picture of every class, and so do both arms of every fresh set.
    least = max(classes, 2)
    needed = 2 * max(len(sizes) * candidates * least, 2 * sets * least)
    if budget < needed:
        raise InvalidArgumentError(
            f"{budget:,} pictures are too few for {candidates} candidates and {classes} classes; give at "
            f"least {needed:,} or fewer candidates"
        )
    left, images, rounds = budget // 2, 0, []
    for index, size in enumerate(sizes):
        share = left // (len(sizes) - index) // size
        more = max(_whole(share + images - images % shard, classes, shard), images)
        drawn = 0 if more == images else size * (more - images + images % shard)
        rounds.append(Round(size, more, drawn))
        left, images = left - drawn, more
    each = _whole((budget - budget // 2) // (2 * sets), classes, shard)
    return Budget(tuple(rounds), each, sets)


def _whole(images: int, classes: int, shard: int) -> int:
    """At most so many, as many of every class, and whole files where that loses no more than half.

    Further seeds than those of one set are none of the search's, see :func:`fresh_seeds`.
    """
    images, common = min(images, SEED_STEP), math.lcm(classes, shard)
    return images // common * common if images >= common else images // classes * classes


@dataclass(frozen=True)
class Ranking:
    """One round as it went. scores: of the candidates in it, by their numbers. kept: which went on."""

    images: int
    scores: dict[int, float]
    kept: tuple[int, ...]


def halve(rounds: Sequence[Round], score: Callable[[tuple[int, ...], int], Sequence[float]]) -> list[Ranking]:
    """Successive halving: of all candidates that are left, those with the lower scores go on.

    score: gets the numbers of the candidates, counted from 0, and how many pictures each has, and returns a
        number for each. Of equal ones the first is better. The last round keeps one.
    """
    alive = tuple(range(rounds[0].candidates))
    history = []
    for index, this in enumerate(rounds):
        scores = dict(zip(alive, score(alive, this.images), strict=True))
        keep = rounds[index + 1].candidates if index + 1 < len(rounds) else 1
        best = sorted(alive, key=scores.__getitem__)[:keep]
        alive = tuple(sorted(best))
        history.append(Ranking(this.images, scores, alive))
    return history
