"""Comparing arms: figures as evaluate has them, intervals that hold, words that say no more than is so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from nextscale import VARPipeline
from nextscale.errors import InvalidArgumentError
from nextscale.evaluation import comparison as module
from nextscale.evaluation.comparison import (
    Figure,
    Gap,
    RealSide,
    arm_figures,
    compare,
    difference,
    plan_arms,
    student_quantile,
)
from nextscale.evaluation.comparison_report import ArmResult, Comparison, verdict
from nextscale.evaluation.features import FeatureSpace, open_space
from nextscale.evaluation.figures import measure
from nextscale.evaluation.metrics import kernel_distance
from nextscale.evaluation.moments import Moments
from nextscale.evaluation.protocol import Protocol, Rules
from nextscale.evaluation.reference import MeasuredReference
from nextscale.evaluation.runner import PipelineImages, draw, plan
from nextscale.guidance.ssg import ScaledSpatialGuidance


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return open_space("cifar10-classifier", device="cpu")


def rows(count: int, dims: int, seed: int) -> Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))


def reference_of(features: Tensor) -> MeasuredReference:
    return MeasuredReference({"features": Moments.of(features).gaussian()}, features)


class Rows:
    """Shards that hold one tensor."""

    def __init__(self, features: Tensor) -> None:
        self.features, self.count = features, len(features)

    def tensor(self, key: str) -> Tensor:
        return {"features": self.features}[key]

    def has(self, key: str) -> bool:
        return key == "features"


def protocol(count: int, **more: Any) -> Protocol:
    model = {"name": "m", "family": "var", "sha256": "0"}
    settings: dict[str, Any] = {"sampling": {"ssg": None}, "rules": Rules(smallest=2), **more}
    return Protocol(count, (32, 32), model, {"name": "pixels"}, **settings)


def figures_of(features: Tensor, reference: MeasuredReference, **more: Any) -> dict[str, Figure]:
    return arm_figures(Rows(features), reference, protocol(len(features), **more))  # type: ignore[arg-type]


def test_arms_differ_in_ssg_and_sets_in_their_seeds():
    arms = [None, ScaledSpatialGuidance(0.3), ScaledSpatialGuidance(0.6)]
    planned = plan_arms(replace(protocol(50), seed=7), arms, 3)
    assert [[p.seed for p in sets] for sets in planned] == [[7, 1_000_007, 2_000_007]] * 3
    assert [sets[0].sampling["ssg"] and sets[0].sampling["ssg"]["beta"] for sets in planned] == [
        None,
        0.3,
        0.6,
    ]
    assert len({p.ruler for sets in planned for p in sets}) == 1
    assert len({p.hash for sets in planned for p in sets}) == 9
    with pytest.raises(InvalidArgumentError, match="cannot be kept apart"):
        plan_arms(protocol(1_000_001), arms, 2)
    assert len(plan_arms(protocol(1_000_001), arms, 1)[0]) == 1
    with pytest.raises(InvalidArgumentError, match="a file of samples has one arm"):
        plan_arms(replace(protocol(5), sampling=None), arms, 1)


def test_figures_are_those_of_evaluate(
    pipe: VARPipeline, space: FeatureSpace, pictures: Tensor, tmp_path: Path
):
    made = plan(pipe, 200, space, None, arguments={"ssg": 0.5})
    made = replace(made, rules=replace(made.rules, kernel_size=100, kernel_subsets=1))
    shards = draw(made, PipelineImages(pipe, made), space, tmp_path, batch_size=50)
    reference = reference_of(space(pictures)["features"])
    found, wanted = arm_figures(shards, reference, made), measure(shards, reference, made).scores
    assert {"fd", "kd", "precision", "recall", "density", "coverage", "classifier_score", "accuracy"} == set(
        found
    )
    for name in set(found) - {"kd", "classifier_score"}:
        assert found[name].value == pytest.approx(wanted[name]), name
    features = shards.tensor("features")
    assert found["kd"].value == pytest.approx(kernel_distance(features, reference.features))
    again = arm_figures(shards, reference, made, real=RealSide.of(reference, made))
    assert {n: f.value for n, f in again.items()} == {n: f.value for n, f in found.items()}
    one_block = measure(shards, reference, made).details["classifier_score_one_block"]
    assert found["classifier_score"].value == pytest.approx(one_block)
    for name, figure in found.items():
        if figure.rows is not None and name != "fd":
            assert figure.statistic(figure.rows.double()) == pytest.approx(figure.value), name
    without = arm_figures(shards, None, made)
    assert set(without) == {"classifier_score", "accuracy"} and RealSide.of(None, made) is None


def test_equal_arms_differ_by_nothing():
    found = figures_of(rows(60, 4, 0), reference_of(rows(80, 4, 1)))
    gaps = compare({"off": [found], "on": [found]}, replicates=20)["on"]
    assert set(gaps) == {"fd", "kd", "precision", "recall", "density", "coverage"}
    for gap in gaps.values():
        assert (gap.value, gap.low, gap.high, gap.contains_zero, gap.same_sign) == (0, 0, 0, True, False)


def test_a_worse_arm_is_found_in_every_figure():
    reference = reference_of(rows(300, 3, 0))
    base = [figures_of(rows(250, 3, s), reference) for s in (1, 2, 3)]
    worse = [figures_of(1.6 * rows(250, 3, s), reference) for s in (1, 2, 3)]
    gaps = compare({"off": base, "on": worse}, replicates=60)["on"]
    assert gaps["fd"].low > 0 and gaps["kd"].low > 0 and gaps["precision"].high < 0
    assert len(gaps["fd"].per_set) == 3
    assert gaps["fd"].value == pytest.approx(sum(gaps["fd"].per_set) / 3)
    assert {gaps[n].method for n in ("fd", "kd", "precision", "density")} == {"bootstrap"}
    assert {gaps[n].method for n in ("recall", "coverage")} == {"jackknife, reference"}
    assert verdict("fd", gaps) == "higher, worse in all 3 seed sets; kd agrees"
    assert verdict("precision", gaps) == "lower, worse in all 3 seed sets"


def test_the_jackknife_says_what_the_bootstrap_says(monkeypatch: pytest.MonkeyPatch):
    reference = reference_of(rows(300, 4, 0))
    arms = [[f * rows(400, 4, s) for s in (1, 2, 3)] for f in (1.0, 1.25)]

    def gap() -> Gap:
        figures = [[{"fd": figures_of(x, reference)["fd"]} for x in arm] for arm in arms]
        return compare({"off": figures[0], "on": figures[1]}, replicates=300)["on"]["fd"]

    bootstrap = gap()
    monkeypatch.setattr(module, "MOST_DIMENSIONS", 3)
    jackknife = gap()
    assert (bootstrap.method, jackknife.method) == ("bootstrap", "jackknife")
    assert jackknife.value == pytest.approx(bootstrap.value)
    widths = [g.high - g.low for g in (bootstrap, jackknife)]
    assert 0.6 < widths[1] / widths[0] < 1.6


def test_few_pictures_have_no_interval():
    found = figures_of(rows(6, 8, 0), reference_of(rows(40, 8, 1)))
    other = figures_of(rows(6, 8, 2), reference_of(rows(40, 8, 1)))
    gaps = compare({"off": [found] * 2, "on": [other] * 2}, replicates=20)["on"]
    assert gaps["fd"].low is None and gaps["fd"].contains_zero is None
    assert verdict("fd", gaps) == "no interval: needs more pictures than features have dimensions"
    assert "fd_infinity" not in gaps
    smallest = Rules(smallest=20)
    more = figures_of(rows(60, 8, 3), reference_of(rows(40, 8, 1)), rules=smallest)
    assert more["fd_infinity"].rows is None


def test_intervals_contain_the_true_difference():
    """Of arms that do not differ in truth, zero is inside about as often as it should be."""
    names = ("precision", "recall", "density", "coverage", "kd")
    inside = dict.fromkeys(names, 0)
    for trial in range(50):
        reference = reference_of(rows(100, 3, 1000 * trial))
        settings = protocol(80)
        side = RealSide.of(reference, settings)
        arms: dict[str, list[dict[str, Figure]]] = {"off": [], "on": []}
        for number, sets in enumerate(arms.values(), 1):
            for i in range(2):
                made = Rows(rows(80, 3, 1000 * trial + 10 * number + i))
                sets.append(arm_figures(made, reference, settings, real=side))  # type: ignore[arg-type]
        for name in names:
            sides = ([figures[name] for figures in sets] for sets in arms.values())
            inside[name] += bool(difference(*sides, replicates=80, seed=trial).contains_zero)
    # 95 % of 50 is 47.5, with a standard deviation of 1.5.
    assert min(inside.values()) >= 42, inside


@pytest.mark.parametrize("freedom", [9, 18, 27, 200])
def test_students_quantiles(freedom: int):
    assert student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)
    assert student_quantile(0.5, freedom) == 0


# ---------------------------------------------------------------------------- words and files


def gap(value: float, low: float | None, high: float | None, per_set: tuple[float, ...] = ()) -> Gap:
    return Gap(value, per_set or (value,) * 3, 0.95, "bootstrap", low, high)


def test_words_say_no_more_than_is_so():
    clear = {"precision": gap(0.1, 0.05, 0.15), "fd": gap(-0.2, -0.3, -0.1)}
    assert verdict("precision", clear) == "higher, better in all 3 seed sets"
    assert verdict("precision", {"precision": gap(0.1, -0.05, 0.25)}) == (
        "zero is inside the interval: no difference shown"
    )
    torn = {"precision": gap(0.1, 0.05, 0.15, (0.3, 0.1, -0.1))}
    assert verdict("precision", torn) == "higher, better, but the 3 seed sets do not agree: not evidence"
    assert verdict("accuracy", {"accuracy": gap(-0.1, -0.2, -0.05, (-0.1, -0.1))}) == (
        "lower, worse in 2 seed sets; evidence takes three"
    )
    # A Fréchet distance alone is not enough: its bias can turn the sign of a small difference.
    assert verdict("fd", clear) == (
        "lower, better, but not confirmed by any other distance in all seed sets: not evidence"
    )
    against = {**clear, "kd": gap(0.1, 0.05, 0.2), "fd_infinity": gap(-0.1, None, None, (0.1, -0.2, -0.2))}
    assert "not confirmed by fd_infinity or kd in all seed sets: not evidence" in verdict("fd", against)
    agreeing = {**against, "fd_infinity": gap(-0.1, None, None)}
    assert verdict("fd", agreeing) == "lower, better in all 3 seed sets; fd_infinity agrees"
    both = {**agreeing, "kd": gap(-0.01, -0.02, -0.005)}
    assert verdict("fd", both, str.upper) == "lower, better in all 3 seed sets; FD_INFINITY and KD agree"
    assert verdict("fd_infinity", against) == "no interval; seed sets from -0.2 to +0.1"


def test_the_report_has_everything(tmp_path: Path):
    reference = reference_of(rows(60, 3, 0))
    planned = plan_arms(protocol(50), [None, ScaledSpatialGuidance(0.6)], 2)
    arms = {
        name: ArmResult(
            sets,
            [figures_of(scale * rows(50, 3, s), reference) for s in (1, 2)],
            [{"images": 5.0, "features": 1.0}] * 2,
        )
        for name, sets, scale in zip(("no SSG", "SSG 0.6"), planned, (1.0, 1.4), strict=True)
    }
    gaps = compare({name: arm.figures for name, arm in arms.items()}, replicates=30)
    result = Comparison(arms, gaps, 30, "cpu", "tiny · CFG 4")
    result.write(tmp_path / "c.json")
    stored = json.loads((tmp_path / "c.json").read_text())
    assert stored["seeds"] == [0, 1_000_000] and stored["images"] == 50 and stored["against"] == "no SSG"
    assert stored["arms"]["SSG 0.6"]["ssg"]["beta"] == 0.6 and stored["arms"]["no SSG"]["ssg"] is None
    found = stored["differences"]["SSG 0.6"]["fd"]
    scores = [stored["arms"][name]["scores_per_set"]["fd"] for name in ("SSG 0.6", "no SSG")]
    assert found["per_set"] == pytest.approx([a - b for a, b in zip(*scores, strict=True)])
    assert found["low"] < found["value"] < found["high"] and found["verdict"]
    assert stored["arms"]["no SSG"]["images_per_second"] == 10
    lines, text = list(result.lines()), (tmp_path / "c.md").read_text()
    assert lines[0] == "tiny · CFG 4" and "95% interval" in lines[1]
    assert any(line.startswith("FD: ") for line in lines) and "× 1000:" not in "\n".join(lines)
    assert "## SSG 0.6 minus no SSG" in text and "| precision |" in text and "- KD: " in text
    assert math.isclose(arms["no SSG"].mean("fd"), sum(scores[1]) / 2)


def test_arms_that_do_not_belong_together():
    with pytest.raises(InvalidArgumentError, match="the same seed sets, got 1 and 2"):
        difference([Figure(1.0)], [Figure(1.0)] * 2)
