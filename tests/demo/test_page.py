"""The page in a real browser: what a visitor does, and what is to be seen then."""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from nextscale.cli.main import main

pytestmark = pytest.mark.slow

A, B = "#ns-slider img.ns-a", "#ns-slider img.ns-b"
DONE = "#ns-status :text('each without and with SSG')"


def picture(page: Any, selector: str) -> bytes:
    """The pixels of a picture on the page."""
    source = page.get_attribute(selector, "src")
    return decoded(source).tobytes()


def decoded(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")


def settings(page: Any) -> dict[str, list[str]]:
    """What the address says."""
    return parse_qs(urlsplit(page.url).query)


def await_change(page: Any, act: Callable[[], Any], name: str, value: str) -> None:
    """Do something, and wait until the address has the new value, which it gets when all is drawn."""
    act()
    page.wait_for_function(
        "([name, value]) => new URLSearchParams(location.search).get(name) === value", arg=[name, value]
    )
    page.wait_for_selector(DONE)


def test_it_opens_with_pictures_and_asks_nobody_else(visit, server):
    one = visit()
    page = one.page
    assert page.title().startswith("nextscale")
    assert picture(page, A) != picture(page, B)
    assert settings(page)["model"] == ["cifar10"] and settings(page)["seed"] == ["0"]
    assert page.locator("#ns-film img").count() == 2 * 6  # every scale, both ways
    assert page.locator("#ns-curves svg polyline").count() == 2 * 2
    assert page.locator("#ns-thumbs button").count() == 4
    assert len(one.asked) > 10  # so that the check at the end sees something
    assert server.outside.calls == []
    assert "Traceback" not in server.said()


def test_beta_changes_the_pictures_and_keeps_the_seeds(visit):
    page = visit("?label=ship&count=2&seed=5&ssg=0.6").page
    plain, guided = picture(page, A), picture(page, B)
    strength = page.get_by_label("β, the strength of SSG")
    strength.focus()
    await_change(page, lambda: strength.press("ArrowRight"), "ssg", "0.65")
    assert settings(page)["seed"] == ["5"] and page.input_value("#ns-seeds textarea, #ns-seeds input") == "5"
    assert picture(page, A) == plain
    larger = picture(page, B)
    assert larger != guided
    await_change(page, lambda: strength.press("ArrowLeft"), "ssg", "0.6")
    assert picture(page, B) == guided


def test_the_schedule_is_a_curve_whose_steps_can_be_moved(visit):
    page = visit("?label=ship&count=1&seed=5&ssg=1").page
    guided = picture(page, B)
    page.get_by_role("radio", name="linear").check(force=True)
    await_change(page, lambda: None, "ssg-schedule", "linear")
    assert picture(page, B) != guided
    steps = page.locator("#ns-beta .ns-steps input")
    assert steps.count() == 6 and steps.first.is_disabled()
    assert [float(steps.nth(i).input_value()) for i in range(6)] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    steps.nth(3).focus()
    await_change(page, lambda: steps.nth(3).press("ArrowUp"), "ssg", "0,0.2,0.4,0.65,0.8,1")
    assert page.get_by_role("radio", name="per step").is_checked()


def test_a_link_shows_the_same_pixels(visit):
    first = visit(
        "?label=ship&label=cat&count=2&seed=11&ssg=0.9&ssg-schedule=bandwidth&prior=dct&top-k=20"
    ).page
    again = visit("?" + urlsplit(first.url).query).page
    assert picture(first, A) == picture(again, A) and picture(first, B) == picture(again, B)
    assert first.get_attribute("#ns-thumbs", "class") == again.get_attribute("#ns-thumbs", "class")
    sources = [
        [image.get_attribute("src") for image in page.locator("#ns-thumbs img").all()]
        for page in (first, again)
    ]
    assert sources[0] == sources[1] and len(sources[0]) == 8
    assert again.input_value("#ns-link textarea, #ns-link input") == again.url
    first.reload()
    first.wait_for_selector("#ns-film img")
    assert picture(first, B) == picture(again, B)


def test_a_downloaded_picture_makes_itself_again_and_opens(visit, tmp_path: Path, server):
    page = visit("?label=ship&count=2&seed=3&ssg=0.6&ssg-schedule=linear&temperature=0.9").page
    with page.expect_download() as download:
        page.get_by_role("button", name="Save with SSG").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "0000-ship-seed3-ssg-0.6.png"
    with Image.open(file) as saved:
        assert saved.convert("RGB").tobytes() == picture(page, B)
    again = tmp_path / "again.png"
    command("generate", "--from", str(file), "--output", str(again))
    assert again.read_bytes() == file.read_bytes()

    other = visit("?label=cat&count=1&seed=0").page
    other.get_by_role("button", name="Open a picture").click()
    upload = lambda: other.set_input_files("input[type=file]", str(file))  # noqa: E731
    await_change(other, upload, "label", "ship")
    assert urlsplit(other.url).query == urlsplit(page.url).query
    assert picture(other, B) == picture(page, B)


def command(*arguments: str) -> None:
    """``nextscale ARGUMENTS`` in this process."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0


@pytest.mark.parametrize(
    "query",
    [
        "?label=ship&label=cat&count=2&seed=4&ssg=0.6&guidance-scale=3&min-p=0.01",
        "?label=dog&count=2&seed=4,9&ssg=0,0.2,0.4,0.3,0.1,0.7&norm=forward&remember=guided&more-smooth=on",
    ],
)
def test_python_and_commands_make_exactly_these_pictures(visit, tmp_path: Path, monkeypatch, query: str):
    monkeypatch.chdir(tmp_path)
    page = visit(query).page
    wanted = {selector: picture(page, selector) for selector in (A, B)}
    names: dict[str, Any] = {}
    exec(code(page, "#ns-python"), names)
    names["plain"].images[0].save("plain-0.png")
    for selector, name in ((A, "plain-0.png"), (B, "with-0.png")):
        with Image.open(tmp_path / name) as made:
            assert made.convert("RGB").tobytes() == wanted[selector]
    for line in code(page, "#ns-command").splitlines():
        words = shlex.split(line)
        assert words[:2] == ["nextscale", "generate"]
        command(*words[1:])
    for selector, name in ((A, "without.png"), (B, "with.png")):
        with Image.open(tmp_path / name) as sheet:
            first = sheet.convert("RGB").crop((0, 0, 128, 128)).resize((32, 32), Image.Resampling.NEAREST)
        assert first.tobytes() == wanted[selector]


def code(page: Any, selector: str) -> str:
    """The text of a code block, as its copy button gives it."""
    lines = page.locator(f"{selector} .cm-line").all_text_contents()
    return "\n".join(lines).strip()


def test_cancel_stops_a_slow_drawing_for_which_others_need_not_wait(visit, slow_model: Path):
    kept = "?label=ship&count=1&seed=8&ssg=0.6"
    first = picture(visit(kept).page, B)
    page = visit(f"?model={slow_model}&count=3&seed=1&ssg=0.6", drawn=False).page
    live = page.get_by_label("Draw at every change")
    page.wait_for_selector("#ns-status :text-matches('step [0-9]+ of')")
    assert live.is_checked()
    assert picture(visit(kept).page, B) == first  # while the slow one goes on
    assert "step" in page.inner_text("#ns-status")
    page.wait_for_function("(box) => !box.checked", arg=live.element_handle())
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("#ns-status :text('Cancelled')")
    seed = page.locator("#ns-seeds textarea, #ns-seeds input").first
    seed.focus()
    seed.blur()  # nothing has changed, so nothing is drawn after all
    # The machine is free for the next at once, and the page goes on from there.
    await_change(page, lambda: choose(page, "Model", "cifar10"), "model", "cifar10")
    assert settings(page)["seed"] == ["1"]


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_bad_input_shows_a_message_and_the_page_lives(visit):
    page = visit("?label=ship&count=1&seed=0").page
    seed = page.locator("#ns-seeds textarea, #ns-seeds input").first
    seed.fill("<b>seven</b>")
    seed.press("Enter")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "seed is a whole number" in alert.inner_text() and "<b>seven</b>" in alert.inner_text()
    seed.fill("0")  # as it was: there is nothing to draw, and nothing wrong any more
    seed.blur()
    alert.wait_for(state="detached")
    assert "each without and with SSG" in page.inner_text("#ns-status")
    seed.fill("7 3")
    seed.press("Enter")
    alert.wait_for()
    assert "2 seeds for 1 images" in alert.inner_text()
    seed.fill("7")
    await_change(page, lambda: seed.press("Enter"), "seed", "7")
    assert page.get_by_role("alert").count() == 0

    for query, message in (
        ("?model=/etc", "unknown model '/etc'"),
        ("?label=unicorn", "unknown class 'unicorn'"),
        ("?label=cat&count=99", "count is a whole number from 1 to 8"),
        ("?label=cat&ssg=-1", "ssg is a number from 0 to 20"),
        ("?label=cat&colour=red", "the setting 'colour' is unknown"),
        ("?label=" + "x" * 500, "at most 400"),
    ):
        page.goto(urlsplit(page.url)._replace(query=query[1:]).geturl())
        page.get_by_role("alert").wait_for()
        assert message in page.get_by_role("alert").inner_text()


def test_classes_that_are_typed_removed_and_cleared(visit):
    page = visit("?label=ship&count=1&seed=0").page
    classes = page.get_by_label("Classes", exact=True)
    typed(classes, "cat")
    page.wait_for_function("location.search.includes('label=ship&label=cat&')")
    typed(classes, "zebra")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "unknown class 'zebra'" in alert.inner_text()
    remove = page.locator("#ns-controls .token-remove")  # one for each class, and one for all of them
    page.locator("#ns-controls .token", has_text="zebra").locator(".token-remove").click()
    alert.wait_for(state="detached")
    page.locator("#ns-controls .token", has_text="ship").locator(".token-remove").click()
    page.wait_for_function("location.search.includes('&label=cat&') && !location.search.includes('ship')")
    page.wait_for_selector(DONE)
    remove.last.click()
    alert.wait_for()
    assert "nothing to draw; give a class" in alert.inner_text()
    typed(classes, "dog")
    page.wait_for_function("location.search.includes('&label=dog&')")
    assert alert.count() == 0


def typed(classes: Any, name: str) -> None:
    classes.click()
    classes.fill(name)
    classes.press("Enter")


def test_looking_around(visit):
    page = visit("?label=ship&count=3&seed=0&ssg=0.6").page
    first = picture(page, B)
    page.locator("#ns-thumbs button").nth(2).press("Enter")
    page.wait_for_selector("#ns-thumbs button:nth-child(3)[aria-pressed=true]")
    assert picture(page, B) != first and "seed 2" in page.inner_text("#ns-slider figcaption")

    page.get_by_role("tab", name="Difference").click()
    assert "mid-grey is no change" in page.inner_text("#ns-change")
    page.get_by_label("absolute").check()
    page.wait_for_selector("#ns-change :text('black is none')")
    page.get_by_role("tab", name="Side by side").click()
    assert page.locator("#ns-pair img:visible").count() == 2
    page.get_by_role("tab", name="Slider").click()

    page.get_by_role("button", name="Draw this picture at several β").click()
    page.wait_for_selector("#ns-strip button:nth-of-type(8)")
    at = [
        decoded(page.get_attribute(f"#ns-strip button[data-beta='{b}'] img", "src")).tobytes()
        for b in ("0", "0.6")
    ]
    assert at == [picture(page, A), picture(page, B)]
    await_change(page, lambda: page.locator("#ns-strip button[data-beta='1.5']").click(), "ssg", "1.5")
    assert float(page.get_by_label("β as a number").input_value()) == 1.5

    assert page.locator("#ns-gallery button").count() == 2
    await_change(page, lambda: page.locator("#ns-gallery button").last.click(), "ssg", "0.6")


def test_the_divider_moves_with_the_keyboard_and_stays(visit):
    page = visit("?label=ship&count=2&seed=0").page
    divider = page.get_by_label("Divider")
    divider.focus()
    for _ in range(20):
        divider.press("ArrowRight")
    split = "getComputedStyle(document.documentElement).getPropertyValue('--ns-split')"
    assert page.evaluate(split) == "70%"
    assert "inset(0px 0px 0px 70%)" in page.evaluate(
        f"getComputedStyle(document.querySelector('{B}')).clipPath"
    )
    page.locator("#ns-thumbs button").nth(1).click()
    page.wait_for_selector("#ns-thumbs button:nth-child(2)[aria-pressed=true]")
    assert page.evaluate(split) == "70%" and divider.input_value() == "70"


def test_every_control_is_reached_with_the_tab_key(visit):
    page = visit("?label=ship&count=2&seed=0").page
    page.locator("body").click(position={"x": 2, "y": 2})
    seen: list[str] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "(() => { const e = document.activeElement; return e.getAttribute('aria-label') || "
                "e.textContent.trim() || e.closest('label')?.textContent.trim() || ''; })()"
            )
        )
    text = "|".join(seen)
    for name in (
        "Model", "Classes", "Seed", "Pictures each", "New seeds", "β, the strength of SSG", "β as a number",
        "β at step 2", "β at step 6", "Draw", "Cancel", "What the prior is made of", "Open a picture",
        "Slider", "Divider", "ship · seed 1", "Save with SSG", "Play", "Draw this picture at several β",
    ):  # fmt: skip
        assert name in text, (name, seen)


@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(15, 23, 42)")])
def test_light_and_dark(visit, scheme: str, paper: str):
    page = visit("?label=ship&count=1&seed=0", color_scheme=scheme).page
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    ink = page.evaluate("getComputedStyle(document.querySelector('#ns-header h1')).color")
    assert contrast(ink, paper) > 7
    for selector in (".ns-film th", ".ns-tick", ".ns-status span", ".ns-stage figcaption"):
        attribute = "fill" if selector == ".ns-tick" else "color"
        colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{attribute}")
        assert contrast(colour, paper) >= 4.5, (selector, colour)


def contrast(one: str, other: str) -> float:
    """The ratio of luminances as accessibility guidelines (WCAG 2) define it."""

    def luminance(colour: str) -> float:
        channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_on_a_phone(visit):
    page = visit(
        "?label=ship&count=2&seed=0", viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True
    ).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    stage = page.locator("#ns-slider .ns-compare").bounding_box()
    assert stage["width"] > 340 and stage["y"] + stage["height"] < 844  # large, and there without scrolling
    below = page.locator("#ns-beta").bounding_box()
    assert stage["y"] < below["y"] < page.get_by_label("Model", exact=True).bounding_box()["y"]
    page.get_by_role("radio", name="cosine").check(force=True)
    await_change(page, lambda: None, "ssg-schedule", "cosine")


@pytest.mark.parametrize("kind", ["text_model", "wide_model", "hart_model"])
def test_models_that_draw_prompts(visit, kind: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(kind)
    page = visit("?label=ship&count=1&seed=2").page
    await_change(page, lambda: choose(page, "Model", folder.name), "model", folder.name)
    assert page.get_by_label("Classes", exact=True).count() == 0
    prompts = page.get_by_label("Prompts, one a line")
    prompts.fill("a blue bird <i>&\na red fox")
    await_change(
        page,
        lambda: page.get_by_role("button", name="Draw", exact=True).click(),
        "prompt",
        "a blue bird <i>&",
    )
    assert settings(page)["prompt"] == ["a blue bird <i>&", "a red fox"] and settings(page)["seed"] == ["2"]
    assert page.locator("#ns-thumbs button").count() == 2
    assert page.get_by_label("Keep away from").count() == (0 if kind == "hart_model" else 1)
    first = picture(page, B)
    again = visit("?" + urlsplit(page.url).query).page
    assert picture(again, B) == first
