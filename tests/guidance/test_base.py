"""Chains of guidance methods: order, branches, and states that always end."""

from __future__ import annotations

import pytest
import torch

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance import (
    ClassifierFreeGuidance,
    GuidanceChain,
    GuidanceStep,
    ScaledSpatialGuidance,
    classifier_free_guidance,
    scaled_spatial_guidance,
)

GRIDS = ((1, 1), (2, 2), (3, 3))


class Tracked:
    """A complete method that adds a number and writes down when its states begin and end."""

    branches = ("cond",)

    def __init__(self, log, name, amount=1.0, fail_at=None):
        self.log, self.name, self.amount, self.fail_at = log, name, amount, fail_at

    def begin(self, grids):
        if self.fail_at == "begin":
            raise RuntimeError("begin")
        self.log.append(f"begin {self.name}")
        return TrackedState(self)


class TrackedState:
    def __init__(self, method):
        self.method = method

    def __call__(self, step, branches):
        assert set(branches) == {"cond"} or self.method.name == "a"
        return branches["cond"] + self.method.amount

    def end(self):
        self.method.log.append(f"end {self.method.name}")
        if self.method.fail_at == "end":
            raise RuntimeError("end")


def test_cfg_then_ssg():
    chain = GuidanceChain((ClassifierFreeGuidance(1.5), None, ScaledSpatialGuidance(0.6)))
    assert chain.branches == ("cond", "uncond")
    assert len(chain.methods) == 2
    before = None
    with chain.open(GRIDS) as guide:
        for index, grid in enumerate(GRIDS):
            cond, uncond = torch.randn(2, 2, grid[0] * grid[1], 5)
            result = guide(GuidanceStep(index, GRIDS), {"cond": cond, "uncond": uncond})
            combined = classifier_free_guidance(cond, uncond, scale=1.5 * (index / 2))
            assert torch.equal(result.logits, combined)
            expected = combined
            if before is not None:
                expected = scaled_spatial_guidance(
                    combined, before, coarse=GRIDS[index - 1], fine=grid, beta=0.6
                )
            assert torch.equal(result.guided, expected)
            before = combined


def test_an_empty_chain_guides_nothing():
    chain = GuidanceChain()
    assert chain.branches == ("cond",)
    logits = torch.randn(1, 1, 3)
    with chain.open(GRIDS) as guide:
        result = guide(GuidanceStep(0, GRIDS), {"cond": logits})
    assert result.logits is logits
    assert result.guided is logits


def test_without_cfg_the_reported_logits_are_the_conditional_ones():
    chain = GuidanceChain((Tracked([], "a"), Tracked([], "b", 10.0)))
    logits = torch.zeros(1, 1, 3)
    with chain.open(GRIDS) as guide:
        result = guide(GuidanceStep(0, GRIDS), {"cond": logits, "uncond": logits})
    assert result.logits is logits
    assert torch.equal(result.guided, logits + 11.0)


def test_neutral_cfg_needs_no_further_branch():
    chain = GuidanceChain((ClassifierFreeGuidance(0), ScaledSpatialGuidance(0.6)))
    assert chain.branches == ("cond",)
    logits = torch.randn(1, 1, 3)
    with chain.open(GRIDS) as guide:
        assert guide(GuidanceStep(0, GRIDS), {"cond": logits}).logits is logits


def test_states_end_in_reverse_order():
    log: list[str] = []
    with GuidanceChain((Tracked(log, "a"), Tracked(log, "b"))).open(GRIDS):
        assert log == ["begin a", "begin b"]
    assert log == ["begin a", "begin b", "end b", "end a"]


def test_states_end_when_the_loop_fails():
    log: list[str] = []
    with pytest.raises(ZeroDivisionError), GuidanceChain((Tracked(log, "a"), Tracked(log, "b"))).open(GRIDS):
        raise ZeroDivisionError
    assert log == ["begin a", "begin b", "end b", "end a"]


def test_states_that_began_end_when_a_later_one_cannot_begin():
    log: list[str] = []
    chain = GuidanceChain((Tracked(log, "a"), Tracked(log, "b", fail_at="begin")))
    with pytest.raises(RuntimeError, match="begin"), chain.open(GRIDS):
        pytest.fail("must not get here")
    assert log == ["begin a", "end a"]


def test_one_that_cannot_end_does_not_keep_others_from_it():
    log: list[str] = []
    chain = GuidanceChain((Tracked(log, "a"), Tracked(log, "b", fail_at="end")))
    with pytest.raises(RuntimeError, match="end"), chain.open(GRIDS):
        pass
    assert log == ["begin a", "begin b", "end b", "end a"]


def test_an_abandoned_generation_leaves_nothing_in_the_next():
    chain = GuidanceChain((ScaledSpatialGuidance(0.6),))
    logits = torch.randn(1, 4, 3)

    def interrupted():
        with chain.open(GRIDS) as guide:
            guide(GuidanceStep(0, GRIDS), {"cond": torch.randn(1, 1, 3)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with chain.open(GRIDS) as guide:
        assert guide(GuidanceStep(1, GRIDS), {"cond": logits}).guided is logits


def test_open_checks_settings_and_grids():
    with (
        pytest.raises(InvalidArgumentError, match=r"2 values.*3 steps"),
        GuidanceChain((ScaledSpatialGuidance([0, 1]),)).open(GRIDS),
    ):
        pytest.fail("must not get here")
    with pytest.raises(GridError, match=r"grids\[0\]"), GuidanceChain().open([(0, 1)]):
        pytest.fail("must not get here")


def test_open_accepts_lists_and_iterators():
    with GuidanceChain((ScaledSpatialGuidance(0.6),)).open(iter([[1, 1], [2, 2], [3, 3]])) as guide:
        guide(GuidanceStep(0, GRIDS), {"cond": torch.randn(1, 1, 3)})


def test_only_the_first_may_read_further_branches():
    with pytest.raises(InvalidArgumentError, match="must come first"):
        GuidanceChain((ScaledSpatialGuidance(0.6), ClassifierFreeGuidance(1.5)))
    with pytest.raises(InvalidArgumentError, match=r"0\.6 is no guidance method"):
        GuidanceChain((0.6,))


def test_chains_are_values():
    chain = GuidanceChain((ScaledSpatialGuidance(0.6),))
    assert chain == GuidanceChain([None, ScaledSpatialGuidance(0.6)])
    assert hash(chain) == hash(GuidanceChain([ScaledSpatialGuidance(0.6)]))


def test_missing_cond_and_steps_out_of_range():
    with GuidanceChain().open(GRIDS) as guide, pytest.raises(InvalidArgumentError, match="'cond'"):
        guide(GuidanceStep(0, GRIDS), {"uncond": torch.zeros(1, 1, 1)})
    for index in (-1, 3):
        with pytest.raises(InvalidArgumentError, match=f"step {index} is outside of a generation of 3 steps"):
            GuidanceStep(index, GRIDS)
    assert GuidanceStep(1, GRIDS).grid == (2, 2)
    assert GuidanceStep(1, GRIDS).num_steps == 3
