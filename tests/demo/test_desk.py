"""What a visitor's actions lead to, without a page around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nextscale.cli import pictures
from nextscale.demo.controls import NAMES
from nextscale.demo.desk import Desk, View
from nextscale.demo.visits import Visit
from nextscale.errors import InvalidArgumentError


@pytest.fixture
def visit(desk: Desk) -> Visit:
    return desk.visits.of("somebody")


def arrive(desk: Desk, visit: Visit, model: Path, query: str = "") -> dict[str, Any]:
    """Open a link; the values of all controls then."""
    changes = desk.arrive(visit, f"?model={model}{query}")
    return {name: changes[name]["value"] for name in NAMES}


def draw(desk: Desk, visit: Visit) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for news in desk.draw(visit, visit.job, True, View()):
        changes |= news
    return changes


def test_controls_and_settings_are_the_same_thing(desk: Desk, visit: Visit, model: Path):
    values = arrive(desk, visit, model, "&label=ship&count=2&seed=4&ssg=0.3&ssg-schedule=linear&norm=forward")
    job = visit.job
    drawn = draw(desk, visit)
    # What the page shows is nothing new; that it was drawn is what there is to say.
    assert desk.change(visit, values, draw=True) == {"status": drawn["status"], "problem": ""}
    changed = desk.change(visit, {**values, "seed": "9, 7"}, draw=True)
    assert changed["job"] == visit.job != job and "seed=9,7" in visit.job
    beta = {**values["beta"], "schedule": "per step", "curve": [0, 0.1, 0.2, 0.3, 0.4, 0.5]}
    desk.change(visit, {**values, "beta": beta}, draw=True)
    assert "ssg=0,0.1,0.2,0.3,0.4,0.5" in visit.job and "ssg-schedule" not in visit.job
    waiting = desk.change(visit, {**values, "count": 1}, draw=False)
    assert "job" not in waiting and "Press Draw" in waiting["status"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "/etc"}, "unknown model"),
        ({"model": None}, "model is a text"),
        ({"classes": []}, "nothing to draw"),
        ({"classes": "ship"}, "nothing to draw"),
        ({"classes": ["ship"] * 9}, "9 classes or prompts"),
        ({"classes": [{"a": 1}]}, "a class or prompt is a text"),
        ({"count": 1e9}, "count is a whole number"),
        ({"seed": "-1"}, "seed is a whole number"),
        ({"seed": ""}, "seed is a whole number"),
        ({"seed": None}, "seed is a number"),
        ({"beta": None}, "the β editor sent None"),
        ({"beta": {"beta": "x", "schedule": "constant"}}, "ssg is a number"),
        ({"beta": {"beta": 1, "schedule": "wild"}}, "unknown ssg-schedule"),
        ({"beta": {"schedule": "per step", "curve": [0.1] * 5}}, "one value per step"),
        ({"beta": {"schedule": "per step", "curve": [[0.1]] * 6}}, "ssg is a number"),
        ({"prior": "magic"}, "unknown prior"),
        ({"guidance_scale": 51}, "from 0 to 50"),
        ({"temperature": -1}, "from 0.01"),
    ],
)
def test_controls_are_not_believed(
    desk: Desk, visit: Visit, model: Path, change: dict[str, Any], message: str
):
    values = arrive(desk, visit, model)
    with pytest.raises(InvalidArgumentError, match=message):
        desk.change(visit, {**values, **change}, draw=True)


def test_only_the_newest_is_drawn_and_cancelling_counts_while_waiting(desk: Desk, visit: Visit, model: Path):
    values = arrive(desk, visit, model)
    old = visit.job
    desk.change(visit, {**values, "seed": "5"}, draw=True)
    assert list(desk.draw(visit, old, True, View())) == []
    desk.cancel(visit)
    (only,) = desk.draw(visit, visit.job, True, View())
    assert "Cancelled" in only["status"] and visit.shown is None
    left = desk.change(visit, {**values, "seed": "5"}, draw=True)  # a field is left: nobody wants it again
    assert "job" not in left and "Cancelled" in left["status"]
    again = desk.change(visit, {**values, "seed": "5"}, draw=True, pressed=True)
    assert "job" in again and "link" in draw(desk, visit)


def test_files_hold_the_picture_that_is_chosen(desk: Desk, visit: Visit, model: Path):
    arrive(desk, visit, model, "&label=ship&label=cat&count=1&seed=3&ssg=0.5")
    draw(desk, visit)
    changes = desk.pick(visit, 1, View())
    file = Path(changes["save_guided"]["value"])
    assert file.name == "0001-cat-seed4-ssg-0.5.png"
    stored = pictures.read_settings(file)
    assert stored["seeds"] == [4] and stored["batch"]["index"] == 1 and stored["batch"]["seeds"] == [3, 4]
    other = desk.visits.of("another")
    opened = desk.open(other, str(file))
    assert opened["job"].partition("#")[0] == visit.job.partition("#")[0] and other.chosen == 1
    for index in (2, -1, "x", None):
        with pytest.raises(InvalidArgumentError):
            desk.pick(visit, index, View())
    bad = file.with_name("bad.png")
    bad.write_bytes(b"no picture")
    with pytest.raises(InvalidArgumentError, match="cannot be read as a picture"):
        desk.open(other, str(bad))


def test_the_strip_begins_without_guidance_and_holds_the_current_strength(
    desk: Desk, visit: Visit, model: Path
):
    arrive(desk, visit, model, "&label=ship&count=2&seed=3&ssg=0.35")
    draw(desk, visit)
    *steps, last = desk.draw_strip(visit)
    names = [name for name, _, _ in visit.strip]
    assert names == ["β 0", "β 0.2", "β 0.35", "β 0.4", "β 0.6", "β 0.8", "β 1", "β 1.5", "β 2"]
    found = {name: [i.tobytes() for i in images] for name, _, images in visit.strip}
    assert found["β 0"] == [i.tobytes() for i in visit.shown.plain.images]
    assert found["β 0.35"] == [i.tobytes() for i in visit.shown.guided.images]
    assert 'data-beta="0.35" aria-pressed="true"' in last["strip"] and steps
    assert "ssg=1.5" in desk.take_strength(visit, "1.5")["job"]

    arrive(desk, visit, model, "&label=ship&count=1&seed=3&ssg=0,0.1,0.2,0.3,0.4,0.5")
    draw(desk, visit)
    *_, last = desk.draw_strip(visit)
    names = [name for name, _, _ in visit.strip]
    assert names == ["× 0", "× 0.2", "× 0.4", "× 0.6", "× 0.8", "× 1", "× 1.5", "× 2"]
    assert (
        'data-beta="0,0.1,0.2,0.3,0.4,0.5" title="β 0, 0.1, 0.2, 0.3, 0.4, 0.5" aria-pressed="true"'
        in (last["strip"])
    )
    found = {name: [i.tobytes() for i in images] for name, _, images in visit.strip}
    assert found["× 0"] == [i.tobytes() for i in visit.shown.plain.images]
    assert found["× 1"] == [i.tobytes() for i in visit.shown.guided.images]
    value = {name: value for name, value, _ in visit.strip}["× 1.5"]
    taken = desk.take_strength(visit, value)
    assert taken["beta"]["value"]["curve"] == [0, 0.15, 0.3, 0.45, 0.6, 0.75]
    assert taken["beta"]["value"]["schedule"] == "per step" and "ssg=0,0.15,0.3,0.45,0.6,0.75" in taken["job"]
    draw(desk, visit)
    assert [i.tobytes() for i in visit.shown.guided.images] == found["× 1.5"]


def test_nothing_can_be_done_with_what_is_not_there(desk: Desk, visit: Visit):
    for act in (
        lambda: desk.pick(visit, 0, View()),
        lambda: desk.difference(visit, View()),
        lambda: list(desk.draw_strip(visit)),
        lambda: desk.take_strength(visit, 1),
    ):
        with pytest.raises(InvalidArgumentError, match="nothing has been drawn"):
            act()
    with pytest.raises(InvalidArgumentError):
        desk.recall(visit, 0)
    with pytest.raises(InvalidArgumentError, match="times as strong"):
        View.read("signed", 3)


def test_switching_models_keeps_the_seeds(desk: Desk, visit: Visit, text_model: Path, model: Path):
    arrive(desk, visit, model, "&label=ship&count=2&seed=3")
    changes = desk.switch(visit, str(text_model), 2, "3")
    assert changes["classes"]["visible"] is False and changes["prompts"]["visible"] is True
    assert "seed=3" in changes["job"] and changes["beta"]["value"]["steps"] == ["1×1", "2×2", "4×4", "8×8"]
    with pytest.raises(InvalidArgumentError, match="unknown model"):
        desk.switch(visit, "/etc", 1, "0")
