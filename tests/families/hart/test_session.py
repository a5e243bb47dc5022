"""The last scale in parts, the residual, and what a session draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextscale import ClassifierFreeGuidance, HARTPipeline, ScaledSpatialGuidance
from nextscale.errors import InvalidArgumentError
from nextscale.families.hart.diffusion import LATENT_SCALE
from nextscale.families.hart.session import HARTNoise, HARTSession, masked_counts
from nextscale.families.text import TextFeatures
from nextscale.generation.loop import StepInfo, generate
from nextscale.generation.noise import Noise
from nextscale.generation.tokens import Drawer, Filters
from nextscale.guidance import spatial_prior
from nextscale.guidance.base import GuidanceChain


def run(
    pipe: HARTPipeline,
    text: TextFeatures,
    *,
    scale: float = 2.0,
    ssg: ScaledSpatialGuidance | None = None,
    **options: Any,
) -> tuple[HARTSession, list[Tensor], list[StepInfo]]:
    """A greedy run under classifier-free guidance."""
    chain = GuidanceChain([ClassifierFreeGuidance(scale, ramp="linear-hold"), ssg])
    options.setdefault("noise", HARTNoise.draw(Noise(range(len(text))), pipe.transformer))
    options.setdefault("guidance", scale)
    session = HARTSession(pipe.transformer, pipe.tokenizer, text, chain.branches, **options)
    seeds = list(range(len(text)))
    draw = Drawer("greedy", Filters(), seeds, torch.device("cpu"))
    steps: list[StepInfo] = []
    return session, generate(session, chain, draw, steps.append), steps


# ---------------------------------------------------------------------- how many cells at a time


def test_published_numbers_of_cells():
    def predicted(iterations: int) -> list[int]:
        return [a - b for a, b in pairwise(masked_counts(4096, iterations))]

    assert predicted(1) == [4096]
    assert predicted(2) == [1200, 2896]
    assert predicted(4) == [312, 888, 1329, 1567]


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_every_iteration_predicts_something(sizes: tuple[int, int]):
    cells, iterations = sizes
    counts = masked_counts(cells, iterations)
    assert len(counts) == iterations + 1
    assert (counts[0], counts[-1]) == (cells, 0)
    assert all(a > b for a, b in pairwise(counts))


@pytest.mark.parametrize("iterations", [0, -1, 17, 2.0, True, "2", None])
def test_iterations_that_are_none(iterations: Any):
    with pytest.raises(InvalidArgumentError, match="mask_iterations must be a whole number from 1 to 16"):
        masked_counts(16, iterations)


# ---------------------------------------------------------------------- draws


def test_draws_are_an_images_own(tiny: Callable):
    transformer = tiny().transformer
    together = HARTNoise.draw(Noise([3, 4]), transformer)
    assert together.order.shape == (2, 16)
    assert together.residual.shape == (4, 2, 16, 8)
    for row, seed in enumerate((3, 4)):
        alone = HARTNoise.draw(Noise([seed]), transformer)
        assert torch.equal(together.order[row], alone.order[0])
        assert torch.equal(together.residual[:, row], alone.residual[:, 0])
        assert sorted(together.order[row].tolist()) == list(range(16))
    assert not torch.equal(together.order[0], together.order[1])


def test_every_place_of_the_order_is_as_likely_for_every_cell(tiny: Callable):
    order = HARTNoise.draw(Noise(range(8000)), tiny().transformer).order
    counts = torch.stack([order[:, place].bincount(minlength=16) for place in range(16)]).double()
    assert float(((counts - 500).square() / 500).sum()) < 225 + 6 * math.sqrt(2 * 225)


# ---------------------------------------------------------------------- parts


@pytest.mark.parametrize("parts", [2, 3, 5, 16])
@torch.no_grad()
def test_parts_cover_the_last_scale_once(parts: int, tiny: Callable, prompts: Callable):
    pipe, text = tiny(), prompts(2)
    session, tokens, infos = run(pipe, text, mask_iterations=parts)
    steps = session.steps()
    assert [s.index for s in steps] == [0, 1, 2, *[3] * parts]
    assert all(s.positions is None for s in steps[:3])
    seen: list[Tensor] = []
    order = session.noise.order
    for info, step, before, after in zip(
        infos[3:], steps[3:], session.masked, session.masked[1:], strict=False
    ):
        at = step.positions
        assert torch.equal(at, order[:, after:before].sort(1).values)
        seen.append(at)
        # Cells that are still to come have no token yet, and the others keep theirs.
        drawn = torch.cat(seen, 1).sort(1).values
        flat = info.tokens.flatten(1)
        assert bool((flat.gather(1, drawn) >= 0).all())
        assert int((flat < 0).sum()) == 2 * (16 - drawn.shape[1])
    assert torch.equal(torch.cat(seen, 1).sort(1).values, torch.arange(16).expand(2, -1))
    assert torch.equal(tokens[-1], infos[-1].tokens)
    assert all(cache.length == pipe.transformer.config.sequence_length for cache in session.caches)


@torch.no_grad()
def test_the_sum_grows_by_the_cells_of_a_part(tiny: Callable, prompts: Callable):
    pipe, text = tiny(), prompts(2)
    session, tokens, infos = run(pipe, text, mask_iterations=3, residual=False)
    for step, info, before in zip(session.steps()[3:], infos[3:], infos[2:], strict=False):
        grown = (info.feature_map - before.feature_map).flatten(2)  # (B, z, 16)
        touched = torch.zeros(2, 16, dtype=torch.bool).scatter(1, step.positions, True)
        assert torch.equal(grown.abs().amax(1) > 0, touched)
    whole = pipe.tokenizer.partial_sums(tokens)[-1]
    torch.testing.assert_close(session.feature_map, whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_parts_see_those_before_them(tiny: Callable, prompts: Callable):
    """The first scales are the same in any number of parts; later parts differ from one whole pass."""
    pipe, text = tiny(), prompts(2)
    _, whole_tokens, whole = run(pipe, text)
    session, tokens, infos = run(pipe, text, mask_iterations=2)
    assert all(torch.equal(a, b) for a, b in zip(whole_tokens[:3], tokens[:3], strict=True))
    first, second = (s.positions for s in session.steps()[3:])
    at = [whole[3].logits.gather(1, p[..., None].expand(-1, -1, 24)) for p in (first, second)]
    assert not torch.allclose(at[0], infos[3].logits, atol=1e-2)  # the whole pass sees more cells
    assert not torch.allclose(at[1], infos[4].logits, rtol=0, atol=0)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "ssg",
    [
        ScaledSpatialGuidance(0.7),
        ScaledSpatialGuidance(1.2, prior="bilinear", norm="forward"),
        ScaledSpatialGuidance(0.5, remember="guided"),
    ],
    ids=str,
)
@torch.no_grad()
def test_guided_logits_of_the_last_scale_are_the_definition(
    ssg: ScaledSpatialGuidance, parts: int, tiny: Callable, prompts: Callable
):
    """The prior covers the whole grid and is read at the cells that are being predicted."""
    pipe, text = tiny(), prompts(2)
    session, _, infos = run(pipe, text, ssg=ssg, mask_iterations=parts)
    grids = pipe.schedule.grids
    before = infos[2].guided if ssg.remember == "guided" else infos[2].logits
    prior = spatial_prior(before, coarse=grids[2], fine=grids[3], kind=ssg.prior, norm=ssg.norm)
    for step, info in zip(session.steps()[3:], infos[3:], strict=True):
        here = prior
        if step.positions is not None:
            here = prior.gather(1, step.positions[..., None].expand(-1, -1, 24))
        expected = info.logits + ssg.betas(grids)[3] * (info.logits - here)
        torch.testing.assert_close(info.guided, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(info.guided, info.logits, atol=1e-2)


# ---------------------------------------------------------------------- the residual


@pytest.mark.parametrize("parts", [1, 3])
@torch.no_grad()
def test_the_residual_is_added_at_the_last_scale_only(parts: int, tiny: Callable, prompts: Callable):
    pipe, text = tiny(), prompts(2)
    _, plain_tokens, plain = run(pipe, text, residual=False, mask_iterations=parts)
    _, tokens, infos = run(pipe, text, mask_iterations=parts)
    assert all(torch.equal(a, b) for a, b in zip(plain_tokens, tokens, strict=True))
    for a, b in zip(plain[:3], infos[:3], strict=True):
        assert torch.equal(a.feature_map, b.feature_map)
    added = infos[-1].feature_map - plain[-1].feature_map
    assert 0.1 < float(added.std()) < LATENT_SCALE
    assert float(added.abs().max()) <= LATENT_SCALE + 1e-5


@pytest.mark.parametrize("scale", [2.0, 0.0, 1.5])
@torch.no_grad()
def test_the_residual_is_drawn_under_what_the_tokens_were_drawn_from(
    scale: float, tiny: Callable, prompts: Callable
):
    """Guidance 0 has no second branch; in the head, guidance 1 is special and none."""
    pipe, text = tiny(), prompts(2)
    cfg = ClassifierFreeGuidance(scale, ramp="linear-hold").scales(pipe.schedule.grids)[-1]
    assert cfg == pytest.approx(scale * 2 / 3)
    session, tokens, infos = run(pipe, text, scale=scale, guidance=cfg)
    _, _, plain = run(pipe, text, scale=scale, residual=False)
    codes = pipe.tokenizer.quantize.embedding(tokens[-1].flatten(1))
    rows = len(session.branches)
    z = pipe.transformer.residual_condition(session.hidden, codes.repeat(rows, 1, 1))
    drawn = pipe.transformer.diffloss.sample(z, cfg if rows == 2 else None, session.noise.residual)
    added = infos[-1].feature_map - plain[-1].feature_map
    torch.testing.assert_close(added.flatten(2).transpose(1, 2), drawn, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_head_is_told_the_drawn_tokens_where_mixtures_are_shown(tiny: Callable, prompts: Callable):
    pipe, text = tiny(), prompts(1)
    z: list[Tensor] = []
    hook = pipe.transformer.decoder_norm.register_forward_hook(lambda _m, _i, out: z.append(out))

    def ones(guided: Tensor, step: Any, codebook: Tensor) -> Tensor:
        return torch.ones(*guided.shape[:2], codebook.shape[1])

    session, tokens, _ = run(pipe, text, smooth=ones)
    hook.remove()
    codes = pipe.tokenizer.quantize.embedding(tokens[-1].flatten(1)).repeat(2, 1, 1)
    expected = pipe.transformer.residual_condition(session.hidden, codes)
    torch.testing.assert_close(z[0], expected)
    _, _, plain = run(pipe, text, smooth=ones, residual=False)
    last = plain[-1].feature_map - plain[-2].feature_map
    torch.testing.assert_close(last, torch.ones_like(last))  # mixtures take the codes' place in the sum


@torch.no_grad()
def test_given_tokens_are_shown_as_they_are(tiny: Callable, prompts: Callable):
    pipe, text = tiny(), prompts(1)
    mixed: list[int] = []

    def smooth(guided: Tensor, step: Any, codebook: Tensor) -> Tensor:
        mixed.append(step.index)
        return torch.ones(*guided.shape[:2], codebook.shape[1])

    _, tokens, infos = run(pipe, text, smooth=smooth, given=2)
    assert mixed == [2, 3]
    sums = pipe.tokenizer.partial_sums(tokens)
    torch.testing.assert_close(infos[1].feature_map, sums[1])
    assert not torch.allclose(infos[2].feature_map, sums[2], atol=1e-3)


# ---------------------------------------------------------------------- branches


@torch.no_grad()
def test_the_unconditional_branch_knows_no_prompt(tiny: Callable, prompts: Callable):
    pipe = tiny()
    text = prompts(3)
    draws = HARTNoise.draw(Noise([0, 1, 2]), pipe.transformer)
    session = HARTSession(pipe.transformer, pipe.tokenizer, text, ("cond", "uncond"), noise=draws)
    logits = session.predict(session.steps()[0])
    assert list(logits) == ["cond", "uncond"]
    assert logits["cond"].shape == (3, 1, 24)
    assert torch.equal(logits["uncond"][:1].expand(3, -1, -1), logits["uncond"])
    assert not torch.allclose(logits["cond"][0], logits["cond"][1], atol=1e-2)


def test_features_of_another_encoder(tiny: Callable, prompts: Callable):
    pipe = tiny()
    draws = HARTNoise.draw(Noise([0]), pipe.transformer)
    with pytest.raises(InvalidArgumentError, match=r"text features \(B, 6, 12\)"):
        HARTSession(pipe.transformer, pipe.tokenizer, prompts(1, width=11), noise=draws)
