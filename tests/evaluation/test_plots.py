"""The style of plots, and the plots of a sweep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image

from nextscale.errors import InvalidArgumentError, MissingDependencyError
from nextscale.evaluation.plots import COLOURS, save, sheet
from nextscale.evaluation.report import is_better_higher
from nextscale.evaluation.sweep_file import Sweep
from nextscale.evaluation.sweep_plots import (
    check_axes,
    curves,
    distance_of,
    few_panels,
    heat_map,
    longest_axes,
    ssg_name,
    title,
)
from nextscale.evaluation.sweep_table import CellMean

AXES: dict[str, Any] = {"temperature": [0.8, 1.0, 1.2], "ssg": ["off", 0.5], "top_p": [0.9, 1.0]}


def averages(axes: dict[str, Any] = AXES, *, sets: int = 3, **more: Any) -> tuple[Sweep, list[CellMean]]:
    sweep = Sweep.from_dict({"axes": axes, **more})
    found = []
    for i, cell in enumerate(sweep.cells):
        mean = {"fd": 5.0 + i, "precision": 0.5 + i / 100, "recall": 0.4 - i / 100}
        found.append(CellMean(cell, [0] * sets, mean, dict.fromkeys(mean, 0.1 if sets > 1 else None)))
    return sweep, found


def test_files_are_whole_and_the_same_every_time(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    contents = []
    for name in ("a", "b"):
        with sheet(1, 2, size=(3, 2)) as (figure, axes):
            assert axes.shape == (1, 2)
            axes[0, 0].plot([0, 1], [2, 3], color=COLOURS[0], label="β")
            written = save(figure, tmp_path / f"{name}.svg")
        assert written == (tmp_path / f"{name}.svg", tmp_path / f"{name}.png")
        contents.append([path.read_bytes() for path in written])
        save(figure, tmp_path / f"{name}.pdf")
    assert contents[0] == contents[1] and dict(matplotlib.rcParams) == before
    assert {p.suffix for p in tmp_path.iterdir()} == {".svg", ".png", ".pdf"}
    with pytest.raises(
        InvalidArgumentError, match=r"written as \.svg or \.pdf, with a \.png beside; got 'a\.jpg'"
    ):
        save(figure, tmp_path / "a.jpg")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'nextscale\[eval\]'"), sheet():
        pass


def test_heat_maps(tmp_path: Path):
    sweep, found = averages(cell=[{"beta": 3.0}])
    assert distance_of(found) == "fd" and longest_axes(sweep.axes) == ("ssg", "temperature")
    heat_map(found, sweep.axes, ("ssg", "temperature"), "fd", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count("top-p") == 2  # a panel for each, named in a comment of the file
    assert Image.open(tmp_path / "a.png").width > 300
    heat_map(
        found[:7], sweep.axes, ("top_p", "ssg"), "recall", tmp_path / "b.pdf"
    )  # not all are measured yet
    with pytest.raises(InvalidArgumentError, match="'is' was not measured; there are fd, precision, recall"):
        heat_map(found, sweep.axes, ("ssg", "temperature"), "is", tmp_path / "c.svg")


def test_axes_of_heat_maps():
    for chosen, message in [
        (("beta", "ssg"), "'beta' is no axis of this sweep; it has temperature, ssg, top_p"),
        (("ssg", "ssg"), "two different axes, got ssg twice"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            check_axes(AXES, chosen)
    many = {**AXES, "top_k": list(range(9))}
    assert few_panels(AXES, ("ssg", "top_p")) and not few_panels(many, ("ssg", "top_p"))
    with pytest.raises(
        InvalidArgumentError, match="more than 12 panels, for every combination of temperature, top_k"
    ):
        check_axes(many, ("ssg", "top_p"))
    assert longest_axes({"a": [1], "b": [1, 2]}) is None


def test_curves(tmp_path: Path):
    sweep, found = averages(cell=[{"name": "alone", "beta": 3.0}])
    curves(found, sweep.axes, "fd", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for shown in ("precision", "recall", "off", "temperature from 0.8 to 1.2"):
        assert f"<!-- {shown} -->" in text or shown in text
    many, single = averages({"beta": [0.1 * i for i in range(9)]}, sets=1)  # more than there are colours
    curves(single, many.axes, "fd", tmp_path / "b.svg")
    with pytest.raises(InvalidArgumentError, match="'fid' was not measured"):
        curves(found, sweep.axes, "fid", tmp_path / "c.svg")


def test_words():
    assert title("fd") == "FD" and title("kid") == "KID" and title("fid_infinity") == "FID, N → ∞"
    assert is_better_higher("recall") and is_better_higher("inception_score") and not is_better_higher("fd")
    assert [ssg_name(s) for s in ({}, {"ssg": "off"}, {"beta": 0}, {"temperature": 2})] == ["off"] * 4
    assert (
        ssg_name({"ssg": 0.5, "norm": "forward"})
        == ssg_name({"beta": 0.5, "norm": "forward"})
        == "0.5 forward norm"
    )
    assert ssg_name({"ssg": {"beta": 0.5}, "schedule": "linear"}) == "0.5 linear"
