"""Tuning: candidates on common seeds, a fresh comparison, and what becomes the default."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import VARPipeline
from nextscale.errors import InvalidArgumentError
from nextscale.evaluation import shards as shards_module
from nextscale.evaluation.comparison import Gap
from nextscale.evaluation.features import FeatureSpace
from nextscale.evaluation.halving import Budget, Ranking, Round, plan_budget
from nextscale.evaluation.moments import Moments
from nextscale.evaluation.reference import MeasuredReference
from nextscale.evaluation.runner import PipelineImages, plan
from nextscale.evaluation.tuning import Bench, Comparison, Outcome, candidate_name, fresh_seeds, tune
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.training.transformer import init_transformer

STRONG = ScaledSpatialGuidance(20.0)
OFF_AND_TWO = [None, ScaledSpatialGuidance(0.5), STRONG]


class FewFeatures(FeatureSpace):
    """Mean and spread of every channel: a space of six dimensions."""

    name = "means"

    def description(self) -> dict[str, Any]:
        return {"name": self.name}

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        flat = images.float().flatten(2)
        return {"features": torch.cat([flat.mean(2), flat.std(2)], 1)}


@pytest.fixture(scope="module")
def pipe(pipe: VARPipeline) -> VARPipeline:
    """Surer of its tokens than the usual one, so that a strong guidance shows."""
    torch.manual_seed(0)
    sure = copy.deepcopy(pipe)
    init_transformer(sure.transformer, gate=1.0, modulation=1.0, head=15.0)
    return sure


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "SHARD", 20)


def bench(pipe: VARPipeline, work: Path, *, like: ScaledSpatialGuidance | None = None) -> Bench:
    """The reference is what the pipeline draws with ``like``, from seeds of its own."""
    space = FewFeatures()
    protocol = plan(pipe, 50, space)
    blank = Bench(protocol, pipe, space, MeasuredReference({}, None), work, 20)
    images = PipelineImages(pipe, blank.protocol_of(like, 200, 90_000_000))
    features = space(torch.cat([images.read(i, i + 50) for i in range(0, 200, 50)]))["features"]
    return replace(
        blank, reference=MeasuredReference({"features": Moments.of(features).gaussian()}, features)
    )


def small_budget(candidates: int, budget: int = 1000) -> Budget:
    return plan_budget(candidates, budget, classes=10, shard=20)


@pytest.fixture
def heard() -> Any:
    """A progress that notes what it hears."""

    class Heard:
        def __init__(self) -> None:
            self.parts: list[tuple[str, int, int]] = []

        @contextmanager
        def __call__(self, text: str, parts: int) -> Iterator[Any]:
            done: list[int] = []
            yield done.append
            self.parts.append((text, parts, sum(done)))

        @property
        def drawn(self) -> int:
            return sum(done for text, _, done in self.parts if text != "comparing")

    return Heard()


def test_it_finds_what_the_reference_was_made_with(pipe: VARPipeline, tmp_path: Path, heard: Any):
    budget = small_budget(3)
    outcome = tune(bench(pipe, tmp_path, like=STRONG), OFF_AND_TWO, budget, replicates=100, progress=heard)
    assert outcome.winner == STRONG == outcome.default()
    assert outcome.comparison is not None and outcome.comparison.shown
    gap = outcome.comparison.gap
    assert gap.high is not None and gap.value < gap.high < 0 and gap.method == "bootstrap"
    assert "lower, better in all 3 seed sets" in outcome.verdict()
    assert heard.drawn == budget.total <= 1000  # no more is drawn than was planned
    assert all(done <= max(parts, 1) for _, parts, done in heard.parts)
    stored = json.loads(json.dumps(outcome.to_dict()))
    assert stored["winner"] == STRONG.to_dict() and stored["comparison"]["gain_shown"] is True
    assert stored["rounds"][-1]["kept"] == ["SSG 20 constant"] and stored["candidates"]["no SSG"] is None
    assert stored["pictures"] == {"search": budget.search, "comparison": budget.comparison}
    assert stored["seconds"]["images"] > 0 and stored["comparison"]["seeds"] == list(fresh_seeds(0, 3))


def test_where_no_guidance_is_best_the_default_changes_nothing(pipe: VARPipeline, tmp_path: Path, heard: Any):
    candidates = [None, ScaledSpatialGuidance(5.0), STRONG]
    budget = small_budget(3)
    outcome = tune(bench(pipe, tmp_path), candidates, budget, progress=heard)
    assert outcome.winner is None and outcome.comparison is None
    assert outcome.default() == ScaledSpatialGuidance(0.0)
    assert outcome.verdict() == "no SSG is the best of all candidates"
    assert heard.drawn == budget.search
    plain, default = (pipe([3], seed=1, ssg=s, output_type="pt").images for s in (None, outcome.default()))
    assert torch.equal(plain, default)


def test_a_stopped_tuning_goes_on_and_ends_the_same(pipe: VARPipeline, tmp_path: Path, heard: Any):
    budget, made = small_budget(3), {"like": STRONG}
    whole = tune(bench(pipe, tmp_path / "whole", **made), OFF_AND_TWO, budget, replicates=50)
    stopped = bench(pipe, tmp_path / "stopped", **made)

    @contextmanager
    def stop(text: str, parts: int) -> Iterator[Any]:
        if text.startswith("comparison"):
            raise KeyboardInterrupt
        yield lambda _: None

    with pytest.raises(KeyboardInterrupt):
        tune(stopped, OFF_AND_TWO, budget, replicates=50, progress=stop)
    resumed = tune(stopped, OFF_AND_TWO, budget, replicates=50, progress=heard)
    assert heard.drawn == budget.comparison
    untimed = [{k: v for k, v in o.to_dict().items() if k != "seconds"} for o in (whole, resumed)]
    assert untimed[0] == untimed[1]


def test_rounds_draw_the_same_seeds(pipe: VARPipeline, tmp_path: Path):
    at = bench(pipe, tmp_path)
    first, longer = (at.draw(None, n, 0).tensor("features") for n in (20, 40))
    assert torch.equal(longer[:20], first)
    assert at.left(None, 60, 0) == 20 and at.left(OFF_AND_TWO[1], 60, 0) == 60
    a, b = (at.protocol_of(ssg, 40, 7) for ssg in OFF_AND_TWO[:2])
    assert a.seed == b.seed == 7 and a.ruler == b.ruler and a.hash != b.hash


def test_the_budget_must_be_for_these_candidates(pipe: VARPipeline, tmp_path: Path):
    at = bench(pipe, tmp_path)
    for wrong in (OFF_AND_TWO[:2], [OFF_AND_TWO[1]] * 3):
        with pytest.raises(InvalidArgumentError, match=r"for 3 candidates, no guidance \(None\) among them"):
            tune(at, wrong, small_budget(3))
    with pytest.raises(InvalidArgumentError, match="seeds are from 0 up to"):
        tune(at, OFF_AND_TWO, small_budget(3), seed=2**64 - 2_000_000)


def outcome_of(gaps: dict[str, Gap]) -> Outcome:
    comparison = Comparison(100, (1, 2, 3), "fd", gaps)
    budget = Budget((Round(2, 10, 20),), 100, 3)
    rounds = [Ranking(10, {0: 2.0, 1: 1.0}, (1,))]
    return Outcome(None, [None, ScaledSpatialGuidance(0.5)], budget, 0, rounds, {}, comparison)  # type: ignore[arg-type]


def gap(*per_set: float, half: float | None = 0.1) -> Gap:
    value = sum(per_set) / len(per_set)
    if half is None:
        return Gap(value, per_set, 0.95)
    return Gap(value, per_set, 0.95, "bootstrap", value - half, value + half)


@pytest.mark.parametrize(
    ("gaps", "shown", "words"),
    [
        ({"fd": gap(-1, -2, -3), "kd": gap(-1, -1, -1, half=None)}, True, "lower, better in all 3 seed sets"),
        ({"fd": gap(-1, -2, -3), "fd_infinity": gap(-1, -1, -1, half=None)}, True, "lower, better in all 3"),
        ({"fd": gap(-1, -2, -3), "kd": gap(-1, -1, 1, half=None)}, False, "not confirmed by KD"),
        ({"fd": gap(-1, -2, -3)}, False, "not confirmed by"),
        ({"fd": gap(-1, -2, -3, half=9), "kd": gap(-1, -1, -1, half=None)}, False, "zero is inside"),
        ({"fd": gap(-3, -3, 1), "kd": gap(-1, -1, -1, half=None)}, False, "do not agree"),
        ({"fd": gap(-1, -2), "kd": gap(-1, -1, half=None)}, False, "evidence takes three"),
        ({"fd": gap(1, 2, 3), "kd": gap(1, 1, 1, half=None)}, False, "higher, worse"),
        ({"fd": gap(-1, -2, -3, half=None), "kd": gap(-1, -1, -1, half=None)}, False, "no interval"),
    ],
)
def test_only_evidence_becomes_a_default(gaps: dict[str, Gap], shown: bool, words: str):
    outcome = outcome_of(gaps)
    assert outcome.comparison is not None and outcome.comparison.shown is shown
    assert outcome.default() == (outcome.winner if shown else ScaledSpatialGuidance(0.0))
    assert outcome.verdict().startswith("SSG 0.5 constant, against no SSG on fresh pictures: FD ")
    assert words in outcome.verdict()


def test_names():
    assert candidate_name(None) == "no SSG"
    assert candidate_name(ScaledSpatialGuidance(0.6)) == "SSG 0.6 constant"
    full = ScaledSpatialGuidance([0, 1, 2], prior="dct", norm="forward", remember="guided", start=2)
    assert candidate_name(full) == "SSG 0/1/2 constant, dct prior, forward norm, remembers guided, start 2"
