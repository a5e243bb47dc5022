"""Whole numbers of numpy's and of tensors, wherever the library takes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fuzz.targets import infinity, var

from nextscale import ScaledSpatialGuidance, ScaleSchedule
from nextscale.families import load_pretrained
from nextscale.families.infinity.schedules import nearest_template, parse_aspect_ratio, snap
from nextscale.families.words import WordEncoder
from nextscale.whole import as_whole, plain

KINDS: list[Callable[[int], Any]] = [np.int64, np.int32, np.uint8, torch.tensor]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_whole_number(kind: Callable[[int], Any]):
    found = as_whole(kind(5))
    assert (found, type(found)) == (5, int)


@pytest.mark.parametrize("value", [True, np.bool_(True), 1.0, np.float64(2), "3", None, [4], np.arange(2)])
def test_what_is_no_whole_number(value: Any):
    assert as_whole(value) is None


def test_numbers_become_json():
    value = {"a": np.int64(3), "b": [np.float32(0.5), torch.tensor(2)], "c": np.bool_(True)}
    assert json.loads(json.dumps(value, default=plain)) == {"a": 3, "b": [0.5, 2], "c": True}
    with pytest.raises(TypeError):
        json.dumps(np.arange(2), default=plain)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_pipelines(kind: Callable[[int], Any]):
    ssg = ScaledSpatialGuidance(0.5, start=kind(1), stop=kind(2))
    assert ssg == ScaledSpatialGuidance(0.5, start=1, stop=2)
    classes, prompts = var(), infinity()
    mine = classes([kind(1), kind(2)], top_k=kind(3), seed=kind(7), batch_size=kind(1), ssg=ssg)
    plainly = classes([1, 2], top_k=3, seed=7, batch_size=1, ssg=ssg)
    assert mine.settings == plainly.settings
    assert all(map(torch.equal, mine.tokens, plainly.tokens))
    options = {"guidance_layer": 0, "stop_after": 2, "tile": 1, "seed": 7, "batch_size": 1}
    got = prompts(["a"], **{name: kind(value) for name, value in options.items()})
    assert got.settings == prompts(["a"], **options).settings
    for out in (mine, got):
        json.dumps(out.settings)  # as users store them


@pytest.mark.parametrize("kind", KINDS[:2])
def test_sizes_and_files(kind: Callable[[int], Any], tmp_path: Path):
    assert ScaleSchedule.from_sides([kind(1), kind(2), (kind(2), kind(4))]).grids == ((1, 1), (2, 2), (2, 4))
    assert all(type(n) is int for grid in ScaleSchedule.from_sides(np.array([1, 2])) for n in grid)
    assert WordEncoder(kind(4), length=kind(3)).width == 4
    assert snap(kind(1024), kind(1024)) == snap(1024, 1024)
    assert nearest_template(kind(1)) == nearest_template(1) and parse_aspect_ratio(kind(1)) == 1.0
    pipe = var()
    pipe.defaults["top_k"] = kind(3)
    pipe.save_pretrained(tmp_path / "model")
    assert load_pretrained(tmp_path / "model", device="cpu").defaults["top_k"] == 3
