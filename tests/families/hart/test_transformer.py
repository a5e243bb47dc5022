"""Cached generation and teacher forcing are the same function, and other facts about the transformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import HARTPipeline
from nextscale.errors import GridError, InvalidArgumentError
from nextscale.families.hart.session import HARTNoise, HARTSession
from nextscale.families.hart.transformer import HARTTransformerConfig, RMSNorm
from nextscale.families.text import TextFeatures
from nextscale.generation.noise import Noise

VARIANTS: list[dict[str, Any]] = [
    dict(),
    dict(shared_aln=False),
    dict(shared_aln=False, disable_aln=False),
    dict(shared_aln=False, disable_aln=False, pooling="avg"),
    dict(attn_l2_norm=True, use_timestep_embed=False, use_context_norm=False),
    dict(patch_nums=[(1, 1), (2, 3), (3, 5)], depth=1, num_heads=4),
]


def noise(pipe: HARTPipeline, count: int) -> HARTNoise:
    return HARTNoise.draw(Noise(range(count)), pipe.transformer)


def encoded(pipe: HARTPipeline, count: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Tokens of random pictures, what the last ones were chosen from, and teacher-forcing inputs."""
    h, w = pipe.image_size
    images = torch.rand(count, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens, rest = pipe.tokenizer.encode_hybrid(images)
    return tokens, rest, pipe.tokenizer.next_inputs(tokens)


def cached_logits(
    pipe: HARTPipeline, text: TextFeatures, tokens: list[Tensor], **options: Any
) -> list[Tensor]:
    session = HARTSession(
        pipe.transformer, pipe.tokenizer, text, noise=noise(pipe, len(text)), residual=False, **options
    )
    found = []
    for step in session.steps():
        found.append(session.predict(step)["cond"])
        flat = tokens[step.index].flatten(1)
        flat = flat if step.positions is None else flat.gather(1, step.positions)
        session.accept(step, flat, found[-1])
    return found


@pytest.mark.parametrize("sizes", VARIANTS, ids=str)
@torch.no_grad()
def test_cached_and_teacher_forced_logits_agree(sizes: dict[str, Any], tiny: Callable, prompts: Callable):
    pipe, text = tiny(**{"patch_nums": [1, 2, 3, 4], **sizes}), prompts(3)
    tokens, _, inputs = encoded(pipe, 3)
    forced = pipe.transformer(text, inputs)
    assert forced.shape == (3, pipe.schedule.num_tokens, 24)
    assert forced.dtype == torch.float32
    cached = torch.cat(cached_logits(pipe, text, tokens), 1)
    assert float((cached - forced).abs().max() / forced.std()) < 1e-4


@torch.no_grad()
def test_the_first_part_of_the_last_scale_is_teacher_forcing_on_that_part(tiny: Callable, prompts: Callable):
    """It sees all coarser scales and itself, but none of the cells that are still to come."""
    pipe, text = tiny(), prompts(2)
    tokens, _, inputs = encoded(pipe, 2)
    options = dict(noise=noise(pipe, 2), residual=False, mask_iterations=3)
    session = HARTSession(pipe.transformer, pipe.tokenizer, text, **options)
    kept = session.steps()[-3].positions
    assert kept is not None
    forced = pipe.transformer(text, inputs, kept)
    assert forced.shape == (2, sum(n * n for n in (1, 2, 3)) + kept.shape[1], 24)
    cached = cached_logits(pipe, text, tokens, mask_iterations=3)
    found = torch.cat(cached[:-2], 1)
    assert float((found - forced).abs().max() / forced.std()) < 1e-4
    everything = pipe.transformer(text, inputs)[:, -16:].gather(1, kept[..., None].expand(-1, -1, 24))
    assert float((everything - forced[:, -kept.shape[1] :]).abs().max() / forced.std()) > 1e-2


@torch.no_grad()
def test_padding_is_looked_at_and_the_mask_tells_it_from_words(tiny: Callable, prompts: Callable):
    pipe, text = tiny(), prompts(2)  # one and two words behind five and four of padding
    _, _, inputs = encoded(pipe, 2)
    transformer = pipe.transformer
    whole = transformer(text, inputs)
    other = text.features.clone()
    other[:, 0] += 1.0
    assert not torch.allclose(transformer(TextFeatures(other, text.mask), inputs), whole, atol=1e-2)
    assert torch.equal(
        transformer.condition(TextFeatures(other, text.mask)).block, transformer.condition(text).block
    )
    shorter = text.mask.clone()
    shorter[1, -2] = False
    moved = transformer.condition(TextFeatures(text.features, shorter))
    assert moved.positions.tolist() == [[-1] * 5 + [0], [-1] * 5 + [0]]
    assert not torch.allclose(moved.block[1], transformer.condition(text).block[1], atol=1e-2)


@torch.no_grad()
def test_the_condition_is_as_defined(tiny: Callable, prompts: Callable):
    transformer, text = tiny().transformer, prompts(3)
    found = transformer.condition(text)
    features = text.features
    normed = features / (features.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    tokens = transformer.context_embed(normed * transformer.context_norm.weight)
    torch.testing.assert_close(found.tokens, tokens)
    means = torch.stack([t[m].mean(0) for t, m in zip(tokens, text.mask, strict=True)])
    torch.testing.assert_close(found.block, means)
    torch.testing.assert_close(found.head, tokens.amax(1))
    assert found.positions.tolist() == [
        [-1, -1, -1, -1, -1, 0],
        [-1, -1, -1, -1, 0, 1],
        [-1, -1, -1, 0, 1, 2],
    ]


@torch.no_grad()
def test_without_a_prompt_all_tokens_are_the_bias(tiny: Callable, prompts: Callable):
    transformer = tiny().transformer
    null = transformer.null_text(prompts(2))
    assert null.mask.tolist() == [[True] + [False] * 5] * 2
    condition = transformer.condition(null)
    bias = transformer.context_embed.bias
    torch.testing.assert_close(condition.tokens, bias.expand(2, 6, -1), rtol=0, atol=0)
    torch.testing.assert_close(condition.block, bias.expand(2, -1))
    assert condition.positions.tolist() == [[0] * 6] * 2


@torch.no_grad()
def test_padding_behind_repeats_the_last_position(tiny: Callable, prompts: Callable):
    transformer, text = tiny().transformer, prompts(2)
    behind = TextFeatures(text.features, text.mask.flip(1))
    assert transformer.condition(behind).positions.tolist() == [[0] * 6, [0, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("sizes", VARIANTS, ids=str)
def test_gradients_reach_every_parameter(sizes: dict[str, Any], tiny: Callable, prompts: Callable):
    pipe, text = tiny(**{"patch_nums": [1, 2, 3, 4], **sizes}), prompts(2)
    tokens, rest, inputs = encoded(pipe, 2)
    transformer = pipe.transformer.train().requires_grad_(True)
    kept = torch.stack([torch.randperm(pipe.schedule.lengths[-1])[:5] for _ in range(2)])
    hidden, condition = transformer.hidden(text, inputs, kept)
    logits = transformer.classify(hidden[:, transformer.config.context_token - 1 :], condition)
    targets = torch.cat([*(t.flatten(1) for t in tokens[:-1]), tokens[-1].flatten(1).gather(1, kept)], 1)
    codes = pipe.tokenizer.quantize.embedding(targets[:, -5:])
    target = rest.gather(1, kept[..., None].expand_as(codes)) - codes
    z = transformer.residual_condition(hidden[:, -5:], codes)
    drawn = transformer.diffloss.loss(
        target, z, torch.randint(1000, target.shape[:2]), torch.randn(target.shape)
    )
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + drawn.total.mean()
    loss.backward()
    silent = [n for n, p in transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@torch.no_grad()
def test_half_precision_keeps_the_sum_of_the_blocks_in_float32(tiny: Callable, prompts: Callable):
    exact, half, text = tiny(), tiny(), prompts(2)
    half.transformer.to(torch.bfloat16)
    inputs = encoded(exact, 2)[2]
    hidden, condition = half.transformer.hidden(text, inputs)
    assert hidden.dtype == condition.tokens.dtype == condition.block.dtype == torch.float32
    logits = half.transformer(text, inputs)
    assert logits.dtype == torch.float32
    wanted = exact.transformer(text, inputs)
    assert float((logits - wanted).abs().mean()) < 0.03 * float(wanted.std())


def test_rms_norm_rounds_before_it_weighs():
    norm, x = RMSNorm(8, 1e-6), torch.randn(3, 8)
    torch.nn.init.uniform_(norm.weight)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected * norm.weight)
    half = norm.to(torch.float16)(x.half())
    assert half.dtype == torch.float16
    rounded = (x.half().float() / (x.half().float().square().mean(-1, keepdim=True) + 1e-6).sqrt()).half()
    assert torch.equal(half, rounded * norm.weight)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(embed_dim=36, num_heads=6), "embed_dim must be a multiple of 4 num_heads"),
        (dict(pooling="mean"), "pooling must be max or avg, got 'mean'"),
        (dict(patch_nums=(2, 3)), "the first 1x1, got 2x2 3x3"),
        (dict(patch_nums=(1,)), "at least two grids"),
    ],
)
def test_sizes_that_no_model_can_have(sizes: dict[str, Any], message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        HARTTransformerConfig(**sizes)


def test_the_configuration_survives_json():
    config = HARTTransformerConfig(patch_nums=(1, (2, 3)), depth=2)
    assert HARTTransformerConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert HARTTransformerConfig().sequence_length == 9750
    assert HARTTransformerConfig().head_dim == 64


@pytest.mark.parametrize("shape", [(2, 28, 8), (2, 29, 7), (1, 29, 8), (29, 8)])
def test_inputs_of_another_shape(shape: tuple[int, ...], tiny: Callable, prompts: Callable):
    with pytest.raises(
        GridError, match=r"inputs must be \(2, 29, 8\) for 2 prompts and the grids 1x1 .* got"
    ):
        tiny().transformer(prompts(2), torch.zeros(shape))


@pytest.mark.parametrize(
    "kept", [[[0, 16]], [[0, 1], [0, 16]], [[-1], [0]], [[], []], [[0.0], [1.0]], [0, 1]]
)
def test_kept_cells_that_are_none(kept: Any, tiny: Callable, prompts: Callable):
    with pytest.raises(InvalidArgumentError, match=r"kept must be whole numbers \(2, m\) in 0..15"):
        tiny().transformer(prompts(2), torch.zeros(2, 29, 8), torch.tensor(kept))


@pytest.mark.parametrize(("tokens", "width"), [(5, 12), (6, 11)])
def test_features_of_another_encoder(tokens: int, width: int, tiny: Callable, prompts: Callable):
    with pytest.raises(
        InvalidArgumentError, match=r"takes text features \(B, 6, 12\), padding included, got"
    ):
        tiny().transformer.condition(prompts(2, tokens=tokens, width=width))
