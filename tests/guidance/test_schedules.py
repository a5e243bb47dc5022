"""Named schedules and strengths that change from step to step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance import SCHEDULES, resolve_strength, schedule_weights
from nextscale.guidance.schedules import check_strength

GRIDS = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 4))


def test_every_schedule_at_every_step():
    assert schedule_weights("constant", GRIDS) == (1.0,) * 5
    assert schedule_weights("linear", GRIDS) == (0.0, 0.25, 0.5, 0.75, 1.0)
    cosine = [0.0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1.0]
    assert schedule_weights("cosine", GRIDS) == pytest.approx(cosine, abs=1e-15)
    assert schedule_weights("bandwidth", GRIDS) == (1.0, 0.75, 0.5, 0.5, 0.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_value_per_step_for_any_number_of_steps(schedule):
    for count in range(1, 15):
        weights = schedule_weights(schedule, [(side, side) for side in range(1, count + 1)])
        assert len(weights) == count
        assert all(0.0 <= weight <= 1.0 for weight in weights)


def test_a_single_step():
    expected = {"constant": 1.0, "linear": 0.0, "cosine": 0.0, "bandwidth": 1.0}
    assert {name: schedule_weights(name, [(3, 3)])[0] for name in SCHEDULES} == expected


def test_numbers_are_shaped_and_lists_and_callables_are_taken_as_they_are():
    assert resolve_strength(2, GRIDS, schedule="linear") == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert resolve_strength([1, 2, 3, 4, 5], GRIDS) == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert resolve_strength(lambda step: step.grid[1], GRIDS) == (1.0, 2.0, 4.0, 4.0, 4.0)


@pytest.mark.parametrize(
    "values", [(1, 2, 3, 4, 5), range(1, 6), np.arange(1, 6), np.arange(1.0, 6.0), torch.arange(1, 6)]
)
def test_everything_list_like_is_a_list(values):
    resolved = resolve_strength(values, GRIDS)
    assert resolved == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert all(type(value) is float for value in resolved)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)])
def test_everything_number_like_is_a_number(value):
    assert resolve_strength(value, GRIDS) == (0.5,) * 5


def test_errors_name_what_was_found():
    with pytest.raises(InvalidArgumentError, match=r"'quadratic'.*constant, linear, cosine, bandwidth"):
        schedule_weights("quadratic", GRIDS)
    with pytest.raises(InvalidArgumentError, match=r"beta has 2 values.*5 steps"):
        resolve_strength([1, 2], GRIDS)
    with pytest.raises(InvalidArgumentError, match=r"scale\[1\].*-2"):
        resolve_strength([1, -2, 3, 4, 5], GRIDS, name="scale")
    with pytest.raises(InvalidArgumentError, match=r"beta\(step 0\).*'a'"):
        resolve_strength(lambda step: "a", GRIDS)
    with pytest.raises(InvalidArgumentError, match="already given per step"):
        resolve_strength([1, 2, 3, 4, 5], GRIDS, schedule="cosine")
    with pytest.raises(InvalidArgumentError, match="must be a number"):
        resolve_strength(object(), GRIDS)
    with pytest.raises(GridError, match=r"grids\[1\]"):
        schedule_weights("constant", [(1, 1), (0, 2)])
    with pytest.raises(GridError, match="at least one"):
        schedule_weights("constant", [])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_one_a_picture(kind):
    rows = kind([[0.5], [1.0], [0.5]])
    assert check_strength(rows, "beta") == ((0.5,), (1.0,), (0.5,))
    resolved = resolve_strength(rows, GRIDS, schedule="linear")
    assert resolved[0] == 0.0  # where all agree, one number
    assert resolved[2:] == ((0.25, 0.5, 0.25), (0.375, 0.75, 0.375), (0.5, 1.0, 0.5))
    each = resolve_strength(kind([[1.0, 2, 3, 4, 5], [1, 0, 0, 0, 5]]), GRIDS)
    assert each == (1.0, (2.0, 0.0), (3.0, 0.0), (4.0, 0.0), 5.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2], [1, 2]], r"beta\[0\] has 2 values.*5 steps"),
        ([[1] * 5, [1]], "a row for each, all with one value"),
        ([[], []], "a row for each"),
        ([[1], "1"], "a row for each"),
        ([[1], [-2]], r"beta\[1\]\[0\].*-2"),
        ([[1], [None]], r"beta\[1\]\[0\] must be a number"),
    ],
)
def test_rows_that_are_none_are_named(rows, message):
    with pytest.raises(InvalidArgumentError, match=message):
        resolve_strength(rows, GRIDS)


def test_rows_per_step_take_no_schedule():
    with pytest.raises(InvalidArgumentError, match="already given per step"):
        resolve_strength([[1, 2, 3, 4, 5]], GRIDS, schedule="cosine")
