"""Charts, pictures, views and visits: the parts of the page that are made of text and pixels alone."""

from __future__ import annotations

import base64
import io
import re
import threading
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextscale.demo import bounds, pictures, views
from nextscale.demo.charts import HEIGHT, WIDTH, Line, line_chart
from nextscale.demo.drawing import Studio
from nextscale.demo.models import Model
from nextscale.demo.settings import Settings
from nextscale.demo.views import Shown
from nextscale.demo.visits import Entry, Visits

EVIL = "<img src=x onerror=alert(1)>\"'&"


@given(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=16))
def test_charts_hold_every_point_within_their_frame(values: list[float]):
    chart = line_chart(EVIL, "nats", [f"{i}×{i}" for i in range(len(values))], [Line("a", "ns-a", values)])
    svg = ET.fromstring(re.search(r"<svg.*</svg>", chart)[0])
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle")]
    assert len(dots) == len(values)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in dots)
    heights = [y for _, y in dots]
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(heights[a] >= heights[b] - 0.1 for a, b in pairwise(order))
    ticks = [float(t.text) for t in svg.iter("text") if t.get("text-anchor") == "end"]
    assert ticks[0] == 0 and ticks[-1] >= max(values) * (1 - 1e-9) and ticks[-1] > 0 and len(ticks) <= 7
    assert "<img" not in chart


def test_a_difference_says_how_large_it_is():
    plain = Image.new("RGB", (2, 1), (100, 100, 100))
    guided = Image.new("RGB", (2, 1), (110, 90, 100))
    assert pictures.difference(plain, guided, "signed", 4).getpixel((0, 0)) == (168, 88, 128)
    assert pictures.difference(plain, guided, "absolute", 8).getpixel((1, 0)) == (80, 80, 0)
    black, white = (Image.new("RGB", (1, 1), c) for c in ("black", "white"))
    assert pictures.difference(black, white, "signed", 8).getpixel((0, 0)) == (255, 255, 255)
    assert pictures.difference(white, black, "signed", 8).getpixel((0, 0)) == (0, 0, 0)
    assert pictures.mean_change(plain, guided) == pytest.approx(20 / 3)
    assert "×4" in pictures.scale_of("signed", 4) and "32 or more" in pictures.scale_of("signed", 4)


def test_pictures_in_the_page_are_without_loss():
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    source = base64.b64decode(pictures.data_uri(image).partition(",")[2])
    assert Image.open(io.BytesIO(source)).tobytes() == image.tobytes()
    assert pictures.thumbnail(image, 100) is image and pictures.thumbnail(image, 6).size == (6, 4)


@pytest.fixture
def shown(tiny: Model) -> Shown:
    settings = tiny.complete(Settings("m", ("ship", "cat"), 2, ssg=(0.5,)))
    arms = [
        list(Studio().draw(tiny, settings, ssg, threading.Event()))[-1] for ssg in (None, settings.guidance())
    ]
    return Shown(settings, *arms, tiny.schedule(settings).grids)


def test_every_picture_can_be_looked_at(shown: Shown):
    for index in range(4):
        assert shown.caption(index) in views.finished_slider(shown, index)
        assert views.film(shown, index).count("<img") == 12
        assert views.pair(shown, index).count("<img") == 2
        assert views.curves(shown, index).count("<polyline") == 4
        assert f'data-pick="{index}" aria-pressed="true"' in views.thumbs(shown, index)
    assert 'class="ns-compare ns-sharp"' in views.finished_slider(shown, 0)


def test_texts_cannot_become_part_of_the_page(shown: Shown):
    from dataclasses import replace

    evil = replace(shown, settings=replace(shown.settings, subjects=(EVIL, EVIL)))
    for part in (
        views.finished_slider(evil, 0),
        views.pair(evil, 0),
        views.change(evil, 0, "signed", 2),
        views.thumbs(evil, 0),
        views.film(evil, 0),
        views.curves(evil, 0),
        views.problem(EVIL),
        views.working(EVIL),
        views.ready(EVIL),
        views.gallery([("data:", "data:", EVIL)]),
        views.strip([(EVIL, EVIL, shown.plain.images[0])], "0", EVIL),
    ):
        assert "<img src=x" not in part and "onerror=alert(1)>" not in part
        assert not re.search(r'"[^<>]*"\'&', part)


def test_a_visit_wants_the_newest_and_keeps_some(tmp_path: Path):
    visits = Visits(tmp_path)
    visit = visits.of("a")
    first = visit.want("?x=1")
    ticket = visit.ticket
    second = visit.want("?x=1")
    assert first != second and ticket.is_set() and not visit.ticket.is_set() and visits.of("a") is visit
    for i in range(bounds.GALLERY + 5):
        visit.remember(Entry(f"?{i}", "", "", ""))
    visit.remember(Entry("?10", "", "", "again"))
    assert len(visit.gallery) == bounds.GALLERY and visit.gallery[-1].caption == "again"
    assert len({e.query for e in visit.gallery}) == bounds.GALLERY

    visit.folder.mkdir()
    (visit.folder / "a.png").touch()
    for i in range(bounds.VISITS):
        visits.of(f"later {i}")
    assert visit.ticket.is_set() and not visit.folder.exists() and visits.of("a") is not visit
    visits.leave("a")
    visits.leave("never seen")
