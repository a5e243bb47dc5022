"""The semantic residual: known energies and entropies, and where guidance saturates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextscale import HARTPipeline, InfinityPipeline, VARPipeline
from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.residual import (
    BETAS,
    CURVES,
    STATISTICS,
    ResidualObserver,
    residual_statistics,
    saturation,
    settled_at,
)
from nextscale.families.hart.tokenizer import HARTTokenizer, HARTTokenizerConfig
from nextscale.families.hart.transformer import HARTTransformer, HARTTransformerConfig
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.text import TextFeatures
from nextscale.families.words import WordEncoder
from nextscale.generation.loop import StepInfo
from nextscale.guidance.prior import spatial_prior
from nextscale.guidance.ssg import ScaledSpatialGuidance, scaled_spatial_guidance

SIZES = {"coarse": (2, 2), "fine": (4, 4), "choices": 5}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics(
    logits: Tensor, residual: Tensor, guided: Tensor | None = None, **sizes: Any
) -> dict[str, Tensor]:
    found = residual_statistics(logits, residual, logits if guided is None else guided, **{**SIZES, **sizes})
    return dict(zip(STATISTICS, found.T, strict=True))


def curves(logits: Tensor, residual: Tensor, betas: tuple[float, ...], choices: int) -> dict[str, Tensor]:
    strengths = [logits + beta * residual for beta in betas]
    found = saturation(logits, residual, strengths, choices=choices)  # (B, 4, betas)
    return dict(zip(CURVES, found.movedim(1, 0), strict=True))


def test_constants_mean_nothing():
    """Logits mean the same with a number added to all choices, and so does what is measured of them."""
    logits, residual = noise(2, 16, 5), noise(2, 16, 5, seed=1)
    shift = noise(2, 16, 1, seed=2)
    for name, value in statistics(logits + shift, residual + 3 * shift).items():
        torch.testing.assert_close(value, statistics(logits, residual)[name], rtol=1e-4, atol=1e-5)
    nothing = statistics(logits, shift.expand(2, 16, 5))
    assert nothing["energy"].max() < 1e-10 and (nothing["new"] >= 0).all()
    assert nothing["entropy"].tolist() == pytest.approx([math.log(5)] * 2)


def test_energy_and_entropy_of_known_residuals():
    logits = torch.zeros(1, 16, 5)
    logits[..., 0] = 5.0  # centred: 4, -1, -1, -1, -1
    found = statistics(logits, 2 * logits)
    assert float(found["energy"]) == pytest.approx(4 * 20 / 5)
    assert float(found["share"]) == pytest.approx(4)
    p = torch.tensor([10.0, 0, 0, 0, 0]).softmax(0)
    assert float(found["entropy"]) == pytest.approx(float(torch.special.entr(p).sum()), rel=1e-4)
    assert float(found["predicted"]) == pytest.approx(float(found["guided"]))


def test_what_is_new_is_above_the_coarse_grids_frequencies():
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    channels = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0])
    for a, b, new in ((0, 0, 0), (1, 1, 0), (2, 0, 1), (1, 3, 1)):
        wave = torch.cos(math.pi * a * (y + 0.5) / 4) * torch.cos(math.pi * b * (x + 0.5) / 4)
        residual = (wave[..., None] * channels).reshape(1, 16, 5)
        assert float(statistics(torch.zeros(1, 16, 5), residual)["new"]) == pytest.approx(new, abs=1e-5)
    # The band-limited prior takes all frequencies of the coarse grid from a map that it was made from.
    coarse = noise(1, 4, 5)
    kept = spatial_prior(coarse, coarse=(2, 2), fine=(4, 4), kind="dct", norm="forward")
    assert float(statistics(kept, kept)["new"]) == pytest.approx(0, abs=1e-5)


@given(st.integers(0, 2**31), st.integers(2, 7), st.floats(0, 20), st.floats(0, 20))
def test_curves_rise_towards_the_limit(seed: int, choices: int, one: float, other: float):
    # In float64: the largest of these strengths costs float32 five of its digits.
    logits, residual = noise(3, 6, choices, seed=seed).double(), noise(3, 6, choices, seed=seed + 1).double()
    betas = (0.0, *sorted((one, other)), 1e5)
    found = curves(logits, residual, betas, choices)
    for name in ("kl", "settled", "reached"):
        assert (found[name].diff(dim=1) >= -1e-4 * (1 + found["kl"][:, -1:])).all(), name
    assert found["kl"][:, 0].max() < 1e-6 and (found["moved"][:, 0] == 0).all()
    assert (found["settled"][:, -1] == 1).all() and found["reached"][:, -1].min() > 0.8
    # What is settled in the end and was not at first has moved.
    torch.testing.assert_close(found["moved"][:, -1], 1 - found["settled"][:, 0])


def test_curves_are_what_they_say():
    logits, residual = noise(1, 1, 4).double(), noise(1, 1, 4, seed=3).double()
    found = curves(logits, residual, (0.0, 1.5), 4)
    p, q = (logits + 1.5 * residual).flatten().softmax(0), logits.flatten().softmax(0)
    assert float(found["kl"][0, 1]) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    limit = torch.zeros(4, dtype=torch.float64)
    limit[residual.flatten().argmax()] = 1
    assert 1 - float(found["reached"][0, 1]) == pytest.approx(float((p - limit).abs().sum() / 2), rel=1e-5)


def test_bits_are_decisions_of_their_own():
    logits, residual = noise(2, 16, 6), noise(2, 16, 6, seed=1)
    whole = curves(logits, residual, (0.0, 1.0), 2)
    parts = [curves(logits[..., i : i + 2], residual[..., i : i + 2], (0.0, 1.0), 2) for i in (0, 2, 4)]
    for name in CURVES:
        torch.testing.assert_close(whole[name], sum(p[name] for p in parts) / 3)
    energies = [statistics(logits[..., i : i + 2], residual[..., i : i + 2], choices=2) for i in (0, 2, 4)]
    together = statistics(logits, residual, choices=2)
    torch.testing.assert_close(together["energy"], sum(e["energy"] for e in energies) / 3)
    assert together["entropy"].max() <= math.log(2)


def test_where_a_curve_reaches_a_share():
    betas = (0.0, 1.0, 2.0)
    assert settled_at(betas, (0.1, 0.3, 0.7)) == pytest.approx(1.5)
    assert settled_at(betas, (0.6, 0.7, 0.9)) == 0.0
    assert settled_at(betas, (0.1, 0.2, 0.3)) is None
    assert settled_at(betas, (0.1, 0.5, 0.5)) == 1.0


# ---------------------------------------------------------------------------- in a generation


def observed(pipe: Any, subjects: Any, **options: Any) -> tuple[tuple[Tensor, Tensor], list[StepInfo]]:
    seen: list[StepInfo] = []
    observer = ResidualObserver()

    def on_step(info: StepInfo) -> None:
        observer(info)
        seen.append(info)

    pipe(subjects, seed=3, on_step=on_step, output_type="pt", **options)
    return observer.rows(), seen


def test_steps_of_a_generation(pipe: VARPipeline):
    (rows, found), seen = observed(pipe, [1, 2, 3], ssg=0.7, guidance_scale=2.0)
    assert rows.shape == (3, 3, len(STATISTICS)) and found.shape == (3, 3, 4, len(BETAS) + 1)
    grids = [(1, 1), (2, 2), (4, 4), (8, 8)]
    for k in (1, 2, 3):
        before, now = seen[k - 1].logits, seen[k].logits
        prior = spatial_prior(before, coarse=grids[k - 1], fine=grids[k])
        wanted = residual_statistics(
            now, now - prior, seen[k].guided, coarse=grids[k - 1], fine=grids[k], choices=32
        )
        torch.testing.assert_close(rows[:, k - 1], wanted)
        guided = scaled_spatial_guidance(now, before, coarse=grids[k - 1], fine=grids[k], beta=0.7)
        used = saturation(now, now - prior, [guided], choices=32)[..., 0]
        torch.testing.assert_close(found[:, k - 1, :, -1], used, rtol=1e-4, atol=1e-5)
    assert (found[..., 0, -1] > 0).all()


def test_pictures_of_several_batches_follow_one_another(pipe: VARPipeline):
    (rows, found), _ = observed(pipe, [0, 1, 2, 3, 4], batch_size=2, ssg=0.4)
    (alone, one), _ = observed(pipe, [0, 1, 2, 3, 4], batch_size=5, ssg=0.4)
    torch.testing.assert_close(rows, alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found, one, rtol=1e-3, atol=1e-3)


def test_the_prior_can_be_that_of_guided_logits(pipe: VARPipeline):
    ssg = ScaledSpatialGuidance(0.5, prior="bilinear", remember="guided")
    observer = ResidualObserver("bilinear", remember="guided", betas=(0.0, 0.5))
    pipe([4, 5], seed=0, ssg=ssg, on_step=observer, output_type="pt")
    _, found = observer.rows()
    # At the strength that was used, the curve passes through what was used.
    torch.testing.assert_close(found[..., 1], found[..., 2], rtol=1e-4, atol=1e-5)


def test_bits_of_a_generation():
    torch.manual_seed(0)
    transformer = InfinityTransformer(
        InfinityTransformerConfig(
            bits=4, depth=1, embed_dim=16, num_heads=2, ffn_dim=32, text_dim=16, text_length=64, pool_heads=2
        )
    )
    sizes = {"ch": 24, "encoder_ch_mult": (1,), "decoder_ch_mult": (1,), "num_res_blocks": 1}
    tokenizer = InfinityTokenizer(InfinityTokenizerConfig(bits=4, patch_nums=(1, 2, 4), **sizes))
    pipe = InfinityPipeline(transformer, tokenizer, text_encoder=WordEncoder(16))
    (rows, found), seen = observed(pipe, ["a fox", "a bird"], ssg=0.5, guidance_scale=2.0, batch_size=2)
    assert rows.shape == (2, 2, 6) and rows.isfinite().all() and found.isfinite().all()
    assert seen[-1].tokens.shape == (2, 4, 4, 4) and seen[-1].logits.shape == (2, 16, 8)
    prior = spatial_prior(seen[1].logits, coarse=(2, 2), fine=(4, 4))
    wanted = saturation(seen[2].logits, seen[2].logits - prior, [seen[2].guided], choices=2)[..., 0]
    torch.testing.assert_close(found[:, 1, :, -1], wanted)


def test_a_grid_in_parts_counts_once_it_is_whole():
    torch.manual_seed(0)
    common = {"vocab_size": 24, "z_channels": 8, "patch_nums": (1, 2, 4)}
    transformer = HARTTransformer(
        HARTTransformerConfig(
            **common,
            context_token=6,
            context_dim=16,
            depth=1,
            embed_dim=16,
            num_heads=2,
            mlp_hidden=32,
            diff_width=16,
            diff_depth=1,
            num_sampling_steps="2",
        )
    )
    blocks = {"ch": 8, "ch_mult": (1, 1), "num_res_blocks": 1, "norm_groups": 8}
    with torch.no_grad():
        for weight in transformer.parameters():
            if weight.ndim > 1:
                weight.copy_(noise(*weight.shape) / math.prod(weight.shape[1:]) ** 0.5)
    pipe = HARTPipeline(transformer, HARTTokenizer(HARTTokenizerConfig(**common, **blocks)))
    prompts = TextFeatures(noise(2, 6, 16), torch.ones(2, 6, dtype=torch.bool))
    (rows, _), seen = observed(pipe, prompts, ssg=0.5, mask_iterations=3, batch_size=2, residual=False)
    parts = [info for info in seen if info.index == 2]
    assert len(parts) == 3 and rows.shape == (2, 2, 6)
    # Put the parts together by hand: each has the cells that are drawn after it and were not before.
    whole, guided = torch.zeros(2, 16, 24), torch.zeros(2, 16, 24)
    done = torch.zeros(2, 16, dtype=torch.bool)
    for info in parts:
        now = info.tokens.flatten(1) >= 0
        for image in range(2):
            cells = (now & ~done)[image].nonzero().flatten()
            whole[image, cells], guided[image, cells] = info.logits[image], info.guided[image]
        done = now
    prior = spatial_prior(seen[1].logits, coarse=(2, 2), fine=(4, 4))
    torch.testing.assert_close(guided, whole + 0.5 * (whole - prior), rtol=1e-4, atol=1e-4)
    wanted = residual_statistics(whole, whole - prior, guided, coarse=(2, 2), fine=(4, 4), choices=24)
    torch.testing.assert_close(rows[:, 1], wanted)


def test_an_observer_needs_steps():
    with pytest.raises(InvalidArgumentError, match="no step after the first"):
        ResidualObserver().rows()
    observer = ResidualObserver()
    late = StepInfo(
        1, (1, 1), torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), torch.zeros(1, 1, 1), torch.zeros(1)
    )
    with pytest.raises(InvalidArgumentError, match="did not see the first step"):
        observer(late)
