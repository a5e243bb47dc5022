from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.generation.request import (
    call_settings,
    convert_images,
    default_ssg,
    given_maps,
    resolve_cfg,
    resolve_seeds,
    resolve_ssg,
    spans,
    with_values,
)
from nextscale.generation.tokens import Filters
from nextscale.guidance import ClassifierFreeGuidance, ScaledSpatialGuidance
from nextscale.guidance.ssg import DEFAULT_BETA

GRIDS = ((1, 1), (2, 2), (3, 3))


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (7, [7, 8, 9]),
        (0, [0, 1, 2]),
        (np.int64(7), [7, 8, 9]),
        (torch.tensor(7), [7, 8, 9]),
        ([5, 5, 1], [5, 5, 1]),
        ((5, 6, 2**64 - 1), [5, 6, 2**64 - 1]),
        (range(3), [0, 1, 2]),
        (np.array([3, 2, 1]), [3, 2, 1]),
        (torch.tensor([3, 2, 1]), [3, 2, 1]),
    ],
)
def test_ways_to_write_seeds(seed: Any, expected: list[int]):
    found = resolve_seeds(seed, 3)
    assert found == expected
    assert all(type(value) is int for value in found)


def test_fresh_seeds():
    seeds = [resolve_seeds(None, 2) for _ in range(8)]
    assert all(b == a + 1 for a, b in seeds)
    assert len({a for a, _ in seeds}) > 1


@pytest.mark.parametrize(
    "seed", [-1, 1.0, "7", True, 2**64, 2**64 - 2, [1, 2], [1, 2, 3, 4], [1, 2, None], {1, 2, 3}]
)
def test_bad_seeds(seed: Any):
    with pytest.raises(InvalidArgumentError, match="seed"):
        resolve_seeds(seed, 3)


def test_ssg_from_what_a_caller_writes():
    assert resolve_ssg(None, {"ssg": {"beta": 2.0}}) is None  # off is off, whatever the default strength
    assert resolve_ssg(1, {}) == ScaledSpatialGuidance(1.0)
    given = ScaledSpatialGuidance(0.3, prior="dct")
    assert resolve_ssg(given, {"ssg": {"beta": 2.0}}) == given
    open_beta = ScaledSpatialGuidance(prior="dct")
    assert resolve_ssg(open_beta, {"ssg": {"beta": 2.0}}) == ScaledSpatialGuidance(2.0, prior="dct")
    for without in ({}, {"ssg": None}, {"ssg": {}}):
        assert resolve_ssg(open_beta, without) == ScaledSpatialGuidance(DEFAULT_BETA, prior="dct")
    assert resolve_ssg([0.0, 0.1], {}) == ScaledSpatialGuidance([0.0, 0.1])
    tuned = {"ssg": {"beta": 0.3, "schedule": "linear", "norm": "forward", "stop": None}}
    assert resolve_ssg(open_beta, tuned) == ScaledSpatialGuidance(
        0.3, schedule="linear", prior="dct", norm="forward"
    )
    assert resolve_ssg(0.6, tuned) == ScaledSpatialGuidance(0.6)
    assert default_ssg({"ssg": {"schedule": "linear"}}) == ScaledSpatialGuidance(
        DEFAULT_BETA, schedule="linear"
    )
    with pytest.raises(InvalidArgumentError, match=r"unknown settings \['strength'\]"):
        resolve_ssg(open_beta, {"ssg": {"strength": 1}})
    for wrong in ("0.5", True, object()):
        with pytest.raises(InvalidArgumentError, match="beta must be a number"):
            resolve_ssg(wrong, {})  # type: ignore[arg-type]


def test_cfg_from_what_a_caller_writes():
    assert resolve_cfg(1.5, "extra") == ClassifierFreeGuidance(1.5, convention="extra")
    given = ClassifierFreeGuidance(3.0, convention="interpolate")
    assert resolve_cfg(given, "extra") is given


def test_a_familys_ramp_spreads_single_numbers_only():
    held = resolve_cfg(2.0, "extra", "linear-hold")
    assert held == ClassifierFreeGuidance(2.0, ramp="linear-hold")
    assert held.scales(GRIDS) == (0.0, 1.0, 1.0)
    assert resolve_cfg([0, 1, 2], "extra", "linear-hold").scales(GRIDS) == (0.0, 1.0, 2.0)
    described = ClassifierFreeGuidance(2.0)
    assert resolve_cfg(described, "extra", "linear-hold") is described


def test_callables_become_their_values():
    cfg = with_values(ClassifierFreeGuidance(lambda s: s.index, convention="interpolate"), GRIDS)
    assert cfg == ClassifierFreeGuidance([0.0, 1.0, 2.0], convention="interpolate")
    ssg = with_values(ScaledSpatialGuidance(lambda s: 0.5, prior="nearest", remember="guided", stop=2), GRIDS)
    assert ssg == ScaledSpatialGuidance([0.0, 0.5, 0.0], prior="nearest", remember="guided", stop=2)
    for unchanged in (
        ClassifierFreeGuidance(1.5),
        ScaledSpatialGuidance([0, 1, 2]),
        ScaledSpatialGuidance(),
        None,
    ):
        assert with_values(unchanged, GRIDS) is unchanged


def test_batches():
    assert [(s.start, s.stop) for s in spans(5, 2)] == [(0, 2), (2, 4), (4, 5)]
    assert [(s.start, s.stop) for s in spans(2, 16)] == [(0, 2)]
    for wrong in (0, -1, 1.5, True, None):
        with pytest.raises(InvalidArgumentError, match="batch_size must be a positive whole number"):
            list(spans(3, wrong))  # type: ignore[arg-type]


def test_eight_bit_values_are_rounded():
    levels = torch.arange(256) / 255
    images = (levels * 2 - 1)[None, None, None].expand(1, 3, 1, 256)
    for nudge in (-0.4 / 255, 0.0, 0.4 / 255):
        (picture,) = convert_images((images + 2 * nudge).clamp(-1, 1), "pil")
        assert np.array_equal(np.asarray(picture)[0, :, 0], np.arange(256))


def test_given_maps_are_one_for_all_or_one_each():
    first, second = torch.tensor([[[1]], [[2]]]), torch.arange(8).view(2, 2, 2)
    each = given_maps([first, second.flatten(1)], GRIDS, 2)  # flat maps will do
    assert torch.equal(each[0], first) and torch.equal(each[1], second)
    assert [tuple(m.shape) for m in given_maps([first[:1], second[:1]], GRIDS, 5)] == [(5, 1, 1), (5, 2, 2)]
    bits = torch.ones(1, 4, 3, dtype=torch.bool)
    (found,) = given_maps([bits.view(1, 2, 2, 3)], [(2, 2)], 4)
    assert (found.shape, found.dtype) == ((4, 2, 2, 3), torch.int64)
    assert given_maps([bits], [(2, 2)], 1)[0].shape == (1, 2, 2, 3)
    assert given_maps([], GRIDS, 3) == []
    with pytest.raises(InvalidArgumentError, match="for 2 pictures, but 3 are made; give one or 3"):
        given_maps([first], GRIDS, 3)


def test_settings_of_a_call_can_be_stored():
    told = call_settings(
        family="some",
        model="name",
        prompts=["a"],
        seeds=[1],
        cfg=ClassifierFreeGuidance([1.0, 2.0, 3.0], convention="interpolate"),
        ssg=None,
        filters=Filters(temperature=[1, 0.5, 1], top_p=0.9),
        sampler="paired",
        dtype=torch.bfloat16,
    )
    back = json.loads(json.dumps(told))
    assert ClassifierFreeGuidance.from_dict(back["guidance_scale"]).scale == (1.0, 2.0, 3.0)
    assert (back["temperature"], back["dtype"], back["prompts"]) == ([1, 0.5, 1], "bfloat16", ["a"])
    assert (back["ssg"], back["top_p"], back["seeds"]) == (None, 0.9, [1])
