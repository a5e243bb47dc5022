"""The hook for loops of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextscale import ScaledSpatialGuidance, ScaleSchedule
from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance import GuidanceStep, scaled_spatial_guidance, spatial_prior
from nextscale.integrations import SpatialGuidanceHook
from nextscale.integrations.hook import read_grids

GRIDS = [(1, 1), (2, 3), (4, 4), (5, 6)]


def logits_of(grids=GRIDS, channels=(7,), batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, h * w, *channels, generator=generator) for h, w in grids]


def guide_all(hook, logits, grids=GRIDS):
    hook.begin(grids)
    guided = [hook(step) for step in logits]
    hook.end()
    return guided


@pytest.mark.parametrize("channels", [(7,), (3, 2)], ids=["tokens", "bits"])
def test_every_step_is_the_formula(channels):
    logits = logits_of(channels=channels)
    before = [step.clone() for step in logits]
    guided = guide_all(SpatialGuidanceHook(0.6), logits)
    assert guided[0] is logits[0]
    for k in range(1, len(GRIDS)):
        expected = scaled_spatial_guidance(
            logits[k], logits[k - 1], coarse=GRIDS[k - 1], fine=GRIDS[k], beta=0.6, position_dim=1
        )
        assert torch.equal(guided[k], expected)
    assert all(map(torch.equal, logits, before))


@given(st.lists(st.floats(0, 2), min_size=4, max_size=4), st.integers(0, 4))
def test_it_is_what_the_library_does_itself(betas, start):
    ssg, logits = ScaledSpatialGuidance(betas, start=start), logits_of()
    state = ssg.begin(GRIDS)
    expected = [state(GuidanceStep(k, tuple(GRIDS)), {"cond": step}) for k, step in enumerate(logits)]
    assert all(map(torch.equal, guide_all(SpatialGuidanceHook(ssg), logits), expected))


def test_strength_zero_returns_the_logits_themselves():
    logits = logits_of()
    assert all(a is b for a, b in zip(guide_all(SpatialGuidanceHook(0.0), logits), logits, strict=True))


def test_logits_may_be_filtered_in_place():
    logits, filtered = logits_of(), logits_of()
    expected = guide_all(SpatialGuidanceHook(0.6), logits)
    hook = SpatialGuidanceHook(0.6)
    hook.begin(GRIDS)
    for step, right in zip(filtered, expected, strict=True):
        guided = hook(step)
        assert torch.equal(guided, right)
        guided.fill_(-torch.inf)
        step.fill_(-torch.inf)


def test_a_last_step_in_parts():
    logits, hook = logits_of(), SpatialGuidanceHook(0.6)
    hook.begin(GRIDS)
    for step in logits[:-1]:
        hook(step)
    prior = spatial_prior(logits[-2], coarse=GRIDS[-2], fine=GRIDS[-1])
    whole = 1.6 * logits[-1] - 0.6 * prior
    for cells in (torch.tensor([[4, 9], [0, 29]]), torch.tensor([[1, 2, 3], [7, 6, 5]])):
        index = cells[..., None].expand(-1, -1, 7)
        part = hook(logits[-1].gather(1, index), positions=cells)
        torch.testing.assert_close(part, whole.gather(1, index))
    assert hook.index == len(GRIDS) - 1


def test_it_counts():
    hook, logits = SpatialGuidanceHook(0.6), logits_of()
    assert (hook.index, hook.grids) == (0, ())
    hook.begin(GRIDS)
    hook(logits[0])
    hook(logits[1])
    assert (hook.index, hook.grids) == (2, tuple(GRIDS))
    hook.end()
    hook.end()
    assert (hook.index, hook.grids) == (0, ())


def test_begin_forgets_a_generation_that_failed():
    hook, logits = SpatialGuidanceHook(0.6), logits_of()
    expected = guide_all(hook, logits)
    hook.begin([(1, 1), (3, 3)])
    hook(torch.randn(5, 1, 4))
    assert all(map(torch.equal, guide_all(hook, logits), expected))
    hook.begin(GRIDS)
    with pytest.raises(GridError):
        hook.begin([])
    with pytest.raises(InvalidArgumentError, match="no grids yet"):
        hook(logits[0])


@pytest.mark.parametrize(
    "schedule",
    [
        (1, 2, 4),
        [(1, 1), (2, 2), (4, 4)],
        [(1, 1, 1), [1, 2, 2], np.array([1, 4, 4])],
        np.array([1, 2, 4]),
        torch.tensor([1, 2, 4]),
        ScaleSchedule.from_sides([1, 2, 4]),
    ],
    ids=["sides", "grids", "frames", "array", "tensor", "schedule"],
)
def test_ways_to_write_grids(schedule):
    assert read_grids(schedule) == ((1, 1), (2, 2), (4, 4))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], "at least one grid"),
        ([1, 0], r"grids\[1\]"),
        ([(1, 1), "ab"], r"grids\[1\]"),
        ([(1, 2, 3, 4)], r"grids\[0\]"),
        ([1.5], r"grids\[0\]"),
        ([(1, 1, 1), (5, 2, 2)], "not for 5 frames"),
        ([(2, 2), (1, 3)], "smaller"),
    ],
)
def test_grids_that_are_none(schedule, message):
    with pytest.raises(GridError, match=message):
        SpatialGuidanceHook(0.6).begin(schedule)


def test_misuse_is_explained():
    hook, logits = SpatialGuidanceHook(0.6), logits_of()
    with pytest.raises(InvalidArgumentError, match=r"call begin\(grids\)"):
        hook(logits[0])
    hook.begin(GRIDS)
    with pytest.raises(GridError, match=r"grid 1x1; expected logits \(B, 1, C\), got \(2, 6, 7\)"):
        hook(logits[1])
    hook(logits[0])
    with pytest.raises(GridError, match="only the last of the 4 steps"):
        hook(logits[1][:, :2], positions=torch.tensor([[0, 1], [2, 3]]))
    with pytest.raises(GridError, match="step 1"):
        hook(logits[1][0])
    for step in logits[1:]:
        hook(step)
    with pytest.raises(InvalidArgumentError, match="all 4 steps"):
        hook(logits[-1])
    hook.end()
    with pytest.raises(InvalidArgumentError, match=r"call begin\(grids\)"):
        hook(logits[0])


def test_the_settings_are_checked():
    assert SpatialGuidanceHook(0.3).ssg == ScaledSpatialGuidance(0.3)
    with pytest.raises(InvalidArgumentError, match="got None"):
        SpatialGuidanceHook(None)
    with pytest.raises(InvalidArgumentError, match="3 values, but the generation has 4 steps"):
        SpatialGuidanceHook([0.1, 0.2, 0.3]).begin(GRIDS)
