"""Which strength and schedule of SSG suit a model: successive halving on common seeds, then a fresh look.

Half of a budget of pictures goes into the search: in every round all candidates that are left draw the same
seeds, more of them than in the round before, and the half with the lower Fréchet distance goes on. No
guidance at all is a candidate like the others. The best of many looks better than it is on the pictures it
was chosen by, so the other half of the budget compares it with no guidance on seeds that nobody has seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.comparison import Figure, Gap, arm_figures, difference
from nextscale.evaluation.comparison_report import verdict
from nextscale.evaluation.features import FeatureSpace
from nextscale.evaluation.figures import NAMES, OTHERS
from nextscale.evaluation.halving import SETS, Budget, Ranking, halve
from nextscale.evaluation.images import Advance, unheard
from nextscale.evaluation.metrics import frechet_distance, kernel_distance_subsets
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.protocol import Protocol, Rules
from nextscale.evaluation.provenance import versions
from nextscale.evaluation.reference import MeasuredReference
from nextscale.evaluation.runner import PipelineImages, draw, generated_shards
from nextscale.evaluation.shards import Shards
from nextscale.evaluation.sweep_file import SEED_STEP, label
from nextscale.evaluation.sweep_plots import title
from nextscale.families.var.pipeline import VARPipeline
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.usual import with_usual_defaults


@dataclass(frozen=True)
class Bench:
    """Where candidates are measured. protocol: that of no guidance, for any number of pictures."""

    protocol: Protocol
    pipe: VARPipeline
    space: FeatureSpace
    reference: MeasuredReference
    work: Path
    batch_size: int

    def protocol_of(self, ssg: ScaledSpatialGuidance | None, images: int, seed: int) -> Protocol:
        """The protocol of so many pictures with this guidance."""
        sampling = {**(self.protocol.sampling or {}), "ssg": None if ssg is None else ssg.to_dict()}
        rules = Rules().fitted(images, 0 if self.reference.features is None else len(self.reference.features))
        return replace(self.protocol, sampling=sampling, images=images, seed=seed, rules=rules)

    def left(self, ssg: ScaledSpatialGuidance | None, images: int, seed: int) -> int:
        """How many of these pictures have to be drawn."""
        return generated_shards(self.protocol_of(ssg, images, seed), self.work).left

    def draw(
        self, ssg: ScaledSpatialGuidance | None, images: int, seed: int, advance: Advance = unheard
    ) -> Shards:
        """Their features."""
        protocol = self.protocol_of(ssg, images, seed)
        drawn = PipelineImages(self.pipe, protocol)
        return draw(protocol, drawn, self.space, self.work, batch_size=self.batch_size, advance=advance)

    def distance(self, features: Tensor) -> float:
        """The Fréchet distance of features ``(N, d)`` from the reference."""
        return frechet_distance(Moments.of(features).gaussian(), self.gaussian).value

    @property
    def gaussian(self) -> Gaussian:
        return self.reference.statistics["features"]


# ---------------------------------------------------------------------------- the fresh comparison


@dataclass(frozen=True)
class Comparison:
    """The best candidate minus no guidance, on fresh seeds.

    images: in every set. seeds: the first of every set. figure: the name of the Fréchet distance.
    gaps: of that distance, and of what has to confirm it: the kernel and the extrapolated distance.
    """

    images: int
    seeds: tuple[int, ...]
    figure: str
    gaps: Mapping[str, Gap]

    @property
    def gap(self) -> Gap:
        """Of the Fréchet distance."""
        return self.gaps[self.figure]

    @property
    def shown(self) -> bool:
        """Whether the gain is evidence: the whole interval is below zero, all of at least three sets agree,
        and so do those of one of the other distances, which depend less on the number of pictures."""
        others = [gap for name, gap in self.gaps.items() if name != self.figure]
        confirmed = any(max(gap.per_set) < 0 for gap in others)
        gap = self.gap
        inside = gap.contains_zero is not False
        return not inside and gap.value < 0 and gap.same_sign and len(gap.per_set) >= SETS and confirmed

    def verdict(self) -> str:
        """What the comparison says, in some words, with the difference."""
        gap = self.gap
        found = f"{title(self.figure)} {gap.value:+.3g}"
        if gap.low is not None and gap.high is not None:
            found += f" ({gap.level:.0%} interval {gap.low:+.3g} to {gap.high:+.3g})"
        return f"{found}, {verdict(self.figure, self.gaps, title)}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "images_per_set": self.images,
            "seeds": list(self.seeds),
            "differences": {name: gap.to_dict() for name, gap in self.gaps.items()},
            "gain_shown": self.shown,
            "verdict": self.verdict(),
        }


def fresh_seeds(seed: int, sets: int) -> tuple[int, ...]:
    """First seeds of sets that the search from ``seed`` never draws."""
    return tuple(seed + SEED_STEP * (i + 1) for i in range(sets))


def compare(
    bench: Bench,
    winner: Sequence[Shards],
    off: Sequence[Shards],
    seeds: Sequence[int],
    *,
    replicates: int = 1000,
) -> Comparison:
    """Both arms, set by set. replicates: of the bootstrap; see :mod:`nextscale.evaluation.comparison`."""
    protocol = bench.protocol_of(None, winner[0].count, seeds[0])
    frechet = NAMES.get(bench.space.name, OTHERS)["frechet"]
    arms = [[_distances(bench, shards, protocol) for shards in arm] for arm in (winner, off)]
    gaps = {
        name: difference(*([figures[name] for figures in arm] for arm in arms), replicates=replicates)
        for name in arms[0][0]
    }
    return Comparison(protocol.images, tuple(seeds), frechet, gaps)


def _distances(bench: Bench, shards: Shards, protocol: Protocol) -> dict[str, Figure]:
    """The Fréchet distance, and what has to confirm it."""
    names, real, rules = NAMES.get(bench.space.name, OTHERS), bench.reference, protocol.rules
    wanted = (names["frechet"], f"{names['frechet']}_infinity")
    # Without the reference's features no nearest neighbours are looked for, which nobody asks about here.
    all_figures = arm_figures(shards, replace(real, features=None), protocol)
    found = {name: figure for name, figure in all_figures.items() if name in wanted}
    if real.features is not None:
        subsets = {"subsets": rules.kernel_subsets, "size": rules.kernel_size, "seed": rules.kernel_seed}
        kernel = kernel_distance_subsets(shards.tensor("features"), real.features, **subsets)
        found[names["kernel"]] = Figure(float(kernel.mean()))
    return found


# ---------------------------------------------------------------------------- search and outcome


@dataclass
class Outcome:
    """A tuning as far as it has gone.

    candidates: ``None`` is no guidance. seed: of the first picture of the search.
    rounds: of the search, in order. drawn: the features of everybody's last round.
    comparison: of the best candidate with no guidance; ``None`` if that is the best.
    """

    bench: Bench
    candidates: Sequence[ScaledSpatialGuidance | None]
    budget: Budget
    seed: int
    rounds: list[Ranking] = field(default_factory=list)
    drawn: dict[str, Shards] = field(default_factory=dict)
    comparison: Comparison | None = None

    @property
    def winner(self) -> ScaledSpatialGuidance | None:
        """The candidate that the search has left."""
        return self.candidates[self.rounds[-1].kept[0]]

    def default(self) -> ScaledSpatialGuidance:
        """What SSG without arguments should be with this model.

        A strength of 0 where no gain was shown: what nobody asked for in particular must not harm.
        """
        if self.comparison is None or not self.comparison.shown or self.winner is None:
            return ScaledSpatialGuidance(0.0)
        return self.winner

    def verdict(self) -> str:
        """In a sentence."""
        if self.comparison is None:
            return "no SSG is the best of all candidates"
        return f"{candidate_name(self.winner)}, against no SSG on fresh pictures: {self.comparison.verdict()}"

    def seconds(self) -> dict[str, float]:
        """What pictures and features took, in all runs that contributed."""
        spent = [shards.seconds() for shards in self.drawn.values()]
        return {key: sum(s[key] for s in spent) for key in ("images", "features")}

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the outcome, how it came about, and all that it rests on."""
        ranked = [
            {
                "images": r.images,
                "distances": {candidate_name(self.candidates[i]): score for i, score in r.scores.items()},
                "kept": [candidate_name(self.candidates[i]) for i in r.kept],
            }
            for r in self.rounds
        ]
        return {
            "verdict": self.verdict(),
            "default": self.default().to_dict(),
            "winner": None if self.winner is None else self.winner.to_dict(),
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "rounds": ranked,
            "candidates": {candidate_name(c): None if c is None else c.to_dict() for c in self.candidates},
            "pictures": {"search": self.budget.search, "comparison": self.budget.comparison},
            "seed": self.seed,
            "seconds": self.seconds(),
            "versions": versions(),
            "protocol": self.bench.protocol.to_dict(),
        }


def candidate_name(ssg: ScaledSpatialGuidance | None) -> str:
    """``"no SSG"``, ``"SSG 0.6 bandwidth"``."""
    if ssg is None:
        return "no SSG"
    settings, plain = ssg.to_dict(), ScaledSpatialGuidance(0.0).to_dict()
    unusual = {k: v for k, v in settings.items() if k in ("beta", "schedule") or v != plain[k]}
    return f"SSG {label(unusual)}"


Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with what is done and in how many parts; yields what hears how many of them are done."""


@contextlib.contextmanager
def unseen(_text: str, _parts: int) -> Iterator[Advance]:
    """For callers without a progress bar."""
    yield unheard


@with_usual_defaults
def tune(
    bench: Bench,
    candidates: Sequence[ScaledSpatialGuidance | None],
    budget: Budget,
    *,
    seed: int = 0,
    replicates: int = 1000,
    progress: Progress = unseen,
) -> Outcome:
    """Search, then compare the best candidate with no guidance, ``None``, which must be among them.

    seed: of the first picture of the search. replicates: of the bootstrap of the comparison.
    Stopped runs go on: features that ``bench.work`` has are not drawn again.
    """
    if None not in candidates or len(candidates) != budget.rounds[0].candidates:
        raise InvalidArgumentError(
            f"the budget is for {budget.rounds[0].candidates} candidates, no guidance (None) among them; got "
            f"{len(candidates)}"
        )
    for first in (seed, *fresh_seeds(seed, budget.sets)):
        bench.protocol_of(None, budget.images, first)  # raises for seeds that there are not, at once
    outcome = Outcome(bench, candidates, budget, seed)

    def score(alive: tuple[int, ...], images: int) -> list[float]:
        wanted = [(candidates[i], images, seed) for i in alive]
        what = f"round of {len(alive)} candidates, {images:,} pictures each"
        drawn = _draw(bench, wanted, what, progress)
        outcome.drawn |= {f"search {i}": shards for i, shards in zip(alive, drawn, strict=True)}
        return [bench.distance(shards.tensor("features")) for shards in drawn]

    outcome.rounds = halve(budget.rounds, score)
    if outcome.winner is not None:
        _compare(outcome, replicates, progress)
    return outcome


def _compare(outcome: Outcome, replicates: int, progress: Progress) -> None:
    bench, budget = outcome.bench, outcome.budget
    seeds = fresh_seeds(outcome.seed, budget.sets)
    wanted = [(arm, budget.images, seed) for arm in (outcome.winner, None) for seed in seeds]
    what = f"comparison with no SSG, {budget.images:,} pictures in every set"
    drawn = _draw(bench, wanted, what, progress)
    outcome.drawn |= {f"comparison {i}": shards for i, shards in enumerate(drawn)}
    with progress("comparing", 1) as advance:
        winner, off = drawn[: budget.sets], drawn[budget.sets :]
        outcome.comparison = compare(bench, winner, off, seeds, replicates=replicates)
        advance(1)


def _draw(
    bench: Bench,
    wanted: Sequence[tuple[ScaledSpatialGuidance | None, int, int]],
    what: str,
    progress: Progress,
) -> list[Shards]:
    left = sum(bench.left(*one) for one in wanted)
    with progress(what, max(left, 1)) as advance:
        return [bench.draw(*one, advance) for one in wanted]
