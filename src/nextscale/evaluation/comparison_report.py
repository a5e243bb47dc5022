"""A comparison of arms for people and for machines: a JSON file, tables, and what it says in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.evaluation.comparison import Figure, Gap
from nextscale.evaluation.figures import NAMES, OTHERS
from nextscale.evaluation.files import write_json, write_text
from nextscale.evaluation.protocol import Protocol
from nextscale.evaluation.provenance import versions
from nextscale.evaluation.report import TITLES, Row, compared_with, is_better_higher, markdown, plain


@dataclass(frozen=True)
class ArmResult:
    """One arm: its protocol in every set, its figures there, and what drawing them took, in seconds."""

    protocols: Sequence[Protocol]
    figures: Sequence[Mapping[str, Figure]]
    seconds: Sequence[Mapping[str, float]]

    def mean(self, figure: str) -> float:
        """Over the sets."""
        return sum(f[figure].value for f in self.figures) / len(self.figures)

    @property
    def images_per_second(self) -> float:
        drawn = sum(p.images for p in self.protocols)
        return drawn / max(sum(s["images"] for s in self.seconds), 1e-9)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ssg": (self.protocols[0].sampling or {}).get("ssg"),
            "scores": {name: self.mean(name) for name in self.figures[0]},
            "scores_per_set": {n: [f[n].value for f in self.figures] for n in self.figures[0]},
            "images_per_second": self.images_per_second,
            "seconds": [dict(s) for s in self.seconds],
            "protocol_hashes": [p.hash for p in self.protocols],
        }


@dataclass(frozen=True)
class Comparison:
    """Arms by name, the one without SSG first, and the differences of the others to it.

    device: where pictures were drawn. heading: model and settings, in words.
    """

    arms: Mapping[str, ArmResult]
    gaps: Mapping[str, Mapping[str, Gap]]
    replicates: int
    device: str
    heading: str

    @property
    def _first(self) -> tuple[str, ArmResult]:
        return next(iter(self.arms.items()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        name, base = self._first
        protocol = base.protocols[0]
        differences = {
            arm: {f: {**gap.to_dict(), "verdict": verdict(f, gaps)} for f, gap in gaps.items()}
            for arm, gaps in self.gaps.items()
        }
        return {
            "images": protocol.images,
            "images_per_class": protocol.per_class,
            "seeds": [p.seed for p in base.protocols],
            "arms": {arm: result.to_dict() for arm, result in self.arms.items()},
            "against": name,
            "differences": differences,
            "replicates": self.replicates,
            "ruler_hash": protocol.ruler,
            "device": self.device,
            "versions": versions(),
            "protocol": protocol.to_dict(),
        }

    def table(self, arm: str) -> list[Row]:
        """Rows of a table of one arm beside the first, the first row its head."""
        name, base = self._first
        gaps, result = self.gaps[arm], self.arms[arm]
        level = next(iter(gaps.values())).level
        head = ("", name, arm, "difference", f"{level:.0%} interval")
        body = [
            (
                title(figure),
                number(figure, base.mean(figure)),
                number(figure, result.mean(figure)),
                number(figure, gap.value, signed=True),
                _interval(figure, gap),
            )
            for figure, gap in gaps.items()
        ]
        cost = ("pictures per second", *(f"{r.images_per_second:.3g}" for r in (base, result)), "", "")
        return [head, *body, cost]

    def verdicts(self, arm: str) -> list[str]:
        """A line for every figure."""
        gaps = self.gaps[arm]
        return [f"{_spoken(figure)}: {verdict(figure, gaps, _spoken)}" for figure in gaps]

    def conditions(self) -> list[str]:
        """What differences must not be shown without."""
        _, base = self._first
        protocol = base.protocols[0]
        seeds = ", ".join(str(p.seed) for p in base.protocols)
        against = compared_with(protocol.reference)
        sets = f"{len(base.protocols)} set" + ("s" if len(base.protocols) > 1 else "")
        spent = sum(sum(s.values()) for result in self.arms.values() for s in result.seconds)
        return [
            f"{sets} of {protocol.images:,} pictures an arm, from seeds {seeds}; "
            f"features {protocol.features['name']}, {against}",
            f"bootstrap over pictures within each set, {self.replicates:,} replicates; of 20 figures that do "
            f"not differ, one is outside of its interval by chance",
            f"drawing and features took {spent:.0f} seconds in all; {self.device}",
            f"comparable with results of ruler {protocol.ruler[:12]}",
        ]

    def lines(self) -> Iterable[str]:
        """For a terminal."""
        yield self.heading
        for arm in self.gaps:
            yield from plain(self.table(arm))
            yield from self.verdicts(arm)
        yield from self.conditions()

    def write(self, path: Path) -> None:
        """Write a .json, and the tables as .md beside it."""
        lines = [f"# {self.heading}"]
        for arm in self.gaps:
            lines += ["", f"## {arm} minus {self._first[0]}", "", *markdown(self.table(arm)), ""]
            lines += [f"- {line}" for line in self.verdicts(arm)]
        lines += ["", *(f"- {line}" for line in self.conditions())]
        write_json(path, self.to_dict())
        write_text(path.with_suffix(".md"), "\n".join(lines) + "\n")


def title(figure: str) -> str:
    """A figure in a table."""
    if figure.endswith("_infinity"):
        return f"{title(figure.removesuffix('_infinity'))}, N → ∞"
    return "recognised" if figure == "accuracy" else TITLES.get(figure, figure)


def _spoken(figure: str) -> str:
    """A figure in a sentence."""
    return title(figure).replace(" × 1000", "")


def number(figure: str, value: float, *, signed: bool = False) -> str:
    """A figure, or a difference of it, as tables have it."""
    sign = "+" if signed else ""
    if figure.endswith(("kid", "kd")):
        return f"{1000 * value:{sign}.3f}"
    if figure == "accuracy":
        return f"{100 * value:{sign}.2f} %"
    return (
        f"{value:{sign}.4f}"
        if figure in ("precision", "recall", "density", "coverage")
        else f"{value:{sign}.3f}"
    )


def _interval(figure: str, gap: Gap) -> str:
    if gap.low is None or gap.high is None:
        return "none"
    return f"{number(figure, gap.low, signed=True)} to {number(figure, gap.high, signed=True)}"


# ---------------------------------------------------------------------------- in plain words


def verdict(figure: str, gaps: Mapping[str, Gap], naming: Callable[[str], str] = str) -> str:
    """What a difference says, in some words, never more than it does.

    A difference is evidence if zero is outside of its interval and all of at least three sets agree, and for
    a Fréchet distance, whose bias can turn the sign of a small one, if the kernel distance or the
    extrapolated distance says the same in all sets. naming: figures as they are called in a sentence.
    """
    gap = gaps[figure]
    if gap.contains_zero is None:
        return _without_interval(figure, gap)
    if gap.contains_zero:
        return "zero is inside the interval: no difference shown"
    words = "higher" if gap.value > 0 else "lower"
    words += ", better" if (gap.value > 0) == is_better_higher(figure) else ", worse"
    sets = len(gap.per_set)
    if not gap.same_sign:
        return f"{words}, but the {sets} seed sets do not agree: not evidence"
    if sets < 3:
        return f"{words} in {sets} seed set{'s' if sets > 1 else ''}; evidence takes three"
    if figure in _CONFIRMED_BY:
        others = [name for name in _CONFIRMED_BY[figure] if name in gaps]
        agree = [n for n in others if gaps[n].same_sign and (gaps[n].value > 0) == (gap.value > 0)]
        if not agree:
            asked = " or ".join(map(naming, others)) or "any other distance"
            return f"{words}, but not confirmed by {asked} in all seed sets: not evidence"
        words += f" in all {sets} seed sets; {' and '.join(map(naming, agree))}"
        return f"{words} agree{'s' if len(agree) == 1 else ''}"
    return f"{words} in all {sets} seed sets"


def _without_interval(figure: str, gap: Gap) -> str:
    if len(gap.per_set) < 2 or figure not in _CONFIRMED_BY:
        low, high = min(gap.per_set), max(gap.per_set)
        return f"no interval; seed sets from {low:+.3g} to {high:+.3g}"
    return "no interval: needs more pictures than features have dimensions"


_CONFIRMED_BY = {
    names["frechet"]: (f"{names['frechet']}_infinity", names["kernel"]) for names in (*NAMES.values(), OTHERS)
}
