"""VARPipeline's promises: seeds, pairing, guidance, precision, settings, and errors that help."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale import ClassifierFreeGuidance, ScaledSpatialGuidance, VARPipeline
from nextscale.errors import CheckpointError, DataError, GridError, InvalidArgumentError
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.generation.loop import StepInfo
from nextscale.generation.noise import Noise, Stream
from nextscale.generation.race import race
from nextscale.generation.request import GenerationOutput
from nextscale.generation.tokens import Filters
from nextscale.guidance import spatial_prior
from nextscale.weights.layout import write_default_ssg

LABELS = [3, 7, 0, 9, None]
# Sums in another order, as other batch sizes bring them, move pictures by some 1e-6. Tokens must not change.
ROUNDING = 5e-5


@pytest.fixture(scope="module")
def basic(pipeline: Callable) -> VARPipeline:
    """Four scales, 64 codes, ten classes."""
    return pipeline("a_basic")


def equal_tokens(a: GenerationOutput, b: GenerationOutput) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))


def trace(pipe: VARPipeline, *args: Any, **options: Any) -> tuple[GenerationOutput, list[StepInfo]]:
    steps: list[StepInfo] = []
    return pipe(*args, on_step=steps.append, output_type="pt", **options), steps


@contextmanager
def raw_logits(pipe: VARPipeline) -> Iterator[list[Tensor]]:
    """What the head says at every step, all branches stacked."""
    raw: list[Tensor] = []
    hook = pipe.transformer.head.register_forward_hook(lambda _m, _i, out: raw.append(out))
    yield raw
    hook.remove()


# ------------------------------------------------------------------ an image depends on its seed alone


@pytest.mark.parametrize("ssg", [None, 0.6])
@pytest.mark.parametrize("more_smooth", [False, True])
def test_alone_in_batches_and_beside_others(ssg: float | None, more_smooth: bool, basic: VARPipeline):
    options: dict[str, Any] = dict(ssg=ssg, guidance_scale=2.0, output_type="pt", more_smooth=more_smooth)
    together = basic(LABELS, seed=20, **options)
    by_two = basic(LABELS, seed=20, batch_size=2, **options)
    tolerance = ROUNDING if not more_smooth else 5e-3  # a soft choice at a low temperature amplifies rounding
    assert equal_tokens(together, by_two)
    torch.testing.assert_close(by_two.images, together.images, rtol=0, atol=tolerance)
    for i, label in enumerate(LABELS):
        alone = basic(label, seed=20 + i, **options)
        beside = basic([1, 2, label], seed=[5, 20 + i + 1, 20 + i], **options)
        for other, row in ((alone, 0), (beside, 2)):
            for a, b in zip(other.tokens, together.tokens, strict=True):
                assert torch.equal(a[row], b[i])
            torch.testing.assert_close(other.images[row], together.images[i], rtol=0, atol=tolerance)


@pytest.mark.parametrize("ssg", [None, 0.6])
def test_neighbours_do_not_change_a_bit(ssg: float | None, basic: VARPipeline):
    """With the batch size left as it is, sums keep their order, whatever the other labels and seeds are."""
    a = basic([1, 3, 2], seed=[5, 9, 6], ssg=ssg, output_type="pt")
    b = basic([8, 3, None], seed=[70, 9, 80], ssg=ssg, output_type="pt")
    assert torch.equal(a.images[1], b.images[1])
    assert not torch.equal(a.images[0], b.images[0])


def test_the_same_call_gives_the_same_bits(basic: VARPipeline):
    a, b = (basic([3, 7], seed=4, ssg=0.6, output_type="pt") for _ in range(2))
    assert equal_tokens(a, b)
    assert torch.equal(a.images, b.images)


def test_different_seeds_differ(basic: VARPipeline):
    out = basic([3, 3, 3], seed=[1, 2, 1], output_type="pt")
    assert not torch.equal(out.tokens[-1][0], out.tokens[-1][1])
    assert torch.equal(out.tokens[-1][0], out.tokens[-1][2])


def test_seeds_count_up_or_are_listed(basic: VARPipeline):
    counted = basic([3, 7, 0], seed=7, output_type="pt")
    assert counted.seeds == [7, 8, 9]
    listed = basic([3, 7, 0], seed=[7, 8, 9], output_type="pt")
    assert torch.equal(counted.images, listed.images)
    swapped = basic([7, 3, 0], seed=[8, 7, 9], output_type="pt")
    assert all(torch.equal(a[[1, 0, 2]], b) for a, b in zip(counted.tokens, swapped.tokens, strict=True))


def test_fresh_seeds_can_be_read_and_used_again(basic: VARPipeline):
    first = basic([3, 7], output_type="pt")
    assert first.seeds[1] == first.seeds[0] + 1
    assert equal_tokens(first, basic([3, 7], seed=first.seeds, output_type="pt"))


def test_global_random_state_is_neither_used_nor_changed(basic: VARPipeline):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = basic(3, seed=5, output_type="pt")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert equal_tokens(a, basic(3, seed=5, output_type="pt"))


# ------------------------------------------------------------------ guidance


@pytest.mark.parametrize("sampler", ["paired", "greedy", "multinomial"])
def test_zero_strength_is_bit_identical_to_none(sampler: Any, basic: VARPipeline):
    options: dict[str, Any] = dict(seed=3, sampler=sampler, output_type="pt")
    plain = basic([3, 7], **options)
    for ssg in (0, 0.0, ScaledSpatialGuidance(0.0), ScaledSpatialGuidance(0.9, start=99)):
        guided = basic([3, 7], ssg=ssg, **options)
        assert equal_tokens(plain, guided)
        assert torch.equal(plain.images, guided.images)


def test_guided_and_unguided_runs_share_their_noise(basic: VARPipeline):
    """Tokens are who wins the race of what was sampled from, in numbers of the image's seed alone."""
    noise = Noise([30, 31])
    filters = Filters(temperature=0.9, top_k=30, top_p=0.95)
    options: dict[str, Any] = dict(temperature=0.9, top_k=30, top_p=0.95, seed=30)
    plain, plain_steps = trace(basic, [3, 7], **options)
    guided, guided_steps = trace(basic, [3, 7], ssg=0.8, **options)
    for steps in (plain_steps, guided_steps):
        for step in steps:
            filtered = filters(step.guided)
            keys = noise.keys(Stream.TOKENS, step.index, filtered.shape[1])
            expected = race(filtered.flatten(0, 1), keys.flatten())
            assert torch.equal(step.tokens.flatten(), expected)
    assert torch.equal(plain.tokens[0], guided.tokens[0])  # the first step has no prior
    assert not equal_tokens(plain, guided)


@pytest.mark.parametrize(
    "ssg",
    [
        ScaledSpatialGuidance(0.7),
        ScaledSpatialGuidance(1.2, prior="bilinear"),
        ScaledSpatialGuidance(0.4, norm="forward", remember="guided"),
        ScaledSpatialGuidance([9.0, 0.5, 0.0, 2.0], prior="dct"),
        ScaledSpatialGuidance(0.8, schedule="bandwidth", start=2),
        ScaledSpatialGuidance(0.8, stop=3),
    ],
    ids=str,
)
def test_guided_logits_are_the_definition(ssg: ScaledSpatialGuidance, basic: VARPipeline):
    labels, t = [3, 7], 2.5
    with raw_logits(basic) as raw:
        _, steps = trace(basic, labels, guidance_scale=t, ssg=ssg, seed=1)
    grids, last = basic.schedule.grids, basic.schedule.num_steps - 1
    betas = ssg.betas(grids)
    assert betas[0] == 0
    for k, step in enumerate(steps):
        cond, uncond = raw[k].chunk(2)
        strength = t * k / last
        torch.testing.assert_close(
            step.logits, (1 + strength) * cond - strength * uncond, rtol=1e-5, atol=1e-5
        )
        if betas[k] == 0:
            assert step.guided is step.logits
            continue
        before = steps[k - 1].guided if ssg.remember == "guided" else steps[k - 1].logits
        prior = spatial_prior(before, coarse=grids[k - 1], fine=grids[k], kind=ssg.prior, norm=ssg.norm)
        expected = step.logits + betas[k] * (step.logits - prior)
        torch.testing.assert_close(step.guided, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(step.guided, step.logits, atol=1e-2)


def test_a_bare_description_takes_the_models_strength(basic: VARPipeline, case: Callable):
    own = VARPipeline(basic.transformer, basic.tokenizer, defaults={"ssg": {"beta": 1.7}})
    assert own(3, ssg=ScaledSpatialGuidance(prior="dct"), seed=0).settings["ssg"]["beta"] == 1.7
    none = VARPipeline(basic.transformer, basic.tokenizer, defaults={"ssg": None})
    default, named = (none(3, ssg=s, seed=0) for s in (ScaledSpatialGuidance(), 0.6))
    assert equal_tokens(default, named)


def test_a_bare_description_takes_all_settings_a_model_was_tuned_to(basic: VARPipeline, tmp_path: Path):
    basic.save_pretrained(tmp_path)
    tuned = ScaledSpatialGuidance(0.8, schedule="bandwidth", norm="forward", remember="guided")
    write_default_ssg(tmp_path, tuned.to_dict())
    pipe = VARPipeline.from_pretrained(tmp_path)
    default, named = (pipe(3, ssg=s, seed=0) for s in (ScaledSpatialGuidance(), tuned))
    assert default.settings["ssg"] == tuned.to_dict() and equal_tokens(default, named)
    assert pipe(3, ssg=0.8, seed=0).settings["ssg"] == ScaledSpatialGuidance(0.8).to_dict()
    assert pipe(3, seed=0).settings["ssg"] is None  # off stays off
    off, zero = (pipe(3, ssg=s, seed=0) for s in (None, ScaledSpatialGuidance(0.0)))
    assert equal_tokens(off, zero)


@pytest.mark.parametrize(
    ("scale", "rows"),
    [
        (1.5, 4),
        (0, 2),
        ([0, 0, 0, 0], 2),
        ([0, 0, 1, 0], 4),
        (ClassifierFreeGuidance(1, convention="interpolate"), 2),
    ],
)
def test_the_cost_of_classifier_free_guidance(scale: Any, rows: int, basic: VARPipeline):
    """The unconditional branch is computed only where some step needs it."""
    seen: list[int] = []
    hooks = [
        b.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
        for b in basic.transformer.blocks
    ]
    basic([3, 7], guidance_scale=scale, ssg=0.5, seed=0)
    for hook in hooks:
        hook.remove()
    assert seen == [rows] * basic.transformer.config.depth * basic.schedule.num_steps


def test_without_classifier_free_guidance_the_raw_logits_are_used(basic: VARPipeline):
    with raw_logits(basic) as raw:
        _, steps = trace(basic, [3, 7], guidance_scale=0, seed=0)
    assert all(torch.equal(step.logits, r) for step, r in zip(steps, raw, strict=True))


def test_conventions_of_the_strength_agree(basic: VARPipeline):
    per_step = [1.5 * k / 3 for k in range(4)]
    usual = ClassifierFreeGuidance([1 + t for t in per_step], convention="interpolate")
    outs = [basic([3, 7], guidance_scale=s, seed=2, output_type="pt") for s in (1.5, per_step, usual)]
    assert equal_tokens(outs[0], outs[1])
    assert torch.equal(outs[0].images, outs[1].images)
    assert equal_tokens(outs[0], outs[2])


def test_no_class_is_the_unconditional_branch(basic: VARPipeline):
    """For no class both branches are the same, so the strength of guidance does not matter."""
    a = basic([None, -1], guidance_scale=0, seed=[4, 4], sampler="greedy", output_type="pt")
    b = basic([None, -1], guidance_scale=3.0, seed=[4, 4], sampler="greedy", output_type="pt")
    assert equal_tokens(a, b)
    assert torch.equal(a.tokens[-1][0], a.tokens[-1][1])


# ------------------------------------------------------------------ what a callback sees, what comes back


def test_step_info(basic: VARPipeline):
    out, steps = trace(basic, [3, 7, 5], ssg=0.5, seed=0)
    sums = basic.tokenizer.partial_sums(out.tokens)
    assert [s.index for s in steps] == [0, 1, 2, 3]
    for k, (step, (h, w)) in enumerate(zip(steps, basic.schedule, strict=True)):
        assert step.grid == (h, w)
        assert step.logits.shape == step.guided.shape == (3, h * w, 64)
        assert step.logits.dtype == step.guided.dtype == step.feature_map.dtype == torch.float32
        assert step.tokens.dtype == torch.int64
        assert torch.equal(step.tokens, out.tokens[k])
        assert step.feature_map.shape == (3, 8, 4, 4)
        # None of the maps was changed after it had been shown.
        torch.testing.assert_close(step.feature_map, sums[k], rtol=0, atol=1e-5)
    decoded = basic.tokenizer.decode(out.tokens)
    torch.testing.assert_close(decoded, out.images * 2 - 1, rtol=0, atol=ROUNDING)


def test_every_batch_reports_its_steps(basic: VARPipeline):
    _, steps = trace(basic, [1, 2, 3], seed=0, batch_size=2)
    assert [(s.index, len(s.tokens)) for s in steps] == [(k, n) for n in (2, 1) for k in range(4)]


def test_a_callback_may_change_what_it_is_shown(basic: VARPipeline):
    """Guidance remembers a copy, and the session never reads the tensors of a StepInfo again."""

    def scribble(step: StepInfo) -> None:
        step.logits.zero_()
        step.guided.zero_()

    plain = basic([3, 7], ssg=0.8, seed=0, output_type="pt")
    assert equal_tokens(plain, basic([3, 7], ssg=0.8, seed=0, output_type="pt", on_step=scribble))


def test_output_types(basic: VARPipeline):
    tensor, array, pictures = (basic([3, 7], seed=0, output_type=t).images for t in ("pt", "np", "pil"))
    assert tensor.shape == (2, 3, 64, 64)
    assert tensor.dtype == torch.float32
    assert 0 <= tensor.min() < tensor.max() <= 1
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    for picture, values in zip(pictures, array, strict=True):
        assert isinstance(picture, Image.Image)
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        assert np.array_equal(np.asarray(picture), np.round(values * 255))


def test_outputs_are_ordinary_tensors(basic: VARPipeline):
    """They can be changed in place and take part in training, as inference tensors could not."""
    out, steps = trace(basic, [3], seed=0)
    encoded = basic.tokenizer.encode(out.images * 2 - 1)
    tensors = [out.images, steps[0].feature_map, *out.tokens, *encoded, basic.tokenizer.decode(out.tokens)]
    assert not any(t.is_inference() or t.requires_grad for t in tensors)


def test_an_exception_in_the_callback_leaves_the_pipeline_usable(basic: VARPipeline):
    expected = basic([3, 7], ssg=0.5, seed=1, output_type="pt")

    def stop(step: StepInfo) -> None:
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        basic([3, 7], ssg=0.5, seed=1, on_step=stop)
    again = basic([3, 7], ssg=0.5, seed=1, output_type="pt")
    assert equal_tokens(expected, again)
    assert torch.equal(expected.images, again.images)
    assert torch.is_grad_enabled()


def test_threads_do_not_disturb_each_other(basic: VARPipeline):
    jobs = [
        dict(labels=[3, 7], seed=0, ssg=0.9),
        dict(labels=[5, 1], seed=50, ssg=None, guidance_scale=4.0),
    ] * 3
    alone = [basic(**job, output_type="pt") for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda job: basic(**job, output_type="pt"), jobs))
    for a, b in zip(alone, together, strict=True):
        assert equal_tokens(a, b)
        assert torch.equal(a.images, b.images)


def test_a_pipeline_inside_of_a_callback_of_itself(basic: VARPipeline):
    inner: list[GenerationOutput] = []

    def nested(step: StepInfo) -> None:
        inner.append(basic([1, 2], seed=9, ssg=0.3, output_type="pt"))

    outer = basic([3, 7], seed=0, ssg=0.6, on_step=nested, output_type="pt")
    assert equal_tokens(outer, basic([3, 7], seed=0, ssg=0.6, output_type="pt"))
    assert all(equal_tokens(i, inner[0]) for i in inner)


# ------------------------------------------------------------------ settings


def test_settings_make_the_same_images_again(basic: VARPipeline):
    out = basic(
        [3, None, "7"],
        guidance_scale=2.0,
        ssg=ScaledSpatialGuidance(0.5, prior="bilinear"),
        top_k=np.int64(40),
        top_p=np.float32(0.5),
        min_p=0.01,
        temperature=[1, 0.9, np.float64(0.8), 1.1],
        seed=np.array([4, 5, 6]),
        output_type="pt",
    )
    told = json.loads(json.dumps(out.settings))
    assert told["labels"] == [3, -1, 7]
    assert told["seeds"] == out.seeds == [4, 5, 6]
    assert (told["family"], told["sampler"], told["dtype"]) == ("var", "paired", "float32")
    again = basic(
        told["labels"],
        guidance_scale=ClassifierFreeGuidance.from_dict(told["guidance_scale"]),
        ssg=ScaledSpatialGuidance.from_dict(told["ssg"]),
        seed=told["seeds"],
        output_type="pt",
        **{k: told[k] for k in ("top_k", "top_p", "min_p", "temperature", "more_smooth", "sampler")},
    )
    assert equal_tokens(out, again)
    assert torch.equal(out.images, again.images)
    assert again.settings == out.settings


def test_strengths_given_as_callables_are_stored_as_their_values(basic: VARPipeline):
    """They are asked once for a call, whatever the number of batches."""
    asked: list[int] = []

    def rising(step: Any) -> float:
        asked.append(step.index)
        return len(asked) / 4

    out = basic(
        [3, 7, 0],
        guidance_scale=rising,
        ssg=ScaledSpatialGuidance(lambda s: s.index / 3),
        seed=0,
        batch_size=1,
    )
    assert asked == [0, 1, 2, 3]
    told = json.loads(json.dumps(out.settings))
    assert told["guidance_scale"]["scale"] == [0.25, 0.5, 0.75, 1.0]
    assert told["ssg"]["beta"] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    same = basic(
        [3, 7, 0],
        guidance_scale=[0.25, 0.5, 0.75, 1.0],
        ssg=ScaledSpatialGuidance([0, 1 / 3, 2 / 3, 1]),
        seed=0,
    )
    assert equal_tokens(out, same)


def test_defaults(basic: VARPipeline, tiny: Callable):
    settings = basic(3, seed=0).settings
    assert settings["guidance_scale"]["scale"] == 1.5
    assert (settings["top_k"], settings["top_p"], settings["temperature"]) == (
        64,
        0.96,
        1.0,
    )  # 900 of 64 is all
    assert (settings["min_p"], settings["ssg"], settings["more_smooth"]) == (0.0, None, False)
    own = tiny()
    own = VARPipeline(own.transformer, own.tokenizer, defaults={"top_k": 5, "temperature": 0.7})
    assert (own(0, seed=0).settings["top_k"], own(0, seed=0).settings["temperature"]) == (5, 0.7)
    assert own(0, seed=0, top_k=0).settings["top_k"] == 0


def test_temperatures_per_step(basic: VARPipeline):
    per_step = [0.5, 2.0, 1.0, 0.25]
    _, steps = trace(basic, [3, 7], temperature=per_step, top_k=0, top_p=0, seed=6)
    for step, temperature in zip(steps, per_step, strict=True):
        logits = (step.guided / temperature).flatten(0, 1)
        keys = Noise([6, 7]).keys(Stream.TOKENS, step.index, len(logits) // 2)
        assert torch.equal(step.tokens.flatten(), race(logits, keys.flatten()))


def test_class_names(tiny: Callable):
    pipe = tiny(class_names=["cat", "dog", "horse", "ship", "car"])
    by_name = pipe(["Ship", "dog", None], seed=0, output_type="pt")
    assert equal_tokens(by_name, pipe([3, 1, -1], seed=0, output_type="pt"))
    with pytest.raises(InvalidArgumentError, match="did you mean 'horse'"):
        pipe("hors")


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize(("dtype", "allowed"), [("bfloat16", 0.06), ("float16", 0.01)])
def test_half_precision_on_the_cpu(dtype: str, allowed: float, case: Callable, pipeline: Callable):
    """The same tokens decoded in half precision are close, and runs of its own give sensible pictures."""
    basic, half = pipeline("b_shared_adaln"), case("b_shared_adaln").load(device="cpu", dtype=dtype)
    assert half.dtype == half.tokenizer.dtype == getattr(torch, dtype)
    exact, exact_steps = trace(basic, [3, 7], seed=0)
    images = half.tokenizer.decode(exact.tokens) / 2 + 0.5
    assert images.dtype == torch.float32
    assert float((images - exact.images).abs().mean()) < allowed * float(exact.images.std())
    for more_smooth in (False, True):
        out, steps = trace(half, [3, 7], seed=0, ssg=0.6, more_smooth=more_smooth)
        assert torch.isfinite(out.images).all()
        assert out.images.dtype == torch.float32
        assert all(s.logits.dtype == s.feature_map.dtype == torch.float32 for s in steps)
        first = exact_steps[0].logits
        assert float((steps[0].logits - first).abs().mean()) < allowed * float(first.std())
    assert out.settings["dtype"] == dtype
    assert torch.isfinite(half.log_likelihood(exact.images * 2 - 1, [3, 7])).all()


# ------------------------------------------------------------------ other samplers and smoothing


def test_multinomial_starts_at_the_first_seed_of_every_batch(basic: VARPipeline):
    options: dict[str, Any] = dict(sampler="multinomial", top_k=20, top_p=0.9)
    _, steps = trace(basic, [3, 7, 1], seed=[11, 99, 12], batch_size=2, **options)
    for batch, seed in ((steps[:4], 11), (steps[4:], 12)):
        generator = torch.Generator().manual_seed(seed)
        for step in batch:
            rows = Filters(top_k=20, top_p=0.9)(step.guided).softmax(-1).flatten(0, 1)
            drawn = torch.multinomial(rows, 1, replacement=True, generator=generator)
            assert torch.equal(step.tokens.flatten(), drawn.flatten())


def test_greedy_takes_the_likeliest_and_needs_no_seed(basic: VARPipeline):
    _, steps = trace(basic, [3, 7], sampler="greedy", ssg=0.5, seed=0)
    assert all(torch.equal(s.tokens.flatten(1), s.guided.argmax(-1)) for s in steps)
    a, b = (basic([3, 7], sampler="greedy", seed=s, output_type="pt") for s in (0, 1))
    assert torch.equal(a.images, b.images)


def test_smoothing_mixes_codes_but_draws_tokens(basic: VARPipeline):
    plain, smooth = (basic([3, 7], seed=0, more_smooth=m, output_type="pt") for m in (False, True))
    assert torch.equal(plain.tokens[0], smooth.tokens[0])
    assert not torch.allclose(plain.images, smooth.images, atol=1e-3)
    # An image's mixing noise is its own, and not that of its neighbour.
    twins = basic([3, 3], seed=[8, 8], more_smooth=True, output_type="pt")
    torch.testing.assert_close(twins.images[0], twins.images[1], rtol=0, atol=5e-3)


# ------------------------------------------------------------------ grids that are not square


def test_grids_that_are_not_square(tiny: Callable):
    pipe = tiny([(1, 1), (1, 2), (2, 3), (3, 5), (4, 6)])
    assert pipe.image_size == (8, 12)
    out, steps = trace(pipe, [0, 4, 2], seed=0, ssg=0.7, guidance_scale=2.0)
    assert out.images.shape == (3, 3, 8, 12)
    assert [tuple(t.shape) for t in out.tokens] == [(3, 1, 1), (3, 1, 2), (3, 2, 3), (3, 3, 5), (3, 4, 6)]
    assert pipe(0, seed=0).images[0].size == (12, 8)
    for step, before, coarse in zip(steps[1:], steps, pipe.schedule, strict=False):
        prior = spatial_prior(before.logits, coarse=coarse, fine=step.grid)
        torch.testing.assert_close(step.guided, 1.7 * step.logits - 0.7 * prior, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pipe.tokenizer.decode(out.tokens), out.images * 2 - 1, rtol=0, atol=ROUNDING)
    picture = torch.rand(2, 3, 8, 12) * 2 - 1
    tokens = pipe.tokenizer.encode(picture)
    assert [tuple(t.shape[1:]) for t in tokens] == list(pipe.schedule.grids)
    assert pipe.log_likelihood(picture, [0, 1]).shape == (2, 5)
    with pytest.raises(GridError, match="8x12 pixels"):
        pipe.tokenizer.encode(torch.zeros(1, 3, 12, 8))


# ------------------------------------------------------------------ real pictures


def test_log_likelihood_is_the_loss(basic: VARPipeline, case: Callable):
    io = case("a_basic").io
    found = basic.log_likelihood(io["tok.image"], io["tf.labels"])
    assert found.shape == (2, 4)
    assert found.dtype == torch.float64
    total = -float(io["tf.loss"]) * basic.schedule.num_tokens
    assert float(found.sum(1).mean()) == pytest.approx(total, rel=1e-5)
    tokens = [io[f"tok.idx.{k}"] for k in range(4)]
    chosen = torch.cat(tokens, 1)[..., None]
    each = io["tf.logits"].double().log_softmax(-1).gather(-1, chosen)[..., 0]  # (B, L)
    wanted = torch.stack([each[:, basic.schedule.span(k)].sum(1) for k in range(4)], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    assert not found.requires_grad


def test_log_likelihood_needs_a_label_for_every_picture(basic: VARPipeline, case: Callable):
    with pytest.raises(InvalidArgumentError, match="3 labels for 2 images"):
        basic.log_likelihood(case("a_basic").io["tok.image"], [1, 2, 3])


def test_reconstruct(basic: VARPipeline, case: Callable):
    io = case("a_basic").io
    image = io["tok.image"]
    found = basic.reconstruct(image, output_type="pt")
    torch.testing.assert_close(found, (io["tok.recon"] + 1) / 2, rtol=0, atol=1e-4)
    pictures = [Image.fromarray(p) for p in ((image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]
    from_files = basic.reconstruct(pictures, output_type="pt")
    assert from_files.shape == found.shape
    one = basic.reconstruct(pictures[0].convert("RGBA"))
    assert len(one) == 1
    assert (
        np.abs(np.asarray(one[0]) / 255 - from_files[0].permute(1, 2, 0).numpy()).max() < 0.5 / 255 + ROUNDING
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (Image.new("RGB", (32, 64)), "64x64 pixels for this model, got 32x64"),
        (torch.zeros(1, 3, 48, 48), "64x64 pixels"),
        (torch.zeros(1, 3, 60, 64), "multiples of 16"),
        (torch.zeros(3, 64, 64), r"\(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"floating-point .* in \[-1, 1\] .*uint8"),
        ([], "no pictures"),
        (
            torch.full((1, 3, 64, 64), 255.0),
            r"from 255 to 255; pictures are in \[-1, 1\], and x / 127",
        ),
        (torch.linspace(0, 2, 12288).view(1, 3, 64, 64), "the pictures' numbers are from 0 to 2;"),
        (torch.linspace(-1.5, 1, 12288).view(1, 3, 64, 64), r"from -1\.5 to 1;"),
        (torch.full((1, 3, 64, 64), 2.0, dtype=torch.bfloat16), "from 2 to 2;"),
        (torch.full((1, 3, 64, 64), torch.nan), "12,288 of the pictures' 12,288 numbers are not finite"),
        (
            torch.zeros(1, 3, 64, 64).index_fill(3, torch.tensor([5]), torch.inf),
            "192 of the pictures' 12",
        ),
    ],
)
def test_pictures_that_do_not_fit(images: Any, message: str, basic: VARPipeline):
    with pytest.raises(InvalidArgumentError, match=message):
        basic.reconstruct(images)
    with pytest.raises(InvalidArgumentError, match=message):
        basic.log_likelihood(images, [0])


def test_pictures_of_every_kind_are_read_by_one_rule(basic: VARPipeline):
    """What :mod:`nextscale.pixels` says: depth, hidden colours, orientation."""
    grey = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    plain = Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    expected = basic.reconstruct(plain, output_type="pt")
    assert torch.equal(basic.reconstruct(Image.fromarray(grey), output_type="pt"), expected)
    turned = plain.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert torch.equal(basic.reconstruct(turned, output_type="pt"), expected)
    hidden, white = Image.new("RGBA", (64, 64), (255, 0, 0, 0)), Image.new("RGB", (64, 64), "white")
    assert torch.equal(*(basic.reconstruct(image, output_type="pt") for image in (hidden, white)))
    with pytest.raises(DataError, match="picture 1 holds floating-point numbers"):
        basic.reconstruct([plain, Image.fromarray(np.zeros((64, 64), np.float32))])


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 10}, r"class 10 is out of range: .* 0 to 9"),
        ({"labels": ["horse"]}, "'horse' is not a number, and this model's classes have no names"),
        ({"labels": []}, "no labels"),
        ({"labels": 1.5}, "got 1.5"),
        ({"top_k": 65}, "top_k is 65, but the vocabulary has 64 tokens"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1"),
        ({"top_p": math.nan}, "top_p must be between 0 and 1"),
        ({"min_p": -0.1}, "min_p must be between 0 and 1"),
        ({"temperature": 0}, "temperature must be a positive number, got 0; .* sampler='greedy'"),
        ({"temperature": [1, 1, 1]}, "temperature has 3 values, but the model takes 4 steps"),
        ({"temperature": [1, 1, 1, -1]}, "temperature must be a positive number, got -1"),
        ({"temperature": "hot"}, "temperature must be a positive number, got 'hot'"),
        ({"seed": [1, 2, 3]}, "3 seeds for 2 images"),
        ({"seed": -1}, "a seed is a whole number from 0"),
        ({"seed": 1.5}, "a seed is a whole number from 0 .* got 1.5"),
        ({"seed": True}, "got True"),
        ({"seed": [1, None]}, "got None"),
        ({"seed": "12"}, "got '12'"),
        ({"seed": 2**64 - 1}, "go beyond"),
        ({"sampler": "beam"}, "unknown sampler 'beam'; known: paired, greedy, multinomial"),
        ({"output_type": "jpeg"}, "unknown output_type 'jpeg'; known: pil, pt, np"),
        ({"batch_size": 0}, "batch_size must be a positive whole number, got 0"),
        ({"ssg": "strong"}, "beta must be a number of at least 0; got 'strong'"),
        ({"ssg": -0.5}, "-0.5"),
        ({"ssg": math.nan}, "nan"),
        ({"ssg": ScaledSpatialGuidance([0.5, 0.5])}, "2"),
        ({"guidance_scale": -1}, "-1"),
        ({"guidance_scale": [1.0, 2.0]}, "2"),
        ({"guidance_scale": "high"}, "'high'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str, basic: VARPipeline):
    """With a message about the value, before the model is run."""
    seen: list[Any] = []
    hook = basic.transformer.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(InvalidArgumentError, match=message):
        basic(**{"labels": [3, 7], "seed": 0, **options})
    hook.remove()
    assert not seen


def test_models_that_do_not_belong_together(basic: VARPipeline, tiny: Callable):
    with pytest.raises(CheckpointError, match="z_channels is 8 and 4"):
        VARPipeline(tiny().transformer, tiny(z_channels=4).tokenizer)
    with pytest.raises(CheckpointError, match="vocab_size is 24 and 25"):
        VARPipeline(tiny().transformer, tiny(vocab_size=25).tokenizer)
    with pytest.raises(CheckpointError, match="grids are 1x1 2x2 3x3 4x4 and 1x1 2x2 4x4"):
        VARPipeline(tiny().transformer, tiny([1, 2, 4]).tokenizer)


def test_tokens_that_do_not_fit(basic: VARPipeline):
    tokens = basic([3], seed=0).tokens
    flat = [t.flatten(1) for t in tokens]
    assert torch.equal(basic.tokenizer.decode(flat), basic.tokenizer.decode(tokens))
    mixed = [tokens[0].repeat(2, 1, 1), *tokens[1:]]
    for wrong in ([], flat[1:], tokens[::-1], [t[0, 0] for t in tokens], [*tokens, tokens[-1]], mixed):
        with pytest.raises(GridError, match=r"expected one \(B, h, w\) token tensor per step"):
            basic.tokenizer.decode(wrong)
    with pytest.raises(InvalidArgumentError, match=r"0\.\.63, but those of step 1 reach from 64 to 64"):
        basic.tokenizer.decode([tokens[0], torch.full_like(tokens[1], 64)])
    with pytest.raises(InvalidArgumentError, match=r"those of step 0 are torch\.float32"):
        basic.tokenizer.decode([t.float() for t in tokens])


def test_the_first_token_maps_give_the_picture_so_far(basic: VARPipeline):
    tokens = basic([3], seed=0).tokens
    story = basic.tokenizer.decode_progressive(tokens)
    inputs = basic.tokenizer.next_inputs(tokens)
    for steps in range(1, len(tokens) + 1):
        assert torch.equal(basic.tokenizer.decode(tokens[:steps]), story[steps - 1])
        prefix = basic.tokenizer.next_inputs(tokens[:steps])
        assert torch.equal(prefix, inputs[:, : prefix.shape[1]])


def test_labels_and_inputs_that_do_not_fit(basic: VARPipeline):
    inputs = basic.tokenizer.next_inputs(basic([3, 4], seed=0).tokens)
    with pytest.raises(InvalidArgumentError, match="3 labels for inputs of 2 images"):
        basic.transformer(torch.tensor([1, 2, 3]), inputs)
    with pytest.raises(InvalidArgumentError, match=r"whole numbers, got torch\.float32"):
        basic.transformer(torch.tensor([1.0, 2.0]), inputs)


def test_pictures_that_are_none(basic: VARPipeline):
    array = basic([3], seed=0, output_type="np").images
    with pytest.raises(InvalidArgumentError, match="got ndarray of ndarray"):
        basic.reconstruct(array)  # type: ignore[arg-type]


def test_tokenizing_at_another_resolution():
    """A tokenizer works for any list of scales whose last one is the latent's size."""
    config = VARTokenizerConfig(
        vocab_size=16, z_channels=4, ch=4, ch_mult=(1, 1), norm_groups=2, patch_nums=(1, 2, 4)
    )
    torch.manual_seed(0)
    tokenizer = VARTokenizer(config).eval()
    schedule = type(config.schedule).from_sides([1, 2, 3, 5, 6])
    tokens = tokenizer.encode(torch.rand(2, 3, 12, 12) * 2 - 1, schedule)
    assert [t.shape[1] for t in tokens] == [1, 2, 3, 5, 6]
    assert tokenizer.decode(tokens, schedule).shape == (2, 3, 12, 12)
    assert len(tokenizer.decode_progressive(tokens, schedule)) == 5
    with pytest.raises(GridError, match="for other scales pass their schedule="):
        tokenizer.decode(tokens)
