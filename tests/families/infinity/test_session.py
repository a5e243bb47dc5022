"""Cached generation against teacher forcing, and where guidance acts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.errors import GridError
from nextscale.families.infinity.session import InfinitySession
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.text import TextFeatures
from nextscale.generation.loop import StepInfo, generate
from nextscale.generation.tokens import Drawer, Filters
from nextscale.guidance import ClassifierFreeGuidance
from nextscale.guidance.base import GuidanceChain
from nextscale.scales import ScaleSchedule

SCHEDULE = ScaleSchedule(((1, 1), (1, 2), (2, 3), (3, 5), (4, 6)))
DEPTH = 3
SCALES = [2.0, 3.0, 1.0, 2.5, 1.0]

Models = tuple[InfinityTransformer, InfinityTokenizer]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "patchify"])
def models(request: pytest.FixtureRequest) -> Models:
    torch.manual_seed(0)
    config = InfinityTokenizerConfig(
        bits=3,
        ch=24,
        encoder_ch_mult=(1, 1),
        decoder_ch_mult=(1, 1),
        num_res_blocks=1,
        patchify=request.param,
    )
    transformer = InfinityTransformer(
        InfinityTransformerConfig(
            bits=config.token_bits,
            depth=DEPTH,
            embed_dim=32,
            num_heads=4,
            ffn_dim=64,
            text_dim=16,
            text_length=8,
            pool_heads=2,
        )
    )
    return (
        transformer.eval().requires_grad_(False),
        InfinityTokenizer(config).eval().requires_grad_(False),
    )


def some_text(lengths: list[int], seed: int = 1) -> TextFeatures:
    generator = torch.Generator().manual_seed(seed)
    return TextFeatures.from_packed(torch.randn(sum(lengths), 16, generator=generator), lengths)


def run(models: Models, text: TextFeatures, **options: Any) -> tuple[list[Tensor], list[StepInfo]]:
    session = InfinitySession(*models, SCHEDULE, text, **options)
    scales, layers = options.get("scales"), options.get("layers", (0,))
    cfg = ClassifierFreeGuidance(scales, convention="interpolate") if scales and 0 in layers else None
    draw = Drawer("paired", Filters(), list(range(len(text))), torch.device("cpu"), bits=True)
    steps: list[StepInfo] = []
    return generate(session, GuidanceChain([cfg]), draw, steps.append), steps


def forced(models: Models, text: TextFeatures, tokens: list[Tensor]) -> Tensor:
    transformer, tokenizer = models
    with torch.no_grad():
        return transformer(text, tokenizer.next_inputs(tokens, SCHEDULE), SCHEDULE)


def test_cached_steps_are_teacher_forcing(models: Models):
    text = some_text([5, 3, 8])
    tokens, steps = run(models, text)
    expected = forced(models, text, tokens)
    for k, step in enumerate(steps):
        torch.testing.assert_close(step.logits, expected[:, SCHEDULE.span(k)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("negative", [None, [2, 7, 4]])
def test_guided_logits_mix_both_texts(negative: list[int] | None, models: Models):
    text = some_text([5, 3, 8])
    other = None if negative is None else some_text(negative, seed=2)
    tokens, steps = run(models, text, negative=other, scales=SCALES)
    cond = forced(models, text, tokens)
    uncond = forced(models, models[0].unconditional(text) if other is None else other, tokens)
    for k, (step, s) in enumerate(zip(steps, SCALES, strict=True)):
        span = SCHEDULE.span(k)
        expected = s * cond[:, span] + (1 - s) * uncond[:, span]
        torch.testing.assert_close(step.logits, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("layer", [-1, -2])
def test_guidance_on_a_layer_mixes_its_output(layer: int, models: Models):
    """Both halves go on with the mixture, also where later blocks follow; steps of scale 1 have none."""
    blocks = models[0].blocks
    seen: dict[str, list[Tensor]] = {"out": [], "next": []}
    hooks = [blocks[layer].register_forward_hook(lambda _m, _a, out: seen["out"].append(out))]
    if layer != -1:
        after = blocks[layer + 1]
        hooks.append(after.register_forward_hook(lambda _m, args, _o: seen["next"].append(args[0])))
    norm = models[0].head_nm
    hooks.append(norm.register_forward_hook(lambda _m, args, _o: seen.setdefault("head", []).append(args[0])))
    run(models, some_text([5, 3]), scales=SCALES, layers=(layer,))
    for hook in hooks:
        hook.remove()
    for k, s in enumerate(SCALES):
        x = seen["out"][k]
        if s != 1:
            cond, uncond = x.chunk(2)
            x = (s * cond + (1 - s) * uncond).repeat(2, 1, 1)
        if layer == -1:
            torch.testing.assert_close(seen["head"][k], x[:2])
        else:
            torch.testing.assert_close(seen["next"][k], x)
        assert len(seen["head"][k]) == 2  # the head looks at the conditional rows only


def test_both_places_at_once(models: Models):
    text = some_text([5, 3])
    _, steps = run(models, text, scales=[2.0] * 5, layers=(0, -1))
    _, on_layer = run(models, text, scales=[2.0] * 5, layers=(-1,))
    # After the last block both halves are the same, but each goes through the head with its own text.
    assert not torch.allclose(steps[0].logits, on_layer[0].logits, atol=1e-4)


def test_unconditional_rows_end_with_the_last_guided_step(models: Models):
    rows: list[int] = []
    hook = models[0].blocks[0].register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    run(models, some_text([5, 3]), scales=SCALES)
    run(models, some_text([5, 3]), scales=[1.0] * 5)
    run(models, some_text([5, 3]))
    run(models, some_text([5, 3]), scales=[1, 1, 1, 1, 2.0])
    hook.remove()
    assert rows == [4, 4, 4, 4, 2] + [2] * 5 + [2] * 5 + [4] * 5


def test_stopping_early_changes_nothing_before(models: Models):
    text = some_text([5, 3])
    whole, steps = run(models, text, scales=SCALES)
    part, early = run(models, text, scales=SCALES, stop_after=3)
    assert len(part) == 3
    assert all(torch.equal(a, b) for a, b in zip(part, whole, strict=False))
    assert torch.equal(early[-1].feature_map, steps[2].feature_map)


def test_the_sum_is_the_tokenizers(models: Models):
    tokens, steps = run(models, some_text([5, 3]))
    sums = models[1].partial_sums(tokens, SCHEDULE)
    for step, expected in zip(steps, sums, strict=True):
        torch.testing.assert_close(step.feature_map, expected)
    assert steps[-1].feature_map.shape[2:] == models[1].cells(SCHEDULE).final


def test_the_first_scale_is_one_token(models: Models):
    with pytest.raises(GridError, match="begin with 1x1"):
        InfinitySession(*models, ScaleSchedule.from_sides([2, 4]), some_text([3]))
