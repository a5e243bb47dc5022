"""The loop with a session small enough to be checked by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.generation.loop import StepInfo, generate
from nextscale.generation.tokens import Drawer, Filters
from nextscale.guidance import ClassifierFreeGuidance, ScaledSpatialGuidance, spatial_prior
from nextscale.guidance.base import Grid, GuidanceChain, GuidanceStep
from nextscale.scales import ScaleSchedule

VOCAB = 6


class Counting:
    """A whole model in a few lines: logits depend on the label, the step, and the tokens accepted so far."""

    def __init__(self, labels: Sequence[int], branches: Sequence[str], fail_at: int | None = None) -> None:
        self.schedule = ScaleSchedule.from_sides([1, (1, 2), (2, 3)])
        self.labels, self.branches, self.fail_at = torch.tensor(labels), branches, fail_at
        self.feature_map = torch.zeros(len(labels), 1, 2, 3)
        self.log: list[str] = []

    def steps(self) -> list[GuidanceStep]:
        return [GuidanceStep(k, self.schedule.grids) for k in range(self.schedule.num_steps)]

    def predict(self, step: GuidanceStep) -> dict[str, Tensor]:
        if step.index == self.fail_at:
            raise RuntimeError("out of memory")
        self.log.append(f"predict {step.index}")
        cells = torch.arange(self.schedule.lengths[step.index])[None, :, None]
        base = (self.labels[:, None, None] + cells + torch.arange(VOCAB)) * (step.index + 1)
        seen = self.feature_map.mean((1, 2, 3))[:, None, None]
        cond = torch.sin(base + seen)
        return {b: cond if b == "cond" else torch.cos(base * 1.0) for b in self.branches}

    def accept(self, step: GuidanceStep, tokens: Tensor, guided: Tensor) -> None:
        assert tokens.shape == guided.shape[:2]
        self.log.append(f"accept {step.index}")
        self.feature_map = self.feature_map + tokens.float().mean(1)[:, None, None, None]


@dataclass(frozen=True)
class Noting:
    """A guidance method that adds to the logits and writes down when it begins and ends."""

    name: str
    events: list[str] = field(compare=False)
    fail_at: int | None = None
    branches: tuple[str, ...] = ("cond",)

    def begin(self, grids: Sequence[Grid]) -> Any:
        self.events.append(f"begin {self.name}")
        return _NotingState(self)


class _NotingState:
    def __init__(self, method: Noting) -> None:
        self.method = method

    def __call__(self, step: GuidanceStep, branches: Mapping[str, Tensor]) -> Tensor:
        if step.index == self.method.fail_at:
            raise ValueError("no guidance today")
        return branches["cond"] + 1

    def end(self) -> None:
        self.method.events.append(f"end {self.method.name}")


def drawer(session: Counting, **options: Any) -> Drawer:
    seeds = list(range(len(session.labels)))
    return Drawer(
        options.pop("sampler", "paired"),
        Filters(**options),
        seeds,
        torch.device("cpu"),
    )


def test_order_shapes_and_results():
    session = Counting([0, 4], ["cond"])
    steps: list[StepInfo] = []
    tokens = generate(session, GuidanceChain(), drawer(session, sampler="greedy"), steps.append)
    assert session.log == ["predict 0", "accept 0", "predict 1", "accept 1", "predict 2", "accept 2"]
    assert [tuple(t.shape) for t in tokens] == [(2, 1, 1), (2, 1, 2), (2, 2, 3)]
    assert [(s.index, s.grid) for s in steps] == [(0, (1, 1)), (1, (1, 2)), (2, (2, 3))]
    total = torch.zeros(2)
    for step, drawn in zip(steps, tokens, strict=True):
        assert step.tokens is drawn
        assert torch.equal(drawn.flatten(1), step.guided.argmax(-1))
        total += drawn.float().mean((1, 2))
        torch.testing.assert_close(step.feature_map[:, 0, 0, 0], total)  # with this step's tokens


def test_without_a_callback():
    a, b = Counting([1], ["cond"]), Counting([1], ["cond"])
    plain = generate(a, GuidanceChain(), drawer(a))
    watched = generate(b, GuidanceChain(), drawer(b), lambda step: None)
    assert all(torch.equal(x, y) for x, y in zip(plain, watched, strict=True))


def test_guidance_acts_in_order_between_model_and_draw():
    chain = GuidanceChain([ClassifierFreeGuidance(2.0), ScaledSpatialGuidance(0.5)])
    session = Counting([0, 3], chain.branches)
    steps: list[StepInfo] = []
    generate(session, chain, drawer(session, temperature=0.7, top_k=4), steps.append)
    fresh = Counting([0, 3], chain.branches)
    grids = fresh.schedule.grids
    for k, step in enumerate(steps):
        both = fresh.predict(GuidanceStep(k, grids))
        t = 2.0 * k / 2
        combined = (1 + t) * both["cond"] - t * both["uncond"]
        torch.testing.assert_close(step.logits, combined)
        expected = combined
        if k:
            prior = spatial_prior(steps[k - 1].logits, coarse=grids[k - 1], fine=grids[k])
            expected = 1.5 * combined - 0.5 * prior
        torch.testing.assert_close(step.guided, expected, rtol=1e-4, atol=1e-5)
        fresh.accept(GuidanceStep(k, grids), step.tokens.flatten(1), step.guided)


class InParts(Counting):
    """The same, but the last grid comes in two parts."""

    parts = (torch.tensor([[4, 1], [0, 5]]), torch.tensor([[0, 2, 3, 5], [1, 2, 3, 4]]))

    def steps(self) -> list[GuidanceStep]:
        grids = self.schedule.grids
        return [*super().steps()[:2], *(GuidanceStep(2, grids, p) for p in self.parts)]

    def predict(self, step: GuidanceStep) -> dict[str, Tensor]:
        whole = super().predict(step)
        if step.positions is None:
            return whole
        index = step.positions[..., None].expand(-1, -1, VOCAB)
        return {b: logits.gather(1, index) for b, logits in whole.items()}

    def accept(self, step: GuidanceStep, tokens: Tensor, guided: Tensor) -> None:
        if step.index < 2:  # the parts of the last grid do not see each other
            super().accept(step, tokens, guided)


def test_a_grid_in_parts_is_the_same_grid():
    whole, parts = Counting([0, 4], ["cond"]), InParts([0, 4], ["cond"])
    steps: list[StepInfo] = []
    expected = generate(whole, GuidanceChain([ScaledSpatialGuidance(0.5)]), drawer(whole))
    tokens = generate(parts, GuidanceChain([ScaledSpatialGuidance(0.5)]), drawer(parts), steps.append)
    assert len(tokens) == 3 and all(torch.equal(a, b) for a, b in zip(tokens, expected, strict=True))
    assert [s.index for s in steps] == [0, 1, 2, 2]
    assert (steps[2].tokens == -1).flatten(1).sum(1).tolist() == [4, 4]  # still to come


def test_filtering_leaves_the_reported_logits_whole():
    session = Counting([0], ["cond"])
    steps: list[StepInfo] = []
    generate(session, GuidanceChain(), drawer(session, top_k=1), steps.append)
    assert all(torch.isfinite(s.guided).all() for s in steps)


@pytest.mark.parametrize("where", ["nowhere", "predict", "guidance", "callback", "begin"])
def test_guidance_always_ends(where: str):
    events: list[str] = []
    session = Counting([0], ["cond"], fail_at=1 if where == "predict" else None)
    methods: list[Any] = [
        Noting("a", events),
        Noting("b", events, fail_at=2 if where == "guidance" else None),
    ]
    if where == "begin":
        methods.append(ScaledSpatialGuidance([0.5]))  # one value for three steps: it cannot begin

    def callback(step: StepInfo) -> None:
        if where == "callback" and step.index == 1:
            raise KeyboardInterrupt

    expected = {
        "predict": RuntimeError,
        "guidance": ValueError,
        "callback": KeyboardInterrupt,
        "begin": ValueError,
    }
    if where == "nowhere":
        generate(session, GuidanceChain(methods), drawer(session), callback)
    else:
        with pytest.raises(expected[where]):
            generate(session, GuidanceChain(methods), drawer(session), callback)
    assert events == ["begin a", "begin b", "end b", "end a"]


def test_no_gradients_are_recorded():
    session = Counting([0], ["cond"])
    session.feature_map.requires_grad_(True)
    steps: list[StepInfo] = []
    generate(session, GuidanceChain(), drawer(session), steps.append)
    assert not any(s.logits.requires_grad or s.feature_map.requires_grad for s in steps)
    assert torch.is_grad_enabled()
