"""HARTPipeline's promises: seeds, pairing, guidance, text, settings, files, and errors that help."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale import ClassifierFreeGuidance, HARTPipeline, ScaledSpatialGuidance
from nextscale.errors import CheckpointError, GridError, InvalidArgumentError, ModelNotFoundError
from nextscale.families.hart.diffusion import LATENT_SCALE
from nextscale.families.hart.text import PUBLISHED, PUBLISHED_WIDTH, HARTTextEncoder
from nextscale.families.text import TextFeatures
from nextscale.generation.loop import StepInfo
from nextscale.generation.noise import Noise, Stream
from nextscale.generation.race import race
from nextscale.generation.request import GenerationOutput
from nextscale.generation.tokens import Filters
from nextscale.guidance import spatial_prior

# Sums in another order, as other batch sizes bring them, move pictures by some 1e-6; mixtures of codes at low
# temperatures amplify that. Tokens must not change.
ROUNDING, SOFT_ROUNDING = 5e-5, 5e-3


class Words:
    """A text encoder without weights: every letter is a row, and padding comes in front."""

    width = 12
    system_prompt = "spell it"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        self.asked += prompts
        table = torch.randn(128, 12, generator=torch.Generator().manual_seed(0))
        rows = torch.stack([table[[ord(c) for c in p[:6].rjust(6)]] for p in prompts])
        lengths = torch.tensor([[min(len(p), 6)] for p in prompts])
        return TextFeatures(rows, torch.arange(6) >= 6 - lengths)

    def release(self) -> None:
        self.asked.clear()


@pytest.fixture(scope="module")
def pipe(tiny: Callable) -> HARTPipeline:
    made = tiny()
    return HARTPipeline(made.transformer, made.tokenizer, text_encoder=Words())


@pytest.fixture(scope="module")
def golden_pipe(case: Callable) -> HARTPipeline:
    this = case("tiny_a")
    return HARTPipeline.from_official(this.transformer, this.tokenizer, device="cpu")


PROMPTS = ["cat", "a ship", "dog", "x", "horses"]


def equal_tokens(a: GenerationOutput, b: GenerationOutput) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))


def trace(pipe: HARTPipeline, *args: Any, **options: Any) -> tuple[GenerationOutput, list[StepInfo]]:
    steps: list[StepInfo] = []
    return pipe(*args, on_step=steps.append, output_type="pt", **options), steps


# ---------------------------------------------------------------------- the golden cases, through the call


def golden_features(this: Any) -> TextFeatures:
    return TextFeatures(this.io["ctx.embedding"], this.io["ctx.mask"].bool())


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
def test_golden_greedy_run(name: str, case: Callable):
    this = case(name)
    pipe = HARTPipeline.from_official(this.transformer, this.tokenizer, device="cpu")
    out, steps = trace(
        pipe,
        golden_features(this),
        guidance_scale=this.config["sampling"]["cfg"],
        sampler="greedy",
        more_smooth=False,
        residual=False,
        batch_size=2,
        seed=0,
    )
    for s, (tokens, step) in enumerate(zip(out.tokens, steps, strict=True)):
        assert torch.equal(tokens.flatten(1), this.io[f"ar.{s}.tokens"])
        torch.testing.assert_close(step.logits, this.io[f"ar.{s}.logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(out.images, this.io["ar.image"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
@pytest.mark.parametrize("smooth", [False, True])
def test_golden_seeded_run(name: str, smooth: bool, case: Callable):
    """The official draws, of tokens and of mixtures, with the official top-k."""
    this, group = case(name), "seeded_smooth" if smooth else "seeded"
    pipe = HARTPipeline.from_official(this.transformer, this.tokenizer, device="cpu")
    text = golden_features(this)
    out = pipe(
        text,
        guidance_scale=this.config["sampling"]["cfg"],
        sampler="multinomial",
        more_smooth=smooth,
        residual=False,
        batch_size=len(text),
        seed=[this.config["sampling"]["seeded_generator_seed"]] * len(text),
        output_type="pt",
    )
    for s, tokens in enumerate(out.tokens):
        assert torch.equal(tokens.flatten(1), this.io[f"{group}.{s}.tokens"])
    allowed = 2e-3 if smooth else 1e-4
    torch.testing.assert_close(out.images, this.io[f"{group}.image"], rtol=0, atol=allowed)


def test_golden_reconstruction(case: Callable, golden_pipe: HARTPipeline):
    this = case("tiny_a")
    with_residual = golden_pipe.reconstruct(this.io["tok.image"], output_type="pt")
    without = golden_pipe.reconstruct(this.io["tok.image"], residual=False, output_type="pt")
    for found, key in ((with_residual, "tok.image_gen_full"), (without, "tok.image_gen_discrete")):
        torch.testing.assert_close(found * 2 - 1, this.io[key], rtol=0, atol=2e-4)


# ---------------------------------------------------------------------- an image depends on its seed alone


@pytest.mark.parametrize(
    "options",
    [
        dict(more_smooth=False, residual=False),
        dict(more_smooth=False, ssg=0.6),
        dict(more_smooth=False, mask_iterations=3, ssg=0.6),
        dict(),
        dict(mask_iterations=2),
    ],
    ids=str,
)
def test_alone_in_batches_and_beside_others(options: dict[str, Any], pipe: HARTPipeline):
    options = dict(guidance_scale=2.0, output_type="pt", **options)
    together = pipe(PROMPTS, seed=20, batch_size=5, **options)
    by_two = pipe(PROMPTS, seed=20, batch_size=2, **options)
    tolerance = SOFT_ROUNDING if options.get("more_smooth", True) else ROUNDING
    assert equal_tokens(together, by_two)
    torch.testing.assert_close(by_two.images, together.images, rtol=0, atol=tolerance)
    for i, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, seed=20 + i, **options)
        beside = pipe(["q", "zz", prompt], seed=[5, 99, 20 + i], batch_size=3, **options)
        for other, row in ((alone, 0), (beside, 2)):
            for a, b in zip(other.tokens, together.tokens, strict=True):
                assert torch.equal(a[row], b[i])
            torch.testing.assert_close(other.images[row], together.images[i], rtol=0, atol=tolerance)


@pytest.mark.parametrize("options", [dict(), dict(mask_iterations=3, ssg=0.6)], ids=str)
def test_neighbours_do_not_change_a_bit(options: dict[str, Any], pipe: HARTPipeline):
    """With the batch size left as it is, sums keep their order, whatever the other prompts and seeds are."""
    a = pipe(["cat", "dog", "x"], seed=[5, 9, 6], batch_size=3, output_type="pt", **options)
    b = pipe(["horses", "dog", "yz"], seed=[70, 9, 80], batch_size=3, output_type="pt", **options)
    assert torch.equal(a.images[1], b.images[1])
    assert not torch.equal(a.images[0], b.images[0])


def test_the_same_call_gives_the_same_bits(pipe: HARTPipeline):
    a, b = (pipe(PROMPTS, seed=4, ssg=0.6, batch_size=3, output_type="pt") for _ in range(2))
    assert equal_tokens(a, b)
    assert torch.equal(a.images, b.images)


def test_seeds_make_all_the_difference(pipe: HARTPipeline):
    out = pipe(["cat"] * 3, seed=[1, 2, 1], batch_size=3, output_type="pt")
    assert out.seeds == [1, 2, 1]
    assert torch.equal(out.images[0], out.images[2])
    assert not torch.equal(out.images[0], out.images[1])
    # Also where tokens are no matter of chance: mixtures and the residual are.
    greedy = pipe(
        ["cat"] * 2, seed=[1, 2], sampler="greedy", more_smooth=False, batch_size=2, output_type="pt"
    )
    assert all(torch.equal(t[0], t[1]) for t in greedy.tokens)
    assert not torch.allclose(greedy.images[0], greedy.images[1], atol=1e-2)


def test_global_random_state_is_neither_used_nor_changed(pipe: HARTPipeline):
    torch.manual_seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a = pipe("cat", seed=5, mask_iterations=2, output_type="pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(2)
    assert torch.equal(a.images, pipe("cat", seed=5, mask_iterations=2, output_type="pt").images)


def test_what_is_drawn_does_not_depend_on_what_else_is(pipe: HARTPipeline):
    """The residual's noise, and the mixtures', are the same with and without the other and in any parts."""
    options: dict[str, Any] = dict(seed=3, output_type="pt", guidance_scale=0)
    plain, steps = trace(pipe, "cat", more_smooth=False, residual=False, seed=3, guidance_scale=0)
    hybrid, hybrid_steps = trace(pipe, "cat", more_smooth=False, seed=3, guidance_scale=0)
    assert equal_tokens(plain, hybrid)
    for a, b in zip(steps[:-1], hybrid_steps[:-1], strict=True):
        assert torch.equal(a.feature_map, b.feature_map)
    soft, soft_steps = trace(pipe, "cat", residual=False, seed=3, guidance_scale=0)
    both, both_steps = trace(pipe, "cat", seed=3, guidance_scale=0)
    assert equal_tokens(soft, both)
    for a, b in zip(soft_steps[:-1], both_steps[:-1], strict=True):
        assert torch.equal(a.feature_map, b.feature_map)
    parts = pipe("cat", more_smooth=False, mask_iterations=16, **options)
    assert all(torch.equal(a, b) for a, b in zip(parts.tokens[:-1], plain.tokens[:-1], strict=True))


# ---------------------------------------------------------------------- guidance


@pytest.mark.parametrize("sampler", ["paired", "greedy", "multinomial"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_zero_strength_is_bit_identical_to_none(sampler: Any, iterations: int, pipe: HARTPipeline):
    options: dict[str, Any] = dict(seed=3, sampler=sampler, mask_iterations=iterations, output_type="pt")
    plain = pipe(PROMPTS[:2], batch_size=2, **options)
    for ssg in (0, 0.0, ScaledSpatialGuidance(0.0), ScaledSpatialGuidance(0.9, start=99)):
        guided = pipe(PROMPTS[:2], ssg=ssg, batch_size=2, **options)
        assert equal_tokens(plain, guided)
        assert torch.equal(plain.images, guided.images)


@pytest.mark.parametrize("iterations", [1, 3])
def test_tokens_win_the_race_of_the_images_numbers(iterations: int, pipe: HARTPipeline):
    filters = Filters(temperature=0.9, top_k=[1, 9, 12, 20], top_p=0.95)
    options: dict[str, Any] = dict(temperature=0.9, top_k=[1, 9, 12, 20], top_p=0.95, batch_size=2)
    for ssg in (None, 0.8):
        out, steps = trace(pipe, PROMPTS[:2], seed=30, ssg=ssg, mask_iterations=iterations, **options)
        drawn = steps[:3] if iterations > 1 else steps
        for step in drawn:
            filtered = filters(step.guided, step.index)
            keys = Noise([30, 31]).keys(Stream.TOKENS, step.index, filtered.shape[1])
            assert torch.equal(step.tokens.flatten(), race(filtered.flatten(0, 1), keys.flatten()))
        assert torch.equal(out.tokens[-1], steps[-1].tokens)


@pytest.mark.parametrize(
    "ssg",
    [
        ScaledSpatialGuidance(0.7),
        ScaledSpatialGuidance(1.2, prior="bilinear"),
        ScaledSpatialGuidance([9.0, 0.5, 0.0, 2.0], prior="dct", norm="forward"),
        ScaledSpatialGuidance(0.8, schedule="bandwidth", start=2),
    ],
    ids=str,
)
def test_guided_logits_are_the_definition(ssg: ScaledSpatialGuidance, pipe: HARTPipeline):
    raw: list[Tensor] = []
    hook = pipe.transformer.head.register_forward_hook(lambda _m, _i, out: raw.append(out))
    _, steps = trace(pipe, PROMPTS[:2], guidance_scale=2.5, ssg=ssg, seed=1, batch_size=2)
    hook.remove()
    grids = pipe.schedule.grids
    betas = ssg.betas(grids)
    for k, step in enumerate(steps):
        cond, uncond = raw[k].chunk(2)
        t = 2.5 * min(k, 2) / 3  # the last step repeats the one before it
        torch.testing.assert_close(step.logits, (1 + t) * cond - t * uncond, rtol=1e-5, atol=1e-5)
        if betas[k] == 0:
            assert step.guided is step.logits
            continue
        prior = spatial_prior(
            steps[k - 1].logits, coarse=grids[k - 1], fine=grids[k], kind=ssg.prior, norm=ssg.norm
        )
        expected = step.logits + betas[k] * (step.logits - prior)
        torch.testing.assert_close(step.guided, expected, rtol=1e-4, atol=1e-4)


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
def test_the_cost_of_classifier_free_guidance(scale: Any, rows: int, pipe: HARTPipeline):
    """The unconditional branch is computed only where some step needs it."""
    seen: list[int] = []
    hooks = [
        b.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
        for b in pipe.transformer.blocks
    ]
    pipe(PROMPTS[:2], guidance_scale=scale, ssg=0.5, seed=0, batch_size=2)
    for hook in hooks:
        hook.remove()
    assert seen == [rows] * pipe.transformer.config.depth * pipe.schedule.num_steps


def test_conventions_of_the_strength_agree(pipe: HARTPipeline):
    """Also in the residual, which is drawn under the strength of the last step."""
    per_step = [1.5 * min(k, 2) / 3 for k in range(4)]
    usual = ClassifierFreeGuidance([1 + t for t in per_step], convention="interpolate")
    outs = [
        pipe("cat", guidance_scale=s, seed=2, more_smooth=False, output_type="pt")
        for s in (1.5, per_step, usual)
    ]
    assert equal_tokens(outs[0], outs[1])
    assert torch.equal(outs[0].images, outs[1].images)
    assert equal_tokens(outs[0], outs[2])
    torch.testing.assert_close(outs[0].images, outs[2].images, rtol=0, atol=1e-4)


def test_the_residual_is_not_guided_by_ssg(pipe: HARTPipeline):
    """Strength at the last step alone changes its tokens, and the residual only through them."""
    at_last = ScaledSpatialGuidance(3.0, start=3)
    given = pipe("cat", seed=1, more_smooth=False).tokens
    options: dict[str, Any] = dict(given_tokens=given, seed=1, more_smooth=False, output_type="pt")
    plain, guided = (pipe("cat", ssg=s, **options) for s in (None, at_last))
    assert torch.equal(plain.images, guided.images)


# ---------------------------------------------------------------------- what is special to HART


def test_the_residual(pipe: HARTPipeline):
    options: dict[str, Any] = dict(seed=0, more_smooth=False)
    codes, code_steps = trace(pipe, "cat", residual=False, **options)
    hybrid, hybrid_steps = trace(pipe, "cat", **options)
    assert equal_tokens(codes, hybrid)
    added = hybrid_steps[-1].feature_map - code_steps[-1].feature_map
    assert 0.05 < float(added.abs().max()) <= LATENT_SCALE + 1e-5
    assert not torch.allclose(codes.images, hybrid.images, atol=1e-2)
    decoded = pipe.tokenizer.decode(codes.tokens) / 2 + 0.5
    torch.testing.assert_close(decoded, codes.images, rtol=0, atol=ROUNDING)


def test_mixtures_are_shown_by_default_and_can_be_left_out(pipe: HARTPipeline):
    default, soft, hard = (
        pipe("cat", seed=0, residual=False, output_type="pt", more_smooth=m) for m in (None, True, False)
    )
    assert torch.equal(default.images, soft.images)
    assert not torch.allclose(soft.images, hard.images, atol=1e-3)
    own = HARTPipeline(
        pipe.transformer, pipe.tokenizer, text_encoder=Words(), defaults={"more_smooth": False}
    )
    assert torch.equal(own("cat", seed=0, residual=False, output_type="pt").images, hard.images)


@pytest.mark.parametrize("iterations", [1, 2, 5, 16])
def test_mask_iterations(iterations: int, pipe: HARTPipeline):
    out, steps = trace(pipe, PROMPTS[:2], mask_iterations=iterations, seed=0, batch_size=2)
    assert [s.index for s in steps] == [0, 1, 2, *[3] * iterations]
    assert [tuple(t.shape) for t in out.tokens] == [(2, n, n) for n in (1, 2, 3, 4)]
    assert all(0 <= int(t.min()) <= int(t.max()) < 24 for t in out.tokens)
    assert torch.isfinite(out.images).all()


def test_given_tokens(pipe: HARTPipeline):
    first = pipe(PROMPTS[:2], seed=0, more_smooth=False, batch_size=2)
    kept = pipe(PROMPTS[:2], seed=50, given_tokens=first.tokens[:2], batch_size=2, output_type="pt")
    assert all(torch.equal(a, b) for a, b in zip(first.tokens[:2], kept.tokens[:2], strict=True))
    assert not torch.equal(first.tokens[2], kept.tokens[2])
    assert kept.settings["given_tokens"] == 2
    one = [t[:1] for t in first.tokens]
    spread = pipe(PROMPTS[:2], seed=50, given_tokens=one, mask_iterations=3, batch_size=1)
    assert all(torch.equal(t, o.expand(2, -1, -1)) for t, o in zip(spread.tokens, one, strict=True))
    everything = pipe("cat", seed=9, given_tokens=one, residual=False, output_type="pt")
    decoded = pipe.tokenizer.decode(one) / 2 + 0.5
    torch.testing.assert_close(everything.images, decoded, rtol=0, atol=ROUNDING)


def test_the_official_top_k_depends_on_the_index_of_the_scale(tiny: Callable, prompts: Callable):
    made = tiny(patch_nums=(1, 2, 2, 2, 2, 2, 3, 3, 4), vocab_size=400)
    settings = made(prompts(1), seed=0).settings
    assert settings["top_k"] == (*[400] * 7, 300, 300)
    assert made(prompts(1), seed=0, top_k=5).settings["top_k"] == 5


# ---------------------------------------------------------------------- text


def test_prompts_and_their_features_are_the_same(pipe: HARTPipeline):
    features = pipe.encode_prompts(PROMPTS[:2])
    by_text = pipe(PROMPTS[:2], seed=0, batch_size=2, output_type="pt")
    by_features = pipe(features, seed=0, batch_size=2, output_type="pt")
    assert torch.equal(by_text.images, by_features.images)
    assert by_text.settings["prompts"] == PROMPTS[:2]
    assert by_features.settings["prompts"] is None
    digest = hashlib.sha256(Words.system_prompt.encode()).hexdigest()
    assert by_text.settings["system_prompt_sha256"] == digest
    assert by_features.settings["system_prompt_sha256"] is None


def test_the_prompt_matters(pipe: HARTPipeline):
    out = pipe(["cat", "dog"], seed=[0, 0], sampler="greedy", more_smooth=False, batch_size=2)
    assert not all(torch.equal(t[0], t[1]) for t in out.tokens)


def test_without_encoder_there_must_be_features(pipe: HARTPipeline, prompts: Callable):
    bare = HARTPipeline(pipe.transformer, pipe.tokenizer)
    with pytest.raises(InvalidArgumentError, match="no text encoder, so prompts cannot be strings"):
        bare("cat")
    bare(prompts(1), seed=0)


def test_features_of_another_encoder(pipe: HARTPipeline, prompts: Callable):
    for text in (prompts(1, width=11), prompts(1, tokens=5)):
        with pytest.raises(InvalidArgumentError, match=r"takes text features \(B, 6, 12\)"):
            pipe(text)


# ---------------------------------------------------------------------- what a callback sees, what comes back


def test_step_info(pipe: HARTPipeline):
    out, steps = trace(pipe, PROMPTS[:3], ssg=0.5, seed=0, more_smooth=False, residual=False, batch_size=3)
    sums = pipe.tokenizer.partial_sums(out.tokens)
    for k, (step, (h, w)) in enumerate(zip(steps, pipe.schedule, strict=True)):
        assert (step.index, step.grid) == (k, (h, w))
        assert step.logits.shape == step.guided.shape == (3, h * w, 24)
        assert step.logits.dtype == step.guided.dtype == step.feature_map.dtype == torch.float32
        assert torch.equal(step.tokens, out.tokens[k])
        # None of the maps was changed after it had been shown.
        torch.testing.assert_close(step.feature_map, sums[k], rtol=0, atol=1e-5)


def test_every_batch_reports_its_steps(pipe: HARTPipeline):
    _, steps = trace(pipe, PROMPTS[:3], seed=0, batch_size=2)
    assert [(s.index, len(s.tokens)) for s in steps] == [(k, n) for n in (2, 1) for k in range(4)]


def test_output_types(pipe: HARTPipeline):
    tensor, array, pictures = (pipe(PROMPTS[:2], seed=0, output_type=t).images for t in ("pt", "np", "pil"))
    assert tensor.shape == (2, 3, 8, 8)
    assert 0 <= tensor.min() < tensor.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    for picture, values in zip(pictures, array, strict=True):
        assert isinstance(picture, Image.Image)
        assert np.array_equal(np.asarray(picture), np.round(values * 255))


def test_settings_make_the_same_images_again(pipe: HARTPipeline):
    out = pipe(
        PROMPTS[:3],
        guidance_scale=2.0,
        ssg=ScaledSpatialGuidance(0.5, prior="bilinear"),
        top_k=[1, 12, 12, 20],
        top_p=0.9,
        min_p=0.01,
        temperature=[1, 0.9, 0.8, 1.1],
        mask_iterations=2,
        residual=True,
        seed=[4, 5, 6],
        output_type="pt",
    )
    told = json.loads(json.dumps(out.settings))
    assert told["seeds"] == out.seeds == [4, 5, 6]
    assert (told["family"], told["sampler"], told["dtype"]) == ("hart", "paired", "float32")
    names = ("prompts", "top_k", "top_p", "min_p", "temperature", "more_smooth", "residual")
    again = pipe(
        **{k: told[k] for k in (*names, "mask_iterations", "sampler")},
        guidance_scale=ClassifierFreeGuidance.from_dict(told["guidance_scale"]),
        ssg=ScaledSpatialGuidance.from_dict(told["ssg"]),
        seed=told["seeds"],
        output_type="pt",
    )
    assert equal_tokens(out, again)
    assert torch.equal(out.images, again.images)
    assert again.settings == out.settings


def test_defaults(pipe: HARTPipeline):
    settings = pipe("cat", seed=0).settings
    assert (settings["guidance_scale"]["scale"], settings["guidance_scale"]["ramp"]) == (4.5, "linear-hold")
    assert settings["top_k"] == (24, 24, 24, 24)  # 600 of 24 is all
    assert (settings["top_p"], settings["min_p"], settings["temperature"]) == (0.0, 0.0, 1.0)
    assert (settings["more_smooth"], settings["residual"], settings["mask_iterations"]) == (True, True, 1)
    assert (settings["ssg"], settings["given_tokens"]) == (None, 0)
    own = HARTPipeline(pipe.transformer, pipe.tokenizer, text_encoder=Words(), defaults={"top_k": 5})
    assert own("cat", seed=0).settings["top_k"] == 5


def test_outputs_are_ordinary_tensors(pipe: HARTPipeline):
    out, steps = trace(pipe, "cat", seed=0)
    tensors = [out.images, steps[0].feature_map, *out.tokens]
    assert not any(t.is_inference() or t.requires_grad for t in tensors)


@pytest.mark.parametrize(("dtype", "allowed"), [("bfloat16", 0.06), ("float16", 0.01)])
def test_half_precision_on_the_cpu(dtype: str, allowed: float, case: Callable, golden_pipe: HARTPipeline):
    this = case("tiny_a")
    half = HARTPipeline.from_official(this.transformer, this.tokenizer, device="cpu", dtype=dtype)
    assert half.dtype == half.tokenizer.dtype == getattr(torch, dtype)
    text = golden_features(this)
    exact, exact_steps = trace(golden_pipe, text, seed=0, batch_size=2)
    out, steps = trace(half, text, seed=0, ssg=0.6, mask_iterations=2, batch_size=2)
    assert torch.isfinite(out.images).all()
    assert out.images.dtype == torch.float32
    assert all(s.logits.dtype == s.feature_map.dtype == torch.float32 for s in steps)
    first = exact_steps[0].logits
    assert float((steps[0].logits - first).abs().mean()) < allowed * float(first.std())
    assert (out.settings["dtype"], exact.settings["dtype"]) == (dtype, "float32")


# ---------------------------------------------------------------------- files


def test_saved_and_loaded(pipe: HARTPipeline, tmp_path: Path):
    made = HARTPipeline(pipe.transformer, pipe.tokenizer, text_encoder=Words(), defaults={"top_p": 0.5})
    made.save_pretrained(tmp_path / "model")
    encoder = Words()
    back = HARTPipeline.from_pretrained(tmp_path / "model", text_encoder=encoder, device="cpu")
    assert back.text_encoder is encoder
    assert back.defaults == made.defaults
    assert back.transformer.config == pipe.transformer.config
    a, b = (p("cat", seed=0, output_type="pt") for p in (made, back))
    assert equal_tokens(a, b)
    torch.testing.assert_close(a.images, b.images, rtol=0, atol=SOFT_ROUNDING)
    assert HARTPipeline.from_pretrained(tmp_path / "model").text_encoder is None
    rounded = tmp_path / "half"
    made.save_pretrained(rounded, dtype="float16")
    assert torch.isfinite(
        HARTPipeline.from_pretrained(rounded)(encoder(["cat"]), output_type="pt").images
    ).all()


def test_the_name_of_the_text_encoder_is_stored(pipe: HARTPipeline, tmp_path: Path):
    named = HARTTextEncoder("somebody/qwen2", context_token=6, device="cpu")
    HARTPipeline(pipe.transformer, pipe.tokenizer, text_encoder=named).save_pretrained(tmp_path)
    back = HARTPipeline.from_pretrained(tmp_path, device="cpu").text_encoder
    assert isinstance(back, HARTTextEncoder)
    assert (back.name, back.context_token) == ("somebody/qwen2", 6)
    other = HARTPipeline.from_pretrained(tmp_path, text_encoder="nobody/qwen2").text_encoder
    assert isinstance(other, HARTTextEncoder)
    assert other.name == "nobody/qwen2"


def test_the_published_text_encoder_goes_with_models_of_its_width(
    tiny: Callable, tmp_path: Path, golden_pipe: HARTPipeline
):
    assert golden_pipe.text_encoder is None  # its features are narrower
    made = tiny(context_dim=PUBLISHED_WIDTH, ch=32, norm_groups=32)
    made.save_pretrained(tmp_path)
    folder = tmp_path / "official"
    for part in ("llm", "tokenizer"):
        (folder / part).mkdir(parents=True)
    (tmp_path / "transformer" / "model.safetensors").rename(folder / "llm" / "model.safetensors")
    (tmp_path / "transformer" / "config.json").rename(folder / "llm" / "config.json")
    (tmp_path / "tokenizer" / "model.safetensors").rename(folder / "tokenizer" / "model.safetensors")
    (tmp_path / "tokenizer" / "config.json").rename(folder / "tokenizer" / "config.json")
    loaded = HARTPipeline.from_official(folder, device="cpu")
    assert isinstance(loaded.text_encoder, HARTTextEncoder)
    assert (loaded.text_encoder.name, loaded.text_encoder.context_token) == (PUBLISHED, 6)
    with pytest.raises(InvalidArgumentError, match="this system prompt is not the published one"):
        HARTPipeline.from_official(folder, system_prompt="speak", device="cpu")


def test_a_system_prompt_needs_an_encoder_that_is_made_here(case: Callable):
    this = case("tiny_a")
    for encoder in (Words(), None):
        with pytest.raises(InvalidArgumentError, match="a system prompt belongs to the text encoder"):
            HARTPipeline.from_official(
                this.transformer, this.tokenizer, text_encoder=encoder, system_prompt="x", device="cpu"
            )


def test_models_that_do_not_belong_together(tiny: Callable):
    transformer = tiny().transformer
    for other, message in (
        (tiny(vocab_size=25), "vocab_size is 24 and 25"),
        (tiny(z_channels=4), "z_channels is 8 and 4"),
        (tiny([1, 2, 4]), "their grids are 1x1 2x2 3x3 4x4 and 1x1 2x2 4x4"),
    ):
        with pytest.raises(CheckpointError, match=f"do not belong together: {message}"):
            HARTPipeline(transformer, other.tokenizer)


def test_models_of_other_families_and_none(tmp_path: Path):
    with pytest.raises(CheckpointError, match="'cifar10' is a model of the family 'var', not 'hart'"):
        HARTPipeline.from_pretrained("cifar10")
    with pytest.raises(ModelNotFoundError):
        HARTPipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        HARTPipeline.from_official(tmp_path / "none.safetensors")


# ---------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mask_iterations=0), "mask_iterations must be a whole number from 1 to 16"),
        (dict(mask_iterations=17), "mask_iterations must be a whole number from 1 to 16"),
        (dict(top_k=25), "top_k is 25, but the vocabulary has 24"),
        (dict(top_k=[1, 2]), "top_k has 2 values, but the model takes 4 steps"),
        (dict(temperature=0), "temperature must be a positive number"),
        (dict(guidance_scale=-1), "scale"),
        (dict(guidance_scale=[1, 2]), "4"),
        (dict(ssg=-0.5), "beta"),
        (dict(seed=[1, 2]), "2 seeds for 1 images"),
        (dict(batch_size=0), "batch_size must be a positive whole number"),
        (dict(sampler="best"), "unknown sampler 'best'"),
        (dict(output_type="jpg"), "unknown output_type 'jpg'"),
        (dict(given_tokens=[torch.zeros(1, 1, 1).long()] * 5), "5 maps of given_tokens for 4 scales"),
        (dict(given_tokens=[torch.zeros(3, 1, 1).long()]), "given_tokens are for 3 pictures, but 1 are made"),
        (dict(given_tokens=[torch.full((1, 1, 1), 24)]), r"tokens must be in 0\.\.23"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], message: str, pipe: HARTPipeline):
    with pytest.raises(InvalidArgumentError, match=message):
        pipe("cat", **options)


def test_bad_arguments_are_found_before_prompts_are_encoded(pipe: HARTPipeline):
    encoder = Words()
    own = HARTPipeline(pipe.transformer, pipe.tokenizer, text_encoder=encoder)
    for options in (dict(mask_iterations=99), dict(top_k=-1), dict(output_type="x"), dict(ssg="much")):
        with pytest.raises(InvalidArgumentError):
            own("cat", **options)
    assert encoder.asked == []


@pytest.mark.parametrize("prompts", [[], 3, ["cat", 3], None])
def test_prompts_that_are_none(prompts: Any, pipe: HARTPipeline):
    with pytest.raises(InvalidArgumentError, match="prompts must be"):
        pipe(prompts)


def test_given_tokens_of_other_grids(pipe: HARTPipeline):
    with pytest.raises(GridError, match="expected one"):
        pipe("cat", given_tokens=[torch.zeros(1, 2, 2).long()])


# ---------------------------------------------------------------------- pictures


def test_reconstruction(pipe: HARTPipeline):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    kept, lost = (pipe.reconstruct(images, residual=r, output_type="pt") for r in (True, False))
    exact = pipe.tokenizer.decode_latent(pipe.tokenizer.features(images)) / 2 + 0.5
    torch.testing.assert_close(kept, exact, rtol=0, atol=ROUNDING)
    assert not torch.allclose(lost, exact, atol=1e-2)
    pictures = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (0, 200)]
    assert [p.size for p in pipe.reconstruct(pictures)] == [(8, 8)] * 2
    with pytest.raises(InvalidArgumentError, match="pictures must be 8x8 pixels for this model, got 9x8"):
        pipe.reconstruct(Image.new("RGB", (9, 8)))
