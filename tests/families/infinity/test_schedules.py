"""The published schedules, entry by entry, and what users may write for them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity.schedules import (
    BUDGETS,
    TEMPLATES,
    image_size,
    nearest_template,
    parse_aspect_ratio,
    parse_budget,
    released,
    rope_reference,
    schedule_for,
    snap,
)


@pytest.fixture(scope="module")
def table(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "infinity" / "infinity_schedules.json").read_text())


def test_every_entry_of_the_published_table(table: dict[str, Any]):
    assert list(TEMPLATES) == table["h_div_w_templates"]
    entries = {
        (float(ratio), budget): entry
        for ratio, by_budget in table["schedules"].items()
        for budget, entry in by_budget.items()
    }
    assert len(entries) == len(TEMPLATES) * len(BUDGETS) == 60
    assert released().keys() == entries.keys()
    for key, entry in entries.items():
        schedule = released()[key]
        assert [list(grid) for grid in schedule] == entry["scales"]
        assert schedule.num_tokens == entry["tokens"]
        assert list(image_size(schedule)) == entry["image_size"]
        assert schedule_for(*key) == schedule


def test_positions_refer_to_the_full_budget_of_the_same_ratio():
    for (ratio, _), schedule in released().items():
        assert rope_reference(schedule.final) == released()[ratio, "1M"].final
    assert rope_reference((8, 8)) == (64, 64)
    assert rope_reference((8, 16)) == (45, 90)


def test_the_nearest_template_and_ties():
    for template in TEMPLATES:
        assert nearest_template(template) == template
    assert nearest_template(1.125) == 1.0  # as far from 1.25, which comes later
    assert nearest_template(2.25) == 2.0
    assert nearest_template(0.45) == 0.5
    assert nearest_template(0.01) == 0.333
    assert nearest_template(50) == 3.0


@given(st.floats(0.01, 100))
def test_no_template_is_nearer(ratio: float):
    differences = [abs(t - ratio) for t in TEMPLATES]
    assert TEMPLATES.index(nearest_template(ratio)) == differences.index(min(differences))


@pytest.mark.parametrize("ratio", [0, -1.0, math.nan, math.inf, True, "1"])
def test_what_is_no_ratio(ratio: Any):
    with pytest.raises(InvalidArgumentError, match="height / width must be a positive number, got"):
        nearest_template(ratio)


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [
        ("1:1", 1.0),
        ("16:9", 0.571),
        ("9:16", 1.75),
        ("4:3", 0.75),
        ("3:4", 1.333),
        ("3:2", 0.666),
        ("2:3", 1.5),
        ("21:9", 0.4),
        ("1.85:1", 0.571),
        ("3:1", 0.333),
        ("1:3", 3.0),
        (" 16 : 9 ", 0.571),
        ("0.571", 0.571),
        ("1.333", 1.333),
        (1, 1.0),
        (1.5, 1.5),
        (2 / 3, 0.666),
        (3.2, 3.0),
    ],
)
def test_aspect_ratios_as_people_write_them(aspect: Any, expected: float):
    assert parse_aspect_ratio(aspect) == expected


@pytest.mark.parametrize(
    "aspect",
    ["wide", "16:9:1", "16/9", "", ":", "0:1", "1:0", "-1:1", "nan", "32:9", 0, -2, 4.0, True, None, [1]],
)
def test_unknown_aspect_ratios(aspect: Any):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_aspect_ratio(aspect)
    message = str(caught.value)
    assert f"unknown aspect ratio {aspect!r}; write WIDTH:HEIGHT between 3:1 and 1:3" in message
    assert message.endswith("0.333, 0.4, 0.5, 0.571, 0.666, 0.75, 0.8, 1, 1.25, 1.333, 1.5, 1.75, 2, 2.5, 3")


def test_budgets_as_people_write_them():
    for budget in BUDGETS:
        assert parse_budget(budget) == budget
    assert parse_budget("0.6M") == parse_budget("0.60m") == "0.60M"
    assert parse_budget("1.0M") == "1M"
    for wrong in ("2M", "1", "M", "", "oneM", 1, None):
        with pytest.raises(
            InvalidArgumentError, match=r"unknown pixel budget .*; known: 0.06M, 0.25M, 0.60M, 1M"
        ):
            parse_budget(wrong)


def test_released_sizes_snap_to_themselves():
    for schedule in released().values():
        assert snap(*image_size(schedule)) == (schedule, image_size(schedule))


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        ((1000, 1000), (1024, 1024)),
        ((1080, 1920), (768, 1344)),
        ((1920, 1080), (1344, 768)),
        ((500, 520), (512, 512)),
        ((100, 100), (256, 256)),
        ((768.0, 780.5), (768, 768)),
        ((300, 10000), (592, 1776)),
    ],
)
def test_any_size_snaps(wanted: tuple[float, float], size: tuple[int, int]):
    assert snap(*wanted).size == size


@given(st.floats(16, 4096), st.floats(16, 4096))
def test_snapping_turns_with_the_picture(height: float, width: float):
    """Height and width are alike, except where two shapes are equally near."""

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(height / width))

    found, turned = snap(height, width).size, snap(width, height).size
    assert distance(found) == pytest.approx(distance(turned[::-1]), abs=1e-12)


@given(st.floats(16, 4096), st.sampled_from(TEMPLATES))
def test_snapping_keeps_a_published_shape(height: float, template: float):
    h, w = image_size(released()[template, "1M"])
    size = snap(height, height * w / h).size
    assert size[0] * w == size[1] * h


def test_snapping_among_some_budgets():
    assert snap(1024, 1024, ["0.25M"]).size == (512, 512)
    assert snap(1024, 1024, ["0.06M", "0.6M"]).size == (768, 768)
    with pytest.raises(InvalidArgumentError, match="unknown pixel budget '3M'"):
        snap(1024, 1024, ["3M"])
    with pytest.raises(InvalidArgumentError, match="budgets is empty"):
        snap(1024, 1024, [])


@pytest.mark.parametrize(
    ("size", "name"), [((0, 5), "height"), ((5, -1), "width"), ((5, math.inf), "width"), (("5", 5), "height")]
)
def test_sizes_that_are_none(size: Any, name: str):
    with pytest.raises(InvalidArgumentError, match=f"{name} must be a positive number of pixels, got"):
        snap(*size)
