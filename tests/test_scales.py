from __future__ import annotations

import dataclasses
import pickle

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.scales import PRESETS, ScaleSchedule


@st.composite
def schedules(draw: st.DrawFn) -> ScaleSchedule:
    growth = st.tuples(st.integers(0, 5), st.integers(0, 5))
    h, w = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    grids = [(h, w)]
    for dh, dw in draw(st.lists(growth, max_size=11)):
        h, w = h + dh, w + dw
        grids.append((h, w))
    return ScaleSchedule(tuple(grids))


def test_square_sides():
    schedule = ScaleSchedule.from_sides([1, 2, 4])
    assert schedule.grids == ((1, 1), (2, 2), (4, 4))
    assert schedule.num_steps == len(schedule) == 3
    assert schedule.lengths == (1, 4, 16)
    assert schedule.offsets == (0, 1, 5, 21)
    assert schedule.num_tokens == 21
    assert schedule.final == (4, 4)
    assert schedule.sides == [1, 2, 4]
    assert [schedule.span(k) for k in range(3)] == [slice(0, 1), slice(1, 5), slice(5, 21)]
    assert [schedule.position(k) for k in range(3)] == [0.0, 0.5, 1.0]
    assert str(schedule) == "1x1 2x2 4x4"
    assert schedule[1] == (2, 2)
    assert schedule[-1] == (4, 4)


def test_other_aspect_ratios():
    schedule = ScaleSchedule.from_sides([1, (1, 2), (2, 4)])
    assert schedule.grids == ((1, 1), (1, 2), (2, 4))
    assert schedule.lengths == (1, 2, 8)
    assert schedule.sides == [1, (1, 2), (2, 4)]
    assert str(schedule) == "1x1 1x2 2x4"


def test_lists_as_read_from_json():
    assert ScaleSchedule.from_sides([1, [2, 3]]) == ScaleSchedule.from_sides([1, (2, 3)])
    from_lists = ScaleSchedule(([1, 1], [2, 3]))  # type: ignore[arg-type]
    assert from_lists.grids == ((1, 1), (2, 3))
    assert hash(from_lists) == hash(ScaleSchedule(((1, 1), (2, 3))))


def test_any_iterable_makes_a_schedule():
    assert ScaleSchedule.from_sides(side for side in (1, 2, 3)).sides == [1, 2, 3]


def test_one_step():
    schedule = ScaleSchedule.from_sides([3])
    assert schedule.offsets == (0, 9)
    assert schedule.position(0) == 0.0


def test_equal_neighbours_are_allowed():
    assert ScaleSchedule.from_sides([2, 2, 3]).lengths == (4, 4, 9)


def test_is_a_plain_value():
    schedule = ScaleSchedule.preset("var-256")
    assert schedule == ScaleSchedule.from_sides(schedule.sides)
    assert schedule != ScaleSchedule.preset("var-512")
    assert len({schedule, ScaleSchedule.preset("var-256")}) == 1
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert eval(repr(schedule)) == schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.grids = ()  # type: ignore[misc]


@given(schedules())
def test_spans_cut_the_sequence_into_steps(schedule: ScaleSchedule):
    sequence = list(range(schedule.num_tokens))
    parts = [sequence[schedule.span(k)] for k in range(schedule.num_steps)]
    assert [token for part in parts for token in part] == sequence
    assert [len(part) for part in parts] == [h * w for h, w in schedule] == list(schedule.lengths)


@given(schedules())
def test_offsets_add_up(schedule: ScaleSchedule):
    offsets = schedule.offsets
    assert offsets[0] == 0
    assert offsets[-1] == schedule.num_tokens == sum(schedule.lengths)
    assert len(offsets) == schedule.num_steps + 1
    assert all(b - a == n for a, b, n in zip(offsets, offsets[1:], schedule.lengths, strict=False))


@given(schedules())
def test_sides_are_the_inverse_of_from_sides(schedule: ScaleSchedule):
    assert ScaleSchedule.from_sides(schedule.sides) == schedule
    assert all(isinstance(side, int) or side[0] != side[1] for side in schedule.sides)


@given(schedules())
def test_positions_rise_from_zero_to_one(schedule: ScaleSchedule):
    positions = [schedule.position(k) for k in range(schedule.num_steps)]
    assert positions == sorted(positions)
    assert positions[0] == 0.0
    assert positions[-1] == (1.0 if schedule.num_steps > 1 else 0.0)


@given(schedules(), st.integers(0, 11), st.booleans())
def test_shrinking_is_refused(schedule: ScaleSchedule, step: int, along_height: bool):
    step %= schedule.num_steps
    h, w = schedule[step]
    smaller = (h - 1, w) if along_height else (h, w - 1)
    assume(0 not in smaller)
    with pytest.raises(GridError, match=f"step {step + 1} is ") as caught:
        ScaleSchedule((*schedule.grids[: step + 1], smaller))
    assert str(smaller) in str(caught.value)
    assert str((h, w)) in str(caught.value)


@pytest.mark.parametrize(
    "grid",
    [(0, 1), (1, -2), (1.0, 2), ("1", 2), (True, 2), (1,), (1, 2, 3), None, 4, "ab", object()],
)
def test_what_is_not_a_grid(grid: object):
    with pytest.raises(GridError, match="pair of positive whole numbers") as caught:
        ScaleSchedule((grid,))  # type: ignore[arg-type]
    assert repr(grid) in str(caught.value)


@pytest.mark.parametrize("side", [0, -1, True, 2.0, "2", None, (2, 0)])
def test_what_is_not_a_side(side: object):
    with pytest.raises(GridError):
        ScaleSchedule.from_sides([side])  # type: ignore[list-item]


def test_no_steps():
    with pytest.raises(GridError, match="at least one grid"):
        ScaleSchedule(())
    with pytest.raises(GridError, match="at least one grid"):
        ScaleSchedule.from_sides([])


@pytest.mark.parametrize("step", [3, 99])
def test_a_step_that_does_not_exist(step: int):
    schedule = ScaleSchedule.from_sides([1, 2, 3])
    with pytest.raises(IndexError):
        schedule[step]
    with pytest.raises(IndexError):
        schedule.span(step)


@pytest.mark.parametrize(
    ("name", "steps", "tokens", "final"),
    [
        ("var-256", 10, 680, (16, 16)),
        ("var-512", 10, 2240, (32, 32)),
        ("var-1024", 14, 9451, (64, 64)),
    ],
)
def test_published_schedules(name: str, steps: int, tokens: int, final: tuple[int, int]):
    schedule = ScaleSchedule.preset(name)
    assert (schedule.num_steps, schedule.num_tokens, schedule.final) == (steps, tokens, final)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_starts_with_one_token_and_grows(name: str):
    schedule = ScaleSchedule.preset(name)
    assert schedule.grids[0] == (1, 1)
    assert list(schedule.lengths) == sorted(set(schedule.lengths))
    assert schedule.sides == list(PRESETS[name])


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(GridError, match=r"unknown scale schedule 'var-128'; known: .*var-256") as caught:
        ScaleSchedule.preset("var-128")
    assert isinstance(caught.value, InvalidArgumentError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__suppress_context__


def test_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        PRESETS["var-256"] = (1,)  # type: ignore[index]
