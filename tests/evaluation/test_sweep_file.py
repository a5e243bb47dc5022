"""Sweep files: what combinations they name, and what is wrong with those that are wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nextscale import VARPipeline
from nextscale.errors import DataError, InvalidArgumentError
from nextscale.evaluation.sweep_file import RULER, SETTINGS, Sweep, label
from nextscale.guidance.ssg import DEFAULT_BETA, ScaledSpatialGuidance

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(ROOT.glob("benchmarks/sweeps/*.toml"))


def read(tmp_path: Path, text: str) -> Sweep:
    file = tmp_path / "s.toml"
    file.write_text(text)
    return Sweep.read(file)


def test_a_grid_and_cells_of_their_own(tmp_path: Path, pipe: VARPipeline):
    sweep = read(
        tmp_path,
        """
        preset = "custom"
        model = { name = "FoundationVision/var", depth = 16 }
        images = 60
        seeds = [3, 500]
        batch_size = 20
        features = "pixels"
        reference = "none"

        [settings]
        top_k = 9
        norm = "forward"

        [axes]
        temperature = [0.9, 1]
        ssg = ["off", 0.3, { beta = 0.6, schedule = "bandwidth" }]

        [[cell]]
        name = "mine"
        beta = [0, 0.1, 0.2, 0.3]
        guidance_scale = 2

        [[cell]]
        ssg = "default"
        """,
    )
    assert (sweep.preset, sweep.images, sweep.seeds, sweep.batch_size) == ("custom", 60, (3, 500), 20)
    assert sweep.model == {"name": "FoundationVision/var", "depth": 16}
    assert sweep.ruler == {"features": "pixels", "reference": "none"}
    assert [cell.name for cell in sweep.cells] == [
        "temperature 0.9, SSG off",
        "temperature 0.9, SSG 0.3",
        "temperature 0.9, SSG 0.6 bandwidth",
        "temperature 1, SSG off",
        "temperature 1, SSG 0.3",
        "temperature 1, SSG 0.6 bandwidth",
        "mine",
        "SSG default",
    ]
    made = [cell.arguments(pipe) for cell in sweep.cells]
    assert made[0] == {"top_k": 9, "temperature": 0.9, "ssg": None}
    assert made[1]["ssg"] == ScaledSpatialGuidance(0.3, norm="forward")
    assert made[2]["ssg"] == ScaledSpatialGuidance(0.6, schedule="bandwidth", norm="forward")
    assert made[6] == {
        "top_k": 9,
        "guidance_scale": 2.0,
        "ssg": ScaledSpatialGuidance([0, 0.1, 0.2, 0.3], norm="forward"),
    }
    assert made[7]["ssg"] == ScaledSpatialGuidance(DEFAULT_BETA, norm="forward")
    assert sweep.cells[4].labels == {"temperature": 1.0, "ssg": 0.3} and sweep.cells[6].labels == {}


def test_parts_of_ssg_are_axes(tmp_path: Path, pipe: VARPipeline):
    sweep = read(tmp_path, '[axes]\nbeta = [0, 0.5]\nschedule = ["constant", "linear"]\n')
    found = [cell.arguments(pipe)["ssg"] for cell in sweep.cells]
    # A strength of 0 makes the pictures of no guidance, so that is what is measured.
    assert found == [
        None,
        None,
        ScaledSpatialGuidance(0.5),
        ScaledSpatialGuidance(0.5, schedule="linear"),
    ]
    assert sweep.preset == "cifar10" and sweep.seeds == (0, 1_000_000, 2_000_000)
    assert sweep.with_sets(1).seeds == (0,)


def test_what_is_open_is_the_models(tmp_path: Path, pipe: VARPipeline):
    tuned = VARPipeline(
        pipe.transformer, pipe.tokenizer, defaults={"ssg": {"beta": 0.2, "schedule": "cosine"}}
    )
    cell = read(tmp_path, '[axes]\nprior = ["dct"]\n').cells[0]
    assert cell.arguments(tuned)["ssg"] == ScaledSpatialGuidance(0.2, schedule="cosine", prior="dct")
    cell = read(tmp_path, "[axes]\nbeta = [0.7]\n").cells[0]
    assert cell.arguments(tuned)["ssg"] == ScaledSpatialGuidance(0.7)


BAD = [
    ("imges = 3", "unknown entry 'imges'; known: preset, rounding, reference"),
    ("images = 0", "images must be at least 1, got 0"),
    ("images = 1.5", "images must be a whole number, got 1.5"),
    ('preset = "mnist"', "unknown preset 'mnist'; known: cifar10"),
    ("seeds = [0, 0]", "seeds must be a number of sets, or different first seeds; got [0, 0]"),
    ("seeds = -1", "seeds must be at least 1, got -1"),
    ("model = { nme = 'x' }", "unknown entry 'nme' in model; known: name, transformer"),
    ("model = 3", "model must be a table, got 3"),
    ("", "there is nothing to measure: give [axes], or cells as [[cell]]"),
    ("[axes]\ntemprature = [1]", "unknown entry 'temprature' in axes; known: guidance_scale, top_k"),
    ("[axes]\ntemperature = 1", "axes.temperature must be a list of values, got 1"),
    ("[axes]\ntemperature = []", "axes.temperature must be a list of values, got []"),
    ("[axes]\ntemperature = [1, 1.0]", "axes.temperature has a value twice"),
    ("[axes]\ntemperature = ['hot']", "axes.temperature must be a number, got 'hot'"),
    ("[axes]\ntop_k = [1.5]", "axes.top_k must be a whole number, got 1.5"),
    ("[axes]\nmore_smooth = [1]", "axes.more_smooth must be true or false, got 1"),
    ("[axes]\nssg = ['strong']", "axes.ssg is off, default, a strength or a table; got 'strong'"),
    ("[axes]\nssg = [{ beta = -1 }]", "axes.ssg: beta must be finite and at least 0; got -1.0"),
    ("[axes]\nssg = [{ size = 1 }]", "axes.ssg: unknown settings ['size']"),
    ("[axes]\nschedule = ['steep']", "axes.schedule: unknown schedule 'steep'; choose one of constant"),
    ("[axes]\nstart = ['x']", "axes.start: start must be a step counted from 0; got 'x'"),
    ("[axes]\nbeta = [1]\n[settings]\nssg = 'off'", "settings.ssg is off, so beta changes nothing"),
    ("[settings]\ntop_k = 'x'\n[axes]\nbeta = [1]", "settings.top_k must be a whole number"),
    ("[[cell]]\nsize = 3", "unknown entry 'size' in cell 1; known: name, guidance_scale"),
    ("[cell]\nbeta = 3", "cells of their own are written as [[cell]], with two brackets"),
    ("axes = 3", "axes must be a table, got 3"),
]


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_what_is_wrong_is_named(text: str, expected: str, tmp_path: Path):
    with pytest.raises(InvalidArgumentError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith("s.toml: ") and expected in str(caught.value)


def test_files_that_are_none(tmp_path: Path):
    with pytest.raises(InvalidArgumentError, match=r"no such sweep file: 'no\.toml'"):
        Sweep.read(Path("no.toml"))
    with pytest.raises(DataError, match=r"s\.toml is not TOML: .*line 1"):
        read(tmp_path, "images 3")
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"b\.toml is not TOML"):
        Sweep.read(tmp_path / "b.toml")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.30, "0.3"),
        ([0, 0.5], "0/0.5"),
        (True, "yes"),
        ("off", "off"),
        ({"schedule": "linear", "beta": 0.3}, "0.3 linear"),
        ({"prior": "dct", "norm": "forward"}, "dct prior, forward norm"),
        ({"beta": 1, "remember": "guided", "start": 2}, "1 remembers guided, start 2"),
    ],
)
def test_labels(value: Any, expected: str):
    assert label(value) == expected


def test_the_example_in_the_documentation_is_a_sweep(tmp_path: Path):
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert examples and all(read(tmp_path, example).cells for example in examples)
    assert [name for name in (*SETTINGS, *RULER) if f"`{name}`" not in text and f" {name}" not in text] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_sweeps(path: Path, pipe: VARPipeline):
    sweep = Sweep.read(path)
    assert len({cell.name for cell in sweep.cells}) == len(sweep.cells)
    assert len(sweep.seeds) == 3
    for cell in sweep.cells:
        cell.arguments(pipe)
    assert any(cell.arguments(pipe)["ssg"] is None for cell in sweep.cells)
    assert set(sweep.axes) <= set(SETTINGS)
