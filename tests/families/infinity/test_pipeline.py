"""InfinityPipeline's promises: seeds, unequal prompts, guidance, sizes, settings, memory, and errors."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale import ClassifierFreeGuidance, InfinityPipeline, ScaledSpatialGuidance
from nextscale.errors import CheckpointError, GridError, InvalidArgumentError, NextscaleWarning
from nextscale.families.infinity.memory import estimate_memory
from nextscale.families.infinity.schedules import schedule_for
from nextscale.families.infinity.text import T5TextEncoder
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import SIZES, InfinityTransformer, InfinityTransformerConfig
from nextscale.families.text import TextFeatures
from nextscale.families.words import WordEncoder
from nextscale.generation.loop import StepInfo
from nextscale.generation.noise import Noise, Stream, uniform
from nextscale.generation.request import GenerationOutput
from nextscale.generation.tokens import Filters
from nextscale.guidance import spatial_prior
from nextscale.weights.layout import read_config

GRIDS = ((1, 1), (1, 2), (2, 3), (3, 5), (4, 6))
PROMPTS = ["a cat", "two small boats on a very calm sea", "dog"]  # of unequal lengths
# Sums in another order, as other batch sizes bring them, move pictures by some 1e-6. Bits must not change.
ROUNDING = 5e-5

TOKENIZER = dict(bits=3, ch=24, encoder_ch_mult=(1, 1), decoder_ch_mult=(1, 1), num_res_blocks=1)
TRANSFORMER = dict(depth=3, embed_dim=32, num_heads=4, ffn_dim=64, text_dim=16, text_length=12, pool_heads=2)


def make(
    *, patchify: bool = False, grids: Any = GRIDS, encoder: bool = True, seed: int = 0, **changes: Any
) -> InfinityPipeline:
    """A pipeline of random weights, with an encoder of words; pictures of 2 pixels per cell."""
    torch.manual_seed(seed)
    tokenizer_sizes = {k: changes.pop(k, v) for k, v in TOKENIZER.items()}
    config = InfinityTokenizerConfig(**tokenizer_sizes, patchify=patchify, patch_nums=grids)
    tokenizer = InfinityTokenizer(config)
    sizes = {**TRANSFORMER, **{k: changes.pop(k) for k in list(changes) if k in TRANSFORMER}}
    transformer = InfinityTransformer(InfinityTransformerConfig(bits=config.token_bits, **sizes))
    for p in transformer.parameters():  # livelier logits than fresh weights give
        p.data.mul_(1.5)
    for module in (transformer, tokenizer):
        module.eval().requires_grad_(False)
    words = WordEncoder(sizes["text_dim"]) if encoder else None
    return InfinityPipeline(transformer, tokenizer, text_encoder=words, **changes)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "patchify"])
def pipe(request: pytest.FixtureRequest) -> InfinityPipeline:
    return make(patchify=request.param)


@pytest.fixture(scope="module")
def plain() -> InfinityPipeline:
    return make()


@pytest.fixture(scope="module")
def published_sizes() -> InfinityPipeline:
    """One that takes every published size."""
    return make(grids=None, defaults={"pixels": "0.06M"})


def equal_tokens(a: GenerationOutput, b: GenerationOutput) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))


def trace(pipe: InfinityPipeline, *args: Any, **options: Any) -> tuple[GenerationOutput, list[StepInfo]]:
    steps: list[StepInfo] = []
    return pipe(*args, on_step=steps.append, output_type="pt", **options), steps


@contextmanager
def raw_logits(pipe: InfinityPipeline) -> Iterator[list[Tensor]]:
    """What the head says at every step, all branches stacked."""
    raw: list[Tensor] = []
    hook = pipe.transformer.head.register_forward_hook(lambda _m, _i, out: raw.append(out))
    yield raw
    hook.remove()


# ------------------------------------------------------------------ an image depends on its seed alone


@pytest.mark.parametrize(
    "options",
    [{}, {"ssg": 0.6}, {"guidance_layer": -1}, {"negative_prompt": ["grey", "a rainy day in spring", ""]}],
    ids=str,
)
def test_a_batch_is_its_images_one_by_one(options: dict[str, Any], pipe: InfinityPipeline):
    together = pipe(PROMPTS, seed=20, batch_size=3, output_type="pt", **options)
    by_two = pipe(PROMPTS, seed=20, batch_size=2, output_type="pt", **options)
    assert equal_tokens(together, by_two)
    torch.testing.assert_close(by_two.images, together.images, rtol=0, atol=ROUNDING)
    negatives = options.get("negative_prompt", [None] * 3)
    for i, prompt in enumerate(PROMPTS):
        own = {**options, "negative_prompt": negatives[i]}
        alone = pipe(prompt, seed=20 + i, output_type="pt", **own)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone.tokens, together.tokens, strict=True))
        torch.testing.assert_close(alone.images[0], together.images[i], rtol=0, atol=ROUNDING)
    assert not torch.equal(together.tokens[-1][0], together.tokens[-1][1])


def test_the_same_call_gives_the_same_bits(plain: InfinityPipeline):
    a, b = (plain(PROMPTS, seed=4, ssg=0.6, output_type="pt") for _ in range(2))
    assert equal_tokens(a, b)
    assert torch.equal(a.images, b.images)


def test_global_random_state_is_neither_used_nor_changed(plain: InfinityPipeline):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = plain("a cat", seed=5, output_type="pt")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert equal_tokens(a, plain("a cat", seed=5, output_type="pt"))


def test_bits_are_what_the_uniforms_of_the_seed_pick(pipe: InfinityPipeline):
    """One uniform number per bit; the same for guided and unguided runs."""
    bits, lengths = pipe.transformer.config.bits, pipe.schedule.lengths
    words = [Noise([30, 31]).words(Stream.TOKENS, k, n, bits) for k, n in enumerate(lengths)]
    filters = Filters(temperature=0.9, top_p=0.95)
    for ssg in (None, 0.8):
        _, steps = trace(pipe, PROMPTS[:2], temperature=0.9, top_p=0.95, seed=30, ssg=ssg, batch_size=2)
        for step, numbers in zip(steps, words, strict=True):
            pairs = filters(step.guided.unflatten(-1, (-1, 2)))
            drawn = uniform(numbers) < pairs.double().softmax(-1)[..., 1]
            assert torch.equal(step.tokens.flatten(1, 2), drawn.long())


# ------------------------------------------------------------------ guidance


@pytest.mark.parametrize("sampler", ["paired", "greedy", "multinomial"])
@pytest.mark.parametrize("layer", [0, -2])
def test_zero_strength_is_bit_identical_to_none(sampler: Any, layer: int, pipe: InfinityPipeline):
    options: dict[str, Any] = dict(
        seed=3, sampler=sampler, guidance_layer=layer, batch_size=2, output_type="pt"
    )
    without = pipe(PROMPTS, **options)
    for ssg in (0, 0.0, ScaledSpatialGuidance(0.0), ScaledSpatialGuidance(0.9, start=99)):
        guided = pipe(PROMPTS, ssg=ssg, **options)
        assert equal_tokens(without, guided)
        assert torch.equal(without.images, guided.images)


@pytest.mark.parametrize(
    "ssg",
    [
        ScaledSpatialGuidance(0.7),
        ScaledSpatialGuidance(1.2, prior="bilinear"),
        ScaledSpatialGuidance(0.4, norm="forward", remember="guided"),
        ScaledSpatialGuidance([9.0, 0.5, 0.0, 2.0, 1.0], prior="dct"),
        ScaledSpatialGuidance(0.8, schedule="bandwidth", start=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("layer", [0, -1])
def test_guided_logits_are_the_definition(ssg: ScaledSpatialGuidance, layer: int, pipe: InfinityPipeline):
    scales = [2.0, 3.0, 1.0, 2.5, 1.5]
    with raw_logits(pipe) as raw:
        _, steps = trace(
            pipe,
            PROMPTS[:2],
            guidance_scale=scales,
            guidance_layer=layer,
            ssg=ssg,
            seed=1,
            temperature=0.5,
            batch_size=2,
        )
    grids, betas = pipe.schedule.grids, ssg.betas(pipe.schedule.grids)
    assert betas[0] == 0
    for k, (step, s) in enumerate(zip(steps, scales, strict=True)):
        if layer == 0 and s != 1:
            cond, uncond = raw[k].chunk(2)
            torch.testing.assert_close(step.logits, s * cond + (1 - s) * uncond, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(step.logits, raw[k])
        if betas[k] == 0:
            assert step.guided is step.logits
            continue
        before = steps[k - 1].guided if ssg.remember == "guided" else steps[k - 1].logits
        # The prior acts on the transformer's grid, for every bit and value on its own.
        prior = spatial_prior(before, coarse=grids[k - 1], fine=grids[k], kind=ssg.prior, norm=ssg.norm)
        expected = step.logits + betas[k] * (step.logits - prior)
        torch.testing.assert_close(step.guided, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(step.guided, step.logits, atol=1e-3)


def test_conventions_of_the_strength_agree(plain: InfinityPipeline):
    scales = [1.0, 2.0, 3.0, 2.5, 4.0]
    extra = ClassifierFreeGuidance([s - 1 for s in scales], convention="extra")
    for layer in (0, -1):
        outs = [
            plain(PROMPTS, guidance_scale=g, guidance_layer=layer, seed=2, output_type="pt")
            for g in (scales, extra)
        ]
        assert equal_tokens(*outs)


def test_no_guidance_means_no_unconditional_rows(plain: InfinityPipeline):
    rows: list[int] = []
    hook = plain.transformer.blocks[0].register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    plain("a cat", guidance_scale=1, seed=0)
    plain("a cat", guidance_scale=[1, 3, 1, 1, 1], seed=0)
    hook.remove()
    assert rows == [1] * 5 + [2, 2, 1, 1, 1]


def test_the_prompt_as_its_own_negative_cancels_guidance(plain: InfinityPipeline):
    options: dict[str, Any] = dict(seed=0, sampler="greedy", output_type="pt")
    a = plain(PROMPTS, negative_prompt=PROMPTS, guidance_scale=5, **options)
    assert equal_tokens(a, plain(PROMPTS, guidance_scale=1, **options))


@pytest.mark.parametrize("top_k", [2, 3, 900, [2, 900, 0, 5, 2]])
def test_top_k_from_two_on_has_no_effect(top_k: Any, plain: InfinityPipeline):
    assert equal_tokens(plain(PROMPTS, top_k=top_k, seed=0), plain(PROMPTS, top_k=0, seed=0))


def test_top_k_of_one_is_greedy(plain: InfinityPipeline):
    greedy = plain(PROMPTS, sampler="greedy", seed=0)
    assert equal_tokens(plain(PROMPTS, top_k=1, seed=5), greedy)
    assert not equal_tokens(plain(PROMPTS, seed=5), greedy)


def test_temperature_and_guidance_per_step(plain: InfinityPipeline):
    """A low temperature at one step makes that step greedy."""
    cold = [1.0, 1.0, 1e-4, 1.0, 1.0]
    _, steps = trace(plain, "a cat", temperature=cold, top_p=0, seed=6)
    pairs = steps[2].guided.unflatten(-1, (-1, 2))
    assert torch.equal(steps[2].tokens.flatten(1, 2), pairs.argmax(-1))
    last = steps[4].guided.unflatten(-1, (-1, 2))
    assert not torch.equal(steps[4].tokens.flatten(1, 2), last.argmax(-1))


# ------------------------------------------------------------------ what comes back


def test_step_info_and_output(pipe: InfinityPipeline):
    out, steps = trace(pipe, PROMPTS, seed=0, ssg=0.5, batch_size=3)
    bits = pipe.transformer.config.bits
    sums = pipe.tokenizer.partial_sums(out.tokens, pipe.schedule)
    for k, (step, (h, w)) in enumerate(zip(steps, pipe.schedule, strict=True)):
        assert (step.index, step.grid) == (k, (h, w))
        assert step.logits.shape == step.guided.shape == (3, h * w, 2 * bits)
        assert step.tokens.shape == (3, h, w, bits)
        assert step.logits.dtype == step.feature_map.dtype == torch.float32
        assert torch.equal(step.tokens, out.tokens[k])
        torch.testing.assert_close(step.feature_map, sums[k])
    assert out.images.shape == (3, 3, *pipe.image_size)
    decoded = pipe.tokenizer.decode(out.tokens)
    torch.testing.assert_close(decoded, out.images * 2 - 1, rtol=0, atol=ROUNDING)
    h, w = pipe.image_size
    assert pipe("a cat", seed=0).images[0].size == (w, h)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ssg": ScaledSpatialGuidance(0.7, prior="dct"), "guidance_scale": [1.5, 2, 3, 1, 2]},
        {"guidance_layer": [0, -2], "temperature": [1, 0.9, 0.8, 0.7, 0.6], "top_k": 1, "min_p": 0.2},
        {"negative_prompt": "grey", "sampler": "multinomial", "stop_after": 4, "top_p": 0.5},
        {"schedule": [1, 2, 3], "tile": 2, "guidance_scale": lambda step: 1 + step.index},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_settings_make_the_pictures_again(options: dict[str, Any], pipe: InfinityPipeline):
    out = pipe(PROMPTS, output_type="pt", batch_size=3, **options)
    told = json.loads(json.dumps(out.settings))
    plain_settings = ("guidance_layer", "temperature", "top_k", "top_p", "min_p", "stop_after", "tile")
    again = pipe(
        told["prompts"],
        negative_prompt=told["negative_prompt"],
        schedule=told["schedule"],
        guidance_scale=ClassifierFreeGuidance.from_dict(told["guidance_scale"]),
        ssg=ScaledSpatialGuidance.from_dict(told["ssg"]) if told["ssg"] else None,
        seed=told["seeds"],
        sampler=told["sampler"],
        batch_size=3,
        output_type="pt",
        **{k: told[k] for k in plain_settings},
    )
    assert equal_tokens(out, again)
    assert torch.equal(out.images, again.images)
    assert (told["family"], told["dtype"]) == ("infinity", "float32")


def test_defaults_are_the_models(plain: InfinityPipeline):
    own = InfinityPipeline(
        plain.transformer,
        plain.tokenizer,
        text_encoder=plain.text_encoder,
        defaults={"temperature": 0.3, "guidance_scale": 2.0, "ssg": {"beta": 1.7}},
    )
    told = own("a cat", seed=0, ssg=ScaledSpatialGuidance(prior="dct")).settings
    assert (told["temperature"], told["guidance_scale"]["scale"], told["ssg"]["beta"]) == (0.3, 2.0, 1.7)


# ------------------------------------------------------------------ prompts


def test_prompts_as_features(plain: InfinityPipeline):
    features = plain.encode_prompts(PROMPTS)
    assert features.lengths == [3, 9, 2]
    a = plain(PROMPTS, seed=0, negative_prompt="grey")
    b = plain(features, seed=0, negative_prompt=plain.encode_prompts("grey"))
    assert equal_tokens(a, b)
    assert b.settings["prompts"] is None
    assert a.settings["negative_prompt"] == ["grey"]
    without = make(encoder=False)
    assert equal_tokens(without(features, seed=0), plain(PROMPTS, seed=0))
    with pytest.raises(InvalidArgumentError, match="no text encoder, so prompts cannot be strings"):
        without(PROMPTS)
    with pytest.raises(InvalidArgumentError, match="so negative_prompt cannot be strings"):
        without(features, negative_prompt="grey")


def test_one_negative_prompt_serves_all(plain: InfinityPipeline):
    one, each = (plain(PROMPTS, negative_prompt=n, seed=0) for n in ("grey", ["grey"] * 3))
    assert equal_tokens(one, each)
    assert not equal_tokens(one, plain(PROMPTS, seed=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "prompts must be a text, several, or TextFeatures"),
        ({"prompts": 7}, "prompts must be a text, several, or TextFeatures; got 7"),
        ({"prompts": ["a", 3]}, "prompts must be texts, but one is 3"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 3 images"),
        ({"negative_prompt": ["a", None, "b"]}, "negative_prompt must be texts, but one is None"),
        ({"prompts": TextFeatures(torch.ones(1, 2, 8), torch.ones(1, 2).bool())}, "16 channels, got 8"),
        ({"guidance_layer": 1}, "announces it but never applies it"),
        ({"guidance_layer": 2}, r"0 \(the logits\) or -1 to -2 .* got 2"),
        ({"guidance_layer": -3}, r"0 \(the logits\) or -1 to -2 .* got -3"),
        ({"guidance_layer": [0, 0.5]}, "whole number or several"),
        ({"guidance_layer": []}, "guidance_layer is empty"),
        ({"guidance_scale": [2.0, 3.0]}, "scale has 2 values, but the generation has 5 steps"),
        ({"guidance_scale": -1}, "-1"),
        ({"temperature": 0}, "temperature must be a positive number, got 0"),
        ({"temperature": [1, 1]}, "temperature has 2 values, but the model takes 5 steps"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_p": math.nan}, "top_p must be between 0 and 1"),
        ({"ssg": "strong"}, "beta must be a number"),
        ({"ssg": ScaledSpatialGuidance([0.5, 0.5])}, "2"),
        ({"stop_after": 0}, "stop_after must be 1 to 5 scales, got 0"),
        ({"stop_after": 6}, "stop_after must be 1 to 5 scales, got 6"),
        ({"stop_after": True}, "stop_after must be 1 to 5"),
        ({"seed": [1, 2]}, "2 seeds for 3 images"),
        ({"sampler": "beam"}, "unknown sampler 'beam'"),
        ({"batch_size": 0}, "batch_size must be a positive whole number"),
        ({"output_type": "jpeg"}, "unknown output_type 'jpeg'"),
        ({"pixels": "1M"}, "pictures of one size, with the grids 1x1 1x2"),
        ({"height": 8, "width": 12}, "pictures of one size"),
        ({"height": 8, "schedule": [1, 2]}, "name the size in one way"),
        ({"schedule": [2, 3]}, "begin with 1x1"),
        ({"schedule": [1, 3, 2]}, "must not shrink"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str, plain: InfinityPipeline):
    """With a message about the value, before a block is run."""
    seen: list[Any] = []
    hook = plain.transformer.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(InvalidArgumentError, match=message):
        plain(**{"prompts": PROMPTS, "seed": 0, **options})
    hook.remove()
    assert not seen


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1.0, "0.06M")),
        ({"aspect_ratio": "16:9"}, (0.571, "0.06M")),
        ({"aspect_ratio": 2.0, "pixels": "0.25M"}, (2.0, "0.25M")),
        ({"pixels": "0.60M"}, (1.0, "0.60M")),
        ({"height": 256, "width": 256}, (1.0, "0.06M")),
        ({"height": 1024, "width": 1024}, (1.0, "1M")),
    ],
)
def test_ways_to_name_a_size(
    options: dict[str, Any], expected: tuple[float, str], published_sizes: InfinityPipeline
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert published_sizes.schedule_for(**options) == schedule_for(*expected)


def test_generating_at_a_published_size(published_sizes: InfinityPipeline):
    out = published_sizes("a cat", aspect_ratio="2:1", seed=0, output_type="pt")
    grids = schedule_for("2:1", "0.06M")
    assert [tuple(t.shape[1:3]) for t in out.tokens] == list(grids)
    assert out.images.shape[2:] == (2 * 11, 2 * 22)  # this tokenizer has 2 pixels per cell, not 16
    assert out.settings["schedule"] == [list(g) for g in grids]


def test_other_sizes_snap_with_a_warning(published_sizes: InfinityPipeline):
    with pytest.warns(NextscaleWarning, match=r"1000x1000 pixels .* the nearest, 1024x1024") as caught:
        found = published_sizes.schedule_for(height=1000, width=1000)
    assert found == schedule_for(1.0, "1M")
    assert caught[0].filename == __file__
    with pytest.warns(NextscaleWarning, match="the nearest, 336x192, is made"):
        published_sizes("a cat", height=200, width=350, seed=0, stop_after=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aspect_ratio": "wide"}, "unknown aspect ratio 'wide'"),
        ({"aspect_ratio": "10:1"}, "unknown aspect ratio '10:1'"),
        ({"pixels": "2M"}, "unknown pixel budget '2M'; known: 0.06M, 0.25M, 0.60M, 1M"),
        ({"height": 512}, "give both height and width, got 512 and None"),
        ({"height": 512, "width": -1}, "width must be a positive number of pixels, got -1"),
        ({"height": 512, "width": 512, "pixels": "1M"}, "name the size in one way"),
        ({"schedule": [1] * 16}, "at most 15 scales"),
    ],
)
def test_sizes_that_are_none(options: dict[str, Any], message: str, published_sizes: InfinityPipeline):
    with pytest.raises(InvalidArgumentError, match=message):
        published_sizes("a cat", **options)


# ------------------------------------------------------------------ given scales, early stops, real pictures


def test_given_bits_in_either_layout(pipe: InfinityPipeline):
    picture = torch.rand(3, 3, *pipe.image_size) * 2 - 1
    cells = pipe.tokenizer.encode(picture, pipe.schedule)[:3]
    tokens = [pipe.tokenizer.tokens(c) for c in cells]
    free = pipe(PROMPTS, seed=0, output_type="pt")
    outs = [pipe(PROMPTS, seed=0, given_tokens=g, output_type="pt") for g in (cells, tokens)]
    for out in outs:
        assert all(torch.equal(a, b) for a, b in zip(out.tokens, tokens, strict=False))
        assert not torch.equal(out.tokens[3], free.tokens[3])
    assert equal_tokens(*outs)
    assert outs[0].settings["given_tokens"] == 3
    # Given what was drawn, the rest comes out the same: the numbers of the seed advance all the same.
    same = pipe(PROMPTS, seed=0, given_tokens=free.tokens[:2], output_type="pt")
    assert equal_tokens(same, free)
    one = pipe(PROMPTS, seed=0, given_tokens=[t[:1] for t in free.tokens[:2]], output_type="pt")
    assert torch.equal(one.tokens[1], free.tokens[1][:1].expand_as(one.tokens[1]))


def test_given_bits_that_do_not_fit(plain: InfinityPipeline):
    tokens = plain(PROMPTS, seed=0).tokens
    with pytest.raises(GridError, match=r"expected .*bits"):
        plain(PROMPTS, given_tokens=tokens[1:])
    with pytest.raises(InvalidArgumentError, match="bits are 0 or 1"):
        plain(PROMPTS, given_tokens=[tokens[0] + 1])
    with pytest.raises(InvalidArgumentError, match="for 2 pictures, but 3 are made; give one or 3"):
        plain(PROMPTS, given_tokens=[tokens[0][:2]])
    with pytest.raises(InvalidArgumentError, match="6 maps of given_tokens for 5 scales"):
        plain(PROMPTS, given_tokens=[*tokens, tokens[-1]])


def test_stopping_early_decodes_what_there_is(pipe: InfinityPipeline):
    whole, part = (pipe(PROMPTS, seed=0, stop_after=n, output_type="pt") for n in (None, 3))
    assert len(part.tokens) == 3
    assert all(torch.equal(a, b) for a, b in zip(part.tokens, whole.tokens, strict=False))
    assert part.images.shape == whole.images.shape
    decoded = pipe.tokenizer.decode(part.tokens, pipe.schedule)
    torch.testing.assert_close(part.images * 2 - 1, decoded, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("tile", [None, 3])
def test_reconstruction(tile: int | None, pipe: InfinityPipeline):
    h, w = pipe.image_size
    picture = torch.rand(2, 3, h, w) * 2 - 1
    found = pipe.reconstruct(picture, output_type="pt", tile=tile)
    expected = pipe.tokenizer.decode(pipe.tokenizer.encode(picture))
    torch.testing.assert_close(found * 2 - 1, expected, rtol=0, atol=1e-4)
    files = [Image.fromarray(((p + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()) for p in picture]
    assert [p.size for p in pipe.reconstruct(files)] == [(w, h)] * 2
    assert len(pipe.reconstruct(files[0])) == 1
    with pytest.raises(InvalidArgumentError, match=f"{w}x{h}"):
        pipe.reconstruct([files[0], Image.new("RGB", (w, h + 4))])
    with pytest.raises(InvalidArgumentError, match="no pictures"):
        pipe.reconstruct([])


def test_reconstruction_at_a_published_size(published_sizes: InfinityPipeline):
    grids = schedule_for(2.0, "0.06M")
    size = published_sizes.size_of(grids)
    picture = Image.new("RGB", size[::-1], "red")
    assert published_sizes.reconstruct(picture, schedule=grids)[0].size == picture.size
    assert published_sizes.reconstruct(picture)[0].size == picture.size


@pytest.mark.parametrize("tile", [1, 3, 8])
def test_decoding_in_strips(tile: int, pipe: InfinityPipeline):
    whole, strips = (pipe("a cat", seed=0, tile=t, output_type="pt") for t in (None, tile))
    torch.testing.assert_close(strips.images, whole.images, rtol=0, atol=1e-4)


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize(("dtype", "allowed"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision(dtype: str, allowed: float, tmp_path: Path, pipe: InfinityPipeline):
    pipe.save_pretrained(tmp_path)
    half = InfinityPipeline.from_pretrained(tmp_path, device="cpu", dtype=dtype)
    assert half.dtype == half.tokenizer.dtype == getattr(torch, dtype)
    _, exact = trace(pipe, PROMPTS, seed=0, batch_size=3)
    out, steps = trace(half, PROMPTS, seed=0, batch_size=3, ssg=0.5)
    assert torch.isfinite(out.images).all()
    assert all(s.logits.dtype == s.feature_map.dtype == torch.float32 for s in steps)
    first = exact[0].logits
    assert float((steps[0].logits - first).abs().mean()) < allowed * float(first.std())
    assert out.settings["dtype"] == dtype


# ------------------------------------------------------------------ loading and saving


def test_own_layout_comes_back(tmp_path: Path, pipe: InfinityPipeline):
    pipe.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert (config["family"], config["text_encoder"]) == ("infinity", "words")
    back = InfinityPipeline.from_pretrained(tmp_path, device="cpu", dtype="float32")
    assert (back.schedule, back.defaults) == (pipe.schedule, pipe.defaults)
    a, b = (p(PROMPTS, seed=0, output_type="pt") for p in (pipe, back))
    assert equal_tokens(a, b)
    assert torch.equal(a.images, b.images)


def test_class_prompts_are_stored_with_the_model(tmp_path: Path, plain: InfinityPipeline):
    assert plain.class_prompts == ()
    prompts = ["a photo of a cat", "a photo of a dog"]
    own = InfinityPipeline(plain.transformer, plain.tokenizer, class_prompts=prompts)
    own.save_pretrained(tmp_path)
    assert read_config(tmp_path)["class_prompts"] == prompts
    assert InfinityPipeline.from_pretrained(tmp_path, device="cpu").class_prompts == tuple(prompts)
    config = {k: v for k, v in read_config(tmp_path).items() if k != "class_prompts"}
    (tmp_path / "config.json").write_text(json.dumps(config))  # as in folders of before there were any
    assert InfinityPipeline.from_pretrained(tmp_path, device="cpu").class_prompts == ()


def test_the_text_encoder_is_stored_by_name(tmp_path: Path, plain: InfinityPipeline):
    named = InfinityPipeline(
        plain.transformer, plain.tokenizer, text_encoder=T5TextEncoder("some/t5", device="cpu")
    )
    named.save_pretrained(tmp_path)
    back = InfinityPipeline.from_pretrained(tmp_path, device="cpu")
    assert isinstance(back.text_encoder, T5TextEncoder)
    assert (back.text_encoder.name, back.text_encoder.max_length) == ("some/t5", 12)
    own = WordEncoder(16)
    assert InfinityPipeline.from_pretrained(tmp_path, text_encoder=own, device="cpu").text_encoder is own
    other = InfinityPipeline.from_pretrained(tmp_path, text_encoder="other/t5", device="cpu").text_encoder
    assert isinstance(other, T5TextEncoder) and other.name == "other/t5"


def official_files(pipe: InfinityPipeline, folder: Path, transformer: str, tokenizer: str) -> None:
    torch.save(pipe.transformer.state_dict(), folder / transformer)
    torch.save({"vae": pipe.tokenizer.state_dict()}, folder / tokenizer)


def test_a_release_brings_its_settings(tmp_path: Path, plain: InfinityPipeline):
    official_files(plain, tmp_path, "infinity_2b_reg.pth", "infinity_vae_d32reg.pth")
    loaded = InfinityPipeline.from_official(tmp_path, device="cpu")
    assert loaded.schedule == schedule_for(1.0, "1M")
    assert {k: loaded.defaults[k] for k in ("guidance_scale", "temperature", "pixels", "top_p")} == {
        "guidance_scale": 3.0,
        "temperature": 0.5,
        "pixels": "1M",
        "top_p": 0.97,
    }
    assert loaded.text_encoder is None  # its width is not that of the published encoder
    files = tmp_path / "infinity_2b_reg.pth", tmp_path / "infinity_vae_d32reg.pth"
    own = InfinityPipeline.from_official(*files, patch_nums=GRIDS, device="cpu", text_encoder="some/t5")
    assert own.schedule == plain.schedule
    features = plain.encode_prompts(PROMPTS)
    a, b = (p(features, seed=0, temperature=1.0, output_type="pt") for p in (plain, own))
    assert equal_tokens(a, b)
    assert isinstance(own.text_encoder, T5TextEncoder)


def test_the_published_encoder_is_the_default_where_widths_agree(tmp_path: Path):
    wide = make(text_dim=2048, encoder=False)
    official_files(wide, tmp_path, "transformer.pth", "infinity_vae_d3.pth")
    loaded = InfinityPipeline.from_official(tmp_path / "transformer.pth", device="cpu")
    assert isinstance(loaded.text_encoder, T5TextEncoder)
    assert loaded.text_encoder.name == "google/flan-t5-xl"


def test_models_that_do_not_belong_together(plain: InfinityPipeline):
    with pytest.raises(CheckpointError, match="a token has 3 bits, a cell 5"):
        InfinityPipeline(plain.transformer, make(bits=5).tokenizer)
    with pytest.raises(CheckpointError, match="do not belong together"):
        InfinityPipeline(plain.transformer, make(patchify=True).tokenizer)


def test_a_model_of_another_family(tmp_path: Path, golden: Path):
    from nextscale import VARPipeline

    var = golden / "var" / "a_basic"
    files = var / "transformer.safetensors", var / "tokenizer.safetensors"
    with pytest.raises(CheckpointError, match="It looks like a VAR transformer"):
        InfinityPipeline.from_official(*files, device="cpu")
    VARPipeline.from_official(*files, device="cpu").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="of the family 'var', not 'infinity'"):
        InfinityPipeline.from_pretrained(tmp_path, device="cpu")


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("patchify", [False, True])
@pytest.mark.parametrize(
    ("batch", "dtype", "guided", "tile"),
    [(1, "float32", True, None), (3, "float32", False, 2), (2, "bfloat16", True, 4)],
)
def test_memory_is_what_is_estimated(
    patchify: bool, batch: int, dtype: str, guided: bool, tile: int | None, live_bytes: Callable
):
    """At sizes where activations count, and bits and prompts do not."""
    sizes: dict[str, Any] = dict(embed_dim=128, ffn_dim=512, ch=32, decoder_ch_mult=(1, 2))
    pipe = make(patchify=patchify, grids=(1, 2, 4, 6, 8), **sizes)
    for module in (pipe.transformer, pipe.tokenizer):
        module.to(getattr(torch, dtype))
    weights = [*pipe.transformer.state_dict().values(), *pipe.tokenizer.state_dict().values()]
    text = TextFeatures(torch.randn(batch, 5, 16), torch.ones(batch, 5, dtype=torch.bool))
    estimate = pipe.memory_estimate(batch, guided=guided, text_tokens=5, tile=tile)
    assert estimate.weights == sum(w.numel() * w.element_size() for w in weights)
    pipe.transformer.rotation(pipe.schedule)  # is kept between calls

    marks: list[int] = []
    with live_bytes([*weights, text.features, text.mask]) as measured:

        def decoding_begins(*_: Any) -> None:
            if not marks:
                marks.extend([measured.peak, measured.current])
                measured.peak = measured.current

        pipe.tokenizer.decoder.conv_in.register_forward_pre_hook(decoding_begins)
        options: dict[str, Any] = dict(batch_size=batch, tile=tile, output_type="pt")
        pipe(text, guidance_scale=2 if guided else 1, seed=0, **options)
    generating, left = marks  # what is left are drawn bits and their random numbers
    assert generating == pytest.approx(estimate.layouts + estimate.cache + estimate.activations, rel=0.15)
    assert measured.peak - left == pytest.approx(estimate.decoder, rel=0.15)


def test_memory_of_published_models():
    """Orders of magnitude that can be checked by hand: 2B in bfloat16 at 1024x1024, guided."""
    tokenizer = InfinityTokenizerConfig()
    estimate = estimate_memory(
        SIZES["infinity_2b"],
        tokenizer,
        schedule_for(1.0, "1M"),
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
        text_tokens=0,
    )
    assert estimate.weights == 2 * (2_204_564_032 + 110_118_051)
    # K and V, blocks, rows, tokens before the last scale, channels, bytes
    assert estimate.cache == 2 * 32 * 2 * (10521 - 4096) * 2048 * 2
    assert 0.7e9 < estimate.activations < 0.8e9
    assert 1.5e9 < estimate.decoder < 1.8e9
    assert estimate.total == estimate.weights + estimate.cache + estimate.activations
    assert "at the peak (weights 4.311 GiB" in str(estimate)


def test_memory_follows_the_call(published_sizes: InfinityPipeline):
    small = published_sizes.memory_estimate(2)
    assert published_sizes.memory_estimate(4).cache == 2 * small.cache
    assert published_sizes.memory_estimate(2, guided=False).cache == small.cache // 2
    assert published_sizes.memory_estimate(2, "bfloat16").weights == small.weights // 2
    assert published_sizes.memory_estimate(2, pixels="1M", aspect_ratio="2:1").cache > 10 * small.cache
    assert published_sizes.memory_estimate(2, pixels="1M", tile=4).decoder < (
        published_sizes.memory_estimate(2, pixels="1M").decoder
    )
