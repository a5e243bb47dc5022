"""What the page says, and when it draws of its own accord, without a page around it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nextscale.cli import pictures
from nextscale.demo.controls import NAMES
from nextscale.demo.desk import Desk, View
from nextscale.demo.models import Shelf
from nextscale.demo.visits import Visit
from nextscale.errors import InvalidArgumentError
from nextscale.generation.noise import VERSION


@pytest.fixture
def visit(desk: Desk) -> Visit:
    return desk.visits.of("somebody")


def values_of(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: changes[name]["value"] for name in NAMES}


def draw(desk: Desk, visit: Visit, *, frames: bool = True) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for news in desk.draw(visit, visit.job, frames, View()):
        changes |= news
    return changes


def drawn(desk: Desk, visit: Visit, model: Path, query: str = "&label=ship&count=1&seed=3&ssg=0.5"):
    """A page with pictures; the values of its controls, and what it says."""
    values = values_of(desk.arrive(visit, f"?model={model}{query}"))
    return values, draw(desk, visit)["status"]


def save(desk: Desk, visit: Visit, folder: Path, **changes: Any) -> Path:
    """The guided picture of the page as a file, with some settings changed; ``None`` takes one away."""
    arm = visit.shown.guided
    stored = {**pictures.single_settings(arm.settings, 0, 1), **changes}
    file = folder / 'it\'s a "ship".png'
    pictures.save_png(arm.images[0], file, {n: v for n, v in stored.items() if v is not None})
    return file


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": "seven"}, "seed is a whole number"),
        ({"seed": "7 3"}, "2 seeds for 1 picture|seeds"),
        ({"classes": []}, "nothing to draw; give a class"),
        ({"classes": ["ship", "unicorn"]}, "unknown class 'unicorn'"),
        ({"temperature": 0}, "temperature is a number"),
        ({"count": 99}, "count is a whole number"),
        ({"top_p": "a"}, "top-p is a number"),
        ({"beta": {"beta": "", "schedule": "constant"}}, "ssg is a number"),
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_a_wrong_value_that_is_mended_clears_its_message(
    desk: Desk, visit: Visit, model: Path, wrong: dict[str, Any], message: str, live: bool
):
    values, said = drawn(desk, visit, model)
    with pytest.raises(InvalidArgumentError, match=message):
        desk.change(visit, {**values, **wrong}, draw=live)
    assert desk.change(visit, values, draw=live) == {"status": said, "problem": ""}  # as it was
    other = desk.change(visit, {**values, "seed": "4"}, draw=live)  # or something else that can be drawn
    assert other["problem"] == "" and ("job" in other) is live


def test_what_the_model_refuses_stays_said_until_it_is_mended(desk: Desk, visit: Visit, model: Path):
    values, _ = drawn(desk, visit, model)
    desk.change(visit, {**values, "top_k": 65}, draw=True)
    with pytest.raises(InvalidArgumentError, match="the vocabulary has 64"):
        draw(desk, visit)
    for live in (True, False):  # a field is left, and nothing mended
        with pytest.raises(InvalidArgumentError, match="the vocabulary has 64"):
            desk.change(visit, {**values, "top_k": 65}, draw=live)
    assert "job" in desk.change(visit, {**values, "top_k": 65}, draw=True, pressed=True)
    mended = desk.change(visit, values, draw=True)
    assert mended["problem"] == "" and "job" in mended
    assert "1 picture" in draw(desk, visit)["status"]


def test_every_way_to_settings_clears_messages(desk: Desk, visit: Visit, model: Path, tmp_path: Path):
    values, _ = drawn(desk, visit, model)
    file = save(desk, visit, tmp_path)
    for act in (
        lambda: desk.reseed(visit, values, draw=True),
        lambda: desk.take_strength(visit, "1"),
        lambda: desk.recall(visit, 0),
        lambda: desk.switch(visit, str(model), 1, "0"),
        lambda: desk.open(visit, str(file)),
    ):
        assert act()["problem"] == ""


@pytest.mark.parametrize("name", range(6))
def test_controls_that_are_set_by_the_page_ask_for_nothing(desk: Desk, visit: Visit, name: int, shelf: Shelf):
    """A list of choices calls it a change when the page itself sets it; nothing is drawn twice for that."""
    values = values_of(desk.arrive(visit, f"?model={shelf.names[name]}"))
    for query in ("", "&ssg=0.4&ssg-schedule=linear", "&ssg=off", "&count=2&seed=5,9"):
        job = visit.job
        again = desk.change(visit, values, draw=True)
        assert "job" not in again and visit.job == job
        values = values_of(desk.arrive(visit, f"?model={shelf.names[name]}{query}"))


def test_classes_that_are_typed_removed_or_cleared_draw_or_say_why(desk: Desk, visit: Visit, model: Path):
    values, _ = drawn(desk, visit, model)
    for classes, subjects in (
        (["ship", "cat"], "label=ship&label=cat"),
        (["cat"], "label=cat"),
        (["ship", "3"], "label=ship&label=cat"),  # typed, as a number
        (["Cat", " none "], "label=cat&label=none"),
    ):
        changes = desk.change(visit, {**values, "classes": classes}, draw=True)
        assert subjects + "&count=1" in changes["job"], classes
    for classes, message in (
        ([], "give a class"),
        (None, "give a class"),
        (["zebra"], "unknown class 'zebra'"),
        (["ship", " "], "is empty"),
        (["11"], "11"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            desk.change(visit, {**values, "classes": classes}, draw=True)


# ------------------------------------------------------------------ whose turn it is


def test_who_asks_for_kept_pictures_does_not_wait(desk: Desk, visit: Visit, model: Path):
    drawn(desk, visit, model)
    list(desk.draw_strip(visit))
    other = desk.visits.of("another")
    with desk.studio.line.place() as place:  # somebody is drawing
        assert list(place.wait(threading.Event())) == []
        desk.arrive(other, f"?model={model}&label=ship&count=1&seed=3&ssg=0.5")
        answer = draw(desk, other)
        assert "as drawn before" in answer["status"] and other.shown is not None
        *_, last = desk.draw_strip(other)
        assert "The strip is drawn" in last["status"]
        assert "job" in desk.take_strength(other, "1.5")  # which the strip has drawn, but without every scale
        assert "1 picture" in draw(desk, other, frames=False)["status"]

        desk.arrive(other, f"?model={model}&label=ship&count=1&seed=4&ssg=0.5")  # which nobody has drawn
        waits = desk.draw(other, other.job, True, View())
        assert "Getting ready" in next(waits)["status"]
        assert "with 1 before it" in next(waits)["status"]
        desk.cancel(other)
        assert "Cancelled" in next(waits)["status"] and list(waits) == []
    desk.arrive(other, f"?model={model}&label=ship&count=1&seed=4&ssg=0.5")
    assert "1 picture" in draw(desk, other)["status"]


def test_a_strip_that_takes_the_turn_leaves_no_page_that_draws_for_ever(
    desk: Desk, visit: Visit, model: Path
):
    values, _ = drawn(desk, visit, model)
    changed = {**values, "seed": "8"}
    desk.change(visit, changed, draw=True)
    under_way = desk.draw(visit, visit.job, True, View())
    next(under_way)
    list(desk.draw_strip(visit))
    assert "Cancelled" in list(under_way)[-1]["status"]
    assert "Cancelled" in desk.change(visit, changed, draw=True)["status"]
    assert "job" in desk.change(visit, changed, draw=True, pressed=True)
    assert "1 picture" in draw(desk, visit)["status"]


# ------------------------------------------------------------------ drawing at every change


def test_drawing_at_every_change_turns_itself_off_where_it_takes_long_and_once(
    shelf: Shelf, tmp_path: Path, model: Path
):
    desk = Desk(shelf, pictures, tmp_path / "pictures", slow=0.0)  # everything takes longer than that
    visit = desk.visits.of("somebody")
    assert desk.arrive(visit, f"?model={model}&label=ship&count=1")["live"]["value"] is True
    answer = draw(desk, visit)
    assert answer["live"] == {"value": False} and visit.live is False
    assert "1 picture" in answer["status"] and "“Draw at every change” is off now" in answer["status"]
    assert "live" not in desk.recall(visit, 0)  # with the same model it stays as it is
    visit.live = True  # who turns it on again means it
    desk.arrive(visit, f"?model={model}&label=ship&count=1&seed=5")
    visit.live = True
    answer = draw(desk, visit)
    assert "live" not in answer and visit.live and "is off now" not in answer["status"]

    quick = Desk(shelf, pictures, tmp_path / "others", slow=1e9)
    other = quick.visits.of("somebody")
    quick.arrive(other, f"?model={model}&label=ship&count=1")
    assert "live" not in draw(quick, other) and other.live


def test_a_model_of_large_pictures_waits_for_its_button(
    desk: Desk, visit: Visit, model: Path, text_model: Path, monkeypatch
):
    monkeypatch.setattr("nextscale.demo.models.QUICK", 16)  # pixels a side; these have 32
    opened = desk.arrive(visit, "")
    assert "job" not in opened and opened["live"]["value"] is False and "Press Draw" in opened["status"]
    opened = desk.switch(visit, str(model), 1, "0")
    assert "job" not in opened and opened["live"]["value"] is False
    values = values_of(opened)
    left = desk.change(visit, values, draw=False)
    assert "Press Draw to make" in left["status"] and "job" not in left
    moved = desk.change(visit, {**values, "seed": "1"}, draw=False)
    assert "Settings changed. Press Draw" in moved["status"] and "job" not in moved
    assert "job" in desk.change(visit, values, draw=True, pressed=True)
    assert "1 picture" in draw(desk, visit)["status"]
    assert "job" in desk.arrive(visit, f"?model={model}&label=cat")  # a link asks for its pictures
    assert desk.switch(visit, str(text_model), 1, "0")["live"]["value"] is False


# ------------------------------------------------------------------ pictures from elsewhere


@pytest.mark.parametrize("version", [None, 1, VERSION + 1])
def test_a_picture_of_another_sampler_is_not_drawn_by_itself(
    desk: Desk, visit: Visit, model: Path, tmp_path: Path, version: int | None
):
    drawn(desk, visit, model)
    file = save(desk, visit, tmp_path, sampler_version=version)
    other = desk.visits.of("another")
    desk.arrive(other, f"?model={model}&label=cat&count=1")
    draw(desk, other)
    opened = desk.open(other, str(file))
    assert "job" not in opened and opened["classes"]["value"] == ["ship"] and opened["seed"]["value"] == "3"
    assert "give another picture now" in opened["status"] and "Press Draw" in opened["status"]
    assert f"version {version or 1} of the sampler" in opened["status"] and opened["problem"] == ""
    assert other.live  # nevertheless: setting the list of classes is no change that asks for pictures
    same = desk.change(other, values_of(opened), draw=True)
    assert same == {"status": opened["status"], "problem": ""}
    assert other.shown.settings.subjects == ("cat",)
    pressed = desk.change(other, values_of(opened), draw=True, pressed=True)
    assert "job" in pressed and "1 picture" in draw(desk, other)["status"]
    assert other.shown.settings.subjects == ("ship",)


def test_a_picture_of_this_sampler_is_drawn_by_itself(desk: Desk, visit: Visit, model: Path, tmp_path: Path):
    drawn(desk, visit, model)
    wanted = visit.shown.guided.images[0].tobytes()
    file = save(desk, visit, tmp_path)
    with Image.open(file) as saved:
        assert json.loads(saved.info["nextscale"])["sampler_version"] == VERSION
    other = desk.visits.of("another")
    assert "job" in desk.open(other, str(file))
    draw(desk, other)
    assert other.shown.guided.images[0].tobytes() == wanted
    greedy = save(desk, visit, tmp_path, sampler="greedy", sampler_version=None)
    assert "job" in desk.open(other, str(greedy))  # which has no random numbers


def test_no_message_names_a_folder_of_the_server(desk: Desk, visit: Visit, model: Path, tmp_path: Path):
    drawn(desk, visit, model)
    folder = tmp_path / "uploads" / "0a1b"
    folder.mkdir(parents=True)
    whole = save(desk, visit, folder)
    plain, damaged = folder / "plain \u200b'\".png", folder / "damaged.png"
    Image.new("RGB", (2, 2)).save(plain)
    damaged.write_bytes(whole.read_bytes()[:60])
    no_picture = folder / "text.png"
    no_picture.write_text("no picture")
    broken = save(desk, visit, folder).rename(folder / "broken.png")
    with Image.open(broken) as image:
        image.load()
        pictures.save_png(image.convert("RGB"), broken, {"command": "generate"})
    for file in (plain, damaged, no_picture, broken, folder / "missing.png"):
        with pytest.raises(InvalidArgumentError) as refused:
            desk.open(visit, str(file))
        said = str(refused.value)
        assert ".png" in said, said
        for part in (str(tmp_path), "uploads", "0a1b"):
            assert part not in said, said
