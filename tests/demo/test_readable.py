"""Whether everybody can read the page and use it: contrast, small screens, fingers, words explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nextscale.demo.settings import NORMS, PRIORS, SAMPLERS
from nextscale.demo.words import HELP
from nextscale.guidance.schedules import SCHEDULES
from nextscale.guidance.ssg import REMEMBER

pytestmark = pytest.mark.slow

CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
SEEDS = "#ns-seeds textarea, #ns-seeds input"
# Elements that stick out of the window and are in nothing that scrolls by itself.
STICKING_OUT = """() => [...document.querySelectorAll("body *")].filter((e) => {
  const box = e.getBoundingClientRect();
  if (!e.checkVisibility({visibilityProperty: true}) || box.width < 2 || box.height < 2) return false;
  if (box.right <= innerWidth + 0.5 && box.left >= -0.5) return false;
  for (let at = e.parentElement; at && at !== document.body; at = at.parentElement)
    if (getComputedStyle(at).overflowX !== "visible" && at.getBoundingClientRect().right <= innerWidth + 0.5)
      return false;
  return true;
}).map((e) => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 30)}`)"""


def open_everything(page: Any) -> None:
    """All that is folded, all words that are explained, and a message."""
    for name in (
        "What the prior is made of",
        "Sampling and classifier-free guidance",
        "Open a picture",
    ):
        page.get_by_role("button", name=name).click()
    for mark in page.locator("[data-help]").all():
        mark.press("Enter")
    for summary in page.locator("summary").all():
        summary.press("Enter")
    field = page.locator(SEEDS).first
    field.fill("seven")
    field.press("Enter")
    page.get_by_role("alert").wait_for()


def test_every_text_stands_out_in_both_themes_and_words_are_explained(visit: Callable[..., Any]):
    page = visit("?label=ship&count=2&seed=0").page
    page.get_by_role("button", name="Draw this picture at several β").click()
    page.wait_for_selector("#ns-strip button:nth-of-type(8)")
    for name in HELP:  # closed at first
        assert not page.locator(f"#ns-words-{name}").is_visible()
    open_everything(page)
    for name, words in HELP.items():
        said = page.locator(f"#ns-words-{name}")
        assert said.is_visible() and [t.strip() for t in said.locator("dt").all_text_contents()] == list(
            words
        )
        assert page.locator(f"[data-help={name}]").get_attribute("aria-expanded") == "true"
    page.add_style_tag(content="* { transition: none !important }")  # colours would change by and by
    for tab in ("Side by side", "Difference", "Slider"):
        page.get_by_role("tab", name=tab).click()
        for dark in (False, True):
            page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", dark)
            found = page.evaluate(f"({CONTRAST})(4.5)")
            assert found["poor"] == [], (tab, "dark" if dark else "light")
            assert found["count"] > 150
    page.locator("[data-help=beta]").press("Enter")
    assert not page.locator("#ns-words-beta").is_visible()
    # And what measures it does see what is pale.
    page.evaluate("document.body.classList.remove('dark')")
    page.add_style_tag(content="#ns-header p { color: #94a3b8 !important } .ns-label { opacity: 0.5 }")
    poor = {entry["text"]: entry["ratio"] for entry in page.evaluate(f"({CONTRAST})(4.5)")["poor"]}
    assert poor["A next-scale model draws a picture as to"] == pytest.approx(2.56, abs=0.01)
    assert poor["SSG strength β"] < 4.5


def test_words_that_are_not_plain_are_all_explained():
    assert {*SCHEDULES, "per step", "the pale first point"} <= set(HELP["beta"])
    assert {*PRIORS, *NORMS, *REMEMBER} <= set(HELP["prior"])
    assert {*SAMPLERS, "CFG scale"} <= set(HELP["sampling"])


def test_small_screens_and_fingers(visit: Callable[..., Any]):
    page = visit(
        "?label=ship&count=2&seed=0&ssg=0.6",
        viewport={"width": 390, "height": 844},
        is_mobile=True,
        has_touch=True,
    ).page
    python, command = (page.locator(f"#ns-{name}").bounding_box() for name in ("python", "command"))
    assert python["y"] + python["height"] <= command["y"]  # one under the other, and both whole
    assert python["width"] == command["width"] > 330 and python["x"] == command["x"]

    before = curve(page)
    assert swipe(page, "#ns-beta .ns-steps", 0, -300) > 150 and curve(page) == before

    draw_curve(page)
    page.wait_for_function("new URLSearchParams(location.search).get('ssg')?.includes(',')")
    drawn = curve(page)
    assert drawn[0] == 0 and all(a < b for a, b in zip(drawn[1:-1], drawn[2:], strict=True)), drawn
    tapped = page.locator("#ns-beta .ns-steps label").nth(3).bounding_box()
    page.touchscreen.tap(tapped["x"] + tapped["width"] / 2, tapped["y"] + 52)  # the middle of the scale
    assert curve(page)[3] == pytest.approx(1.0, abs=0.1)
    assert [*curve(page)[:3], *curve(page)[4:]] == [*drawn[:3], *drawn[4:]]

    page.set_viewport_size({"width": 320, "height": 640})
    page.get_by_role("button", name="Draw this picture at several β").click()
    page.wait_for_selector("#ns-strip button:nth-of-type(8)")
    open_everything(page)
    for tab in ("Side by side", "Difference", "Slider"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, tab
        assert page.evaluate(STICKING_OUT) == [], tab
    alert = page.get_by_role("alert").bounding_box()  # seen wherever one types
    assert alert["y"] >= 0 and alert["y"] + alert["height"] <= 640


def curve(page: Any) -> list[float]:
    return [float(i.input_value()) for i in page.locator("#ns-beta .ns-steps input").all()]


def swipe(page: Any, selector: str, dx: int, dy: int) -> float:
    """As a finger does it, so that the browser decides whether that scrolls; how far it has."""
    page.locator(selector).scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    box = page.locator(selector).bounding_box()
    x, y, count = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, 20
    fingers(page, [(x + dx * i / count, y + dy * i / count) for i in range(count + 1)])
    page.wait_for_timeout(300)  # which a browser may take to show it
    return page.evaluate("scrollY") - before


def draw_curve(page: Any) -> None:
    """One finger from the lower left to the upper right of the curve."""
    page.locator("#ns-beta .ns-steps").scroll_into_view_if_needed()
    box = page.locator("#ns-beta .ns-steps").bounding_box()
    count = 40
    left, low, wide = box["x"] + 4, box["y"] + 100, box["width"] - 8
    fingers(page, [(left + wide * i / count, low - 90 * i / count) for i in range(count + 1)])


def fingers(page: Any, points: Sequence[tuple[float, float]]) -> None:
    """Put a finger down, lead it along these points, and take it up."""
    session = page.context.new_cdp_session(page)
    for i, (x, y) in enumerate(points):
        kind = "touchMove" if i else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
