"""Tokens that a caller has, and generations that end early, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.families.golden_models import FAMILIES, GoldenModel, equal_tokens, golden_model

from nextscale.errors import InvalidArgumentError
from nextscale.scales import ScaleSchedule


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, golden: Path) -> GoldenModel:
    return golden_model(request.param, golden)


GUIDED: dict[str, Any] = {"ssg": 0.6, "guidance_scale": 2.0}


@pytest.mark.parametrize(
    ("sampler", "seed"), [("paired", 7), ("paired", 30), ("greedy", 7), ("multinomial", 11)]
)
def test_what_was_drawn_leads_to_the_same(sampler: str, seed: int, model: GoldenModel):
    """Numbers of a seed go on as if the given tokens had been drawn."""
    free = model(2, seed=seed, sampler=sampler, **GUIDED)
    for count in (1, 2, len(free.tokens)):
        given = model(2, seed=seed, sampler=sampler, given_tokens=free.tokens[:count], **GUIDED)
        assert equal_tokens(given, free)
        torch.testing.assert_close(given.images, free.images, rtol=0, atol=1e-6)
        assert given.settings["given_tokens"] == count


def test_others_are_kept_and_gone_on_from(model: GoldenModel):
    ours, theirs = model(seed=7, **GUIDED), model(seed=90, **GUIDED)
    mixed = model(seed=7, given_tokens=theirs.tokens[:2], batch_size=3, **GUIDED)
    assert equal_tokens(mixed.tokens[:2], theirs.tokens[:2])
    assert not equal_tokens(mixed.tokens[2:], ours.tokens[2:])
    one = model(seed=7, given_tokens=[t[:1] for t in theirs.tokens[:2]], **GUIDED)
    assert all(torch.equal(t, t[:1].expand_as(t)) for t in one.tokens[:2])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_early_end(steps: int, model: GoldenModel):
    whole, seen = model(**GUIDED), []
    early = model(stop_after=steps, on_step=lambda info: seen.append(info.feature_map.clone()), **GUIDED)
    assert equal_tokens(early.tokens, whole.tokens[:steps])
    assert early.images.shape == whole.images.shape
    assert not torch.equal(early.images, whole.images)
    assert early.settings["stop_after"] == steps
    assert len(seen) == steps
    schedule = ScaleSchedule(tuple(model.grids))
    expected = model.pipe.tokenizer.decode_progressive(early.tokens, schedule)[-1]
    torch.testing.assert_close(early.images, expected / 2 + 0.5, rtol=0, atol=1e-5)
    quick = model(stop_after=steps, **GUIDED)
    assert torch.equal(quick.images, early.images)
    assert torch.equal(model(stop_after=np.int64(steps), **GUIDED).images, early.images)


def test_all_scales_are_no_early_end(model: GoldenModel):
    whole = model(**GUIDED)
    assert torch.equal(model(stop_after=len(model.grids), **GUIDED).images, whole.images)
    assert whole.settings["stop_after"] is None
    assert whole.settings["given_tokens"] == 0


def test_nothing_but_given_tokens(model: GoldenModel):
    whole = model(**GUIDED)
    early = model(seed=90, stop_after=2, given_tokens=whole.tokens[:2], **GUIDED)
    assert torch.equal(early.images, model(stop_after=2, **GUIDED).images)


def test_what_does_not_fit(model: GoldenModel):
    tokens, count = model(**GUIDED).tokens, len(model.grids)
    for wrong in (0, count + 1, -1, True, 1.5, "2"):
        with pytest.raises(InvalidArgumentError, match=f"stop_after must be 1 to {count} scales, got"):
            model(stop_after=wrong)
    with pytest.raises(InvalidArgumentError, match=r"3 maps of given_tokens for 2 scales"):
        model(stop_after=2, given_tokens=tokens[:3])
    with pytest.raises(InvalidArgumentError, match=f"{count + 1} maps of given_tokens for {count} scales"):
        model(given_tokens=[*tokens, tokens[-1]])
    with pytest.raises(InvalidArgumentError):
        model(given_tokens=tokens[1:])
    with pytest.raises(InvalidArgumentError):
        model(given_tokens=[tokens[0] + 10**6])
    with pytest.raises(InvalidArgumentError, match="given_tokens are for 2 pictures, but 4 are made"):
        model(given_tokens=[t[:2] for t in tokens[:1]])


def test_given_tokens_are_no_mixtures(golden: Path):
    """Smoothing mixes the codes of what is drawn, never of what a caller has."""
    for family in ("var", "hart"):
        model = golden_model(family, golden)
        own: dict[str, Any] = {"residual": False} if family == "hart" else {}
        free = model(2, more_smooth=False, **own)
        given = model(2, more_smooth=True, given_tokens=free.tokens, **own)
        torch.testing.assert_close(given.images, free.images, rtol=0, atol=1e-5)
        part = model(2, more_smooth=True, given_tokens=free.tokens[:2], **own)
        assert not torch.allclose(part.images, free.images, atol=1e-3)
