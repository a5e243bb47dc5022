"""Guidance per picture: every picture is what it is alone with its own strength, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.families.golden_models import FAMILIES, GoldenModel, equal_tokens, golden_model

from nextscale import ClassifierFreeGuidance, ScaledSpatialGuidance
from nextscale.errors import InvalidArgumentError

# Sums in another order, as other batch sizes bring them, move pictures by some 1e-6. Tokens must not change.
ROUNDING = 5e-5


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, golden: Path) -> GoldenModel:
    return golden_model(request.param, golden)


def ramp(model: GoldenModel, top: float) -> list[float]:
    """One strength per step, the first of them neutral."""
    count = len(model.grids)
    return [model.neutral + top * k / (count - 1) for k in range(count)]


def alone(model: GoldenModel, together: Any, options: list[dict[str, Any]], **shared: Any) -> None:
    for row, own in enumerate(options):
        single = model([row], **shared, **own)
        for a, b in zip(single.tokens, together.tokens, strict=True):
            assert torch.equal(a[0], b[row]), row
        torch.testing.assert_close(single.images[0], together.images[row], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("batch_size", "seed"), [(1, 7), (3, 40), (16, 90)])
def test_a_number_for_each(batch_size: int, seed: int, model: GoldenModel):
    scales, betas = [model.neutral, 1.5, 4.0, 1.5], [0.0, 0.6, 1.2, 0.6]
    together = model(
        seed=seed,
        guidance_scale=[[s] for s in scales],
        ssg=[[b] for b in betas],
        batch_size=batch_size,
    )
    own = [{"guidance_scale": s, "ssg": b} for s, b in zip(scales, betas, strict=True)]
    alone(model, together, own, seed=seed)


def test_one_per_step_for_each(model: GoldenModel):
    scales = [ramp(model, top) for top in (0.0, 2.0, 5.0, 1.0)]
    betas = [[0.3 * row * (k % 2) for k in range(len(model.grids))] for row in range(4)]
    together = model(guidance_scale=np.array(scales), ssg=torch.tensor(betas, dtype=torch.float64))
    alone(model, together, [{"guidance_scale": s, "ssg": b} for s, b in zip(scales, betas, strict=True)])


@pytest.mark.parametrize(
    "ssg",
    [
        {"schedule": "bandwidth", "prior": "dct"},
        {"remember": "guided", "norm": "forward"},
        {"start": 2, "stop": 3},
    ],
    ids=str,
)
def test_descriptions(ssg: dict[str, Any], model: GoldenModel):
    convention = "extra" if model.family == "infinity" else "interpolate"  # not the family's own
    scales, betas = [1.0, 2.5, 0.0, 3.0], [0.9, 0.0, 0.4, 0.4]

    def options(scale: Any, beta: Any) -> dict[str, Any]:
        cfg = ClassifierFreeGuidance(scale, convention=convention, ramp="linear")
        return {"guidance_scale": cfg, "ssg": ScaledSpatialGuidance(beta, **ssg)}

    together = model(**options([[s] for s in scales], [[b] for b in betas]))
    alone(model, together, [options(s, b) for s, b in zip(scales, betas, strict=True)])


def test_ways_that_differ_within_a_family(model: GoldenModel):
    """HART's last scale in parts, Infinity's guidance of hidden states, VAR's mixtures of codes."""
    own = {
        "var": {"more_smooth": True},
        "hart": {"mask_iterations": 3},
        "infinity": {"guidance_layer": [0, -1]},
    }[model.family]
    scales = [model.neutral, 1.5, 4.0, 2.0]
    together = model(guidance_scale=[[s] for s in scales], ssg=[[0.5], [0.0], [1.0], [0.5]], **own)
    for row, scale in enumerate(scales):
        single = model([row], guidance_scale=scale, ssg=[0.5, 0.0, 1.0, 0.5][row], **own)
        for a, b in zip(single.tokens, together.tokens, strict=True):
            assert torch.equal(a[0], b[row])
        torch.testing.assert_close(single.images[0], together.images[row], rtol=0, atol=5e-3)


def test_strengths_that_agree_are_one(model: GoldenModel):
    each = model(guidance_scale=[[2.0]] * 4, ssg=[[0.6]] * 4)
    assert torch.equal(each.images, model(guidance_scale=2.0, ssg=0.6).images)
    off = model(guidance_scale=[[model.neutral]] * 4, ssg=[[0]] * 4)
    assert torch.equal(off.images, model(guidance_scale=model.neutral).images)


@pytest.mark.parametrize("sampler", ["paired", "greedy", "multinomial"])
def test_settings_make_them_again(sampler: str, model: GoldenModel):
    out = model(guidance_scale=[[1.0], [3.0], [2.0], [1.0]], ssg=[[0.6], [0], [1], [0.6]], sampler=sampler)
    told = json.loads(json.dumps(out.settings))
    assert told["guidance_scale"]["scale"] == [[1.0], [3.0], [2.0], [1.0]]
    assert told["ssg"]["beta"] == [[0.6], [0.0], [1.0], [0.6]]
    again = model(
        guidance_scale=ClassifierFreeGuidance.from_dict(told["guidance_scale"]),
        ssg=ScaledSpatialGuidance.from_dict(told["ssg"]),
        sampler=sampler,
    )
    assert equal_tokens(out, again)
    assert torch.equal(out.images, again.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": [[1.0]] * 3}, r"guidance_scale has 3 rows, .* but 4 are made; for all pictures"),
        ({"ssg": [[1.0]] * 5}, r"ssg has 5 rows, .* but 4 are made"),
        ({"guidance_scale": [[1.0, 2.0]] * 4}, r"scale\[0\] has 2 values"),
        ({"ssg": [[1.0], [1.0, 2.0], [1.0], [1.0]]}, "a row for each, all with one value"),
        ({"ssg": [[], [], [], []]}, "a row for each"),
        ({"ssg": [[1.0], 2.0, [1.0], [1.0]]}, "a row for each"),
        ({"ssg": [[1.0], [-1.0], [1.0], [1.0]]}, r"beta\[1\]\[0\] must be finite and at least 0; got -1"),
        ({"guidance_scale": [[1.0], [float("nan")], [1.0], [1.0]]}, r"scale\[1\]\[0\] must be finite"),
        ({"ssg": torch.ones(4, 1, 1)}, "must be a number"),
    ],
    ids=str,
)
def test_strengths_that_do_not_fit(options: dict[str, Any], message: str, model: GoldenModel):
    with pytest.raises(InvalidArgumentError, match=message):
        model(**options)
