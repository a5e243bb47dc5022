from __future__ import annotations

import pytest

from nextscale.benchmark.timing import Spread, ratio, side_by_side, spread


def test_every_second_round_is_in_reverse_and_the_first_runs_do_not_count() -> None:
    order: list[str] = []
    heard: list[int] = []

    def arm(name: str):
        def run() -> dict[str, float]:
            order.append(name)
            return {"total": float(len(order))}

        return run

    found = side_by_side({name: arm(name) for name in "abc"}, 3, heard.append)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert heard == [1] * 12
    assert [run["total"] for run in found["a"]] == [4, 9, 10]


def test_ratios_are_of_the_same_round() -> None:
    base = [{"total": 1.0, "decoder": 0.5}, {"total": 10.0, "decoder": 5.0}, {"total": 2.0, "decoder": 1.0}]
    double = [{phase: 2 * seconds for phase, seconds in run.items()} for run in base]
    assert ratio(double, base) == Spread(2.0, 2.0, 2.0)
    assert spread(base, "decoder").median == 1.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], (3.0, 3.0, 3.0)), ([1.0, 3.0], (2.0, 1.5, 2.5)), ([5.0, 1.0, 3.0], (3.0, 2.0, 4.0))],
)
def test_a_spread_is_the_median_with_the_quartiles(values: list[float], expected: tuple[float, ...]) -> None:
    found = Spread.of(values)
    assert (found.median, found.low, found.high) == expected
    assert found.to_dict() == dict(zip(("median", "lower_quartile", "upper_quartile"), expected, strict=True))
