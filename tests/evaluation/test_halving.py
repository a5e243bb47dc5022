"""How a budget is spent, and who stays."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.halving import Budget, Ranking, Round, halve, plan_budget
from nextscale.evaluation.sweep_file import SEED_STEP

candidates = st.integers(2, 40)
classes = st.sampled_from([1, 3, 10, 100, 1000])
shards = st.sampled_from([7, 20, 200])


def drawn_by_files(before: int, after: int, shard: int) -> int:
    """What is drawn to go from so many pictures to more: whole files stay, a file that was begun does not."""
    done = before if before == after else before // shard * shard
    return after - done


@given(candidates, classes, shards, st.integers(0, 300_000))
def test_a_budget_is_never_exceeded(count: int, kinds: int, shard: int, budget: int):
    try:
        plan = plan_budget(count, budget, classes=kinds, shard=shard)
    except InvalidArgumentError as error:
        least = int(str(error).split("at least ")[1].split(" or ")[0].replace(",", ""))
        assert budget < least
        assert plan_budget(count, least, classes=kinds, shard=shard).total <= least
        return
    spent, alive, before = 0, count, 0
    for this in plan.rounds:
        assert this.candidates == alive and this.images >= max(before, 2) and this.images % kinds == 0
        assert this.drawn == alive * drawn_by_files(before, this.images, shard)
        spent, alive, before = spent + this.drawn, -(-alive // 2), this.images
    assert alive == 1 and spent == plan.search <= budget // 2
    assert plan.images >= 2 and plan.images % kinds == 0 and max(plan.images, before) <= SEED_STEP
    assert plan.comparison == 6 * plan.images and plan.total <= budget


def test_a_budget_is_used():
    plan = plan_budget(9, 20_000, classes=10)
    assert plan == Budget(
        (Round(9, 200, 1800), Round(5, 600, 2000), Round(3, 1600, 3000), Round(2, 3200, 3200)), 1600, 3
    )
    # Another pair of rounds goes to one candidate more; two are decided in one round.
    assert [r.candidates for r in plan_budget(10, 20_000, classes=10).rounds] == [10, 5, 3, 2]
    assert len(plan_budget(2, 1000, classes=10).rounds) == 1
    with pytest.raises(InvalidArgumentError, match="nothing to choose from: 1 candidate"):
        plan_budget(1, 1000, classes=10)
    with pytest.raises(
        InvalidArgumentError, match="100 pictures are too few for 9 candidates and 10 classes"
    ):
        plan_budget(9, 100, classes=10)


@given(candidates, st.data())
def test_who_is_clearly_better_stays(count: int, data: st.DataObject):
    """Whatever noise there is: a candidate that is better by more than it in every round wins."""
    best = data.draw(st.integers(0, count - 1))
    noise = st.floats(-1, 1, allow_nan=False)
    asked: list[tuple[tuple[int, ...], int]] = []

    def score(alive: tuple[int, ...], images: int) -> Sequence[float]:
        asked.append((alive, images))
        return [data.draw(noise) + (0 if i == best else 2.001) for i in alive]

    plan = plan_budget(count, 100_000, classes=10)
    history = halve(plan.rounds, score)
    assert history[-1].kept == (best,)
    assert [(tuple(r.scores), r.images) for r in history] == asked
    assert [len(alive) for alive, _ in asked] == [r.candidates for r in plan.rounds]
    assert [r.images for r in plan.rounds] == [images for _, images in asked]


@given(st.lists(st.floats(-5, 5, allow_nan=False), min_size=2, max_size=30))
def test_without_noise_the_best_wins_and_the_first_of_equals(scores: list[float]):
    rounds = plan_budget(len(scores), 100_000, classes=1).rounds
    history = halve(rounds, lambda alive, _: [scores[i] for i in alive])
    assert history[-1].kept == (scores.index(min(scores)),)
    for ranking in history:
        out = set(ranking.scores) - set(ranking.kept)
        assert max(scores[i] for i in ranking.kept) <= min(scores[i] for i in out)


def test_rankings_say_how_it_went():
    rounds = [Round(3, 10, 30), Round(2, 20, 20)]
    table = {(0, 10): 3.0, (1, 10): 1.0, (2, 10): 2.0, (1, 20): 5.0, (2, 20): 4.0}
    history = halve(rounds, lambda alive, images: [table[i, images] for i in alive])
    assert history == [
        Ranking(10, {0: 3.0, 1: 1.0, 2: 2.0}, (1, 2)),
        Ranking(20, {1: 5.0, 2: 4.0}, (2,)),
    ]
