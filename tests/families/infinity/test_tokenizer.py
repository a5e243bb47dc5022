"""The tokenizer: every golden tensor, both layouts of bits, teacher forcing, and what training needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.families.infinity.bits import bit_codes, entropy_penalty, resize, to_cells, to_tokens
from nextscale.families.infinity.checkpoint import load_tokenizer
from nextscale.families.infinity.schedules import schedule_for
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.nn.placement import place
from nextscale.nn.quantizer import shrink
from nextscale.scales import ScaleSchedule

CASES = ["square_d16", "wide_patchify_d6"]
TINY = InfinityTokenizerConfig(
    bits=5, ch=24, encoder_ch_mult=(1, 2), decoder_ch_mult=(2, 1), num_res_blocks=1, patch_nums=(1, 2, 3, 4)
)


@pytest.fixture(scope="module")
def golden_tokenizer(case: Callable) -> Callable[[str], InfinityTokenizer]:
    def load(name: str) -> InfinityTokenizer:
        this = case(name)
        bits = this.config["transformer"]["latent_channels"]
        return load_tokenizer(this.tokenizer, place("cpu"), token_bits=bits)

    return load


def make(seed: int = 0, **changes: Any) -> InfinityTokenizer:
    torch.manual_seed(seed)
    return InfinityTokenizer(replace(TINY, **changes)).eval().requires_grad_(False)


def some_images(batch: int, height: int, width: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, height // 2, width // 2, generator=generator) * 2 - 1
    return F.interpolate(small, size=(height, width), mode="bilinear")


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------ golden cases


@pytest.mark.parametrize("name", CASES)
def test_golden_pictures_and_bits(name: str, case: Callable, golden_tokenizer: Callable):
    this, tokenizer = case(name), golden_tokenizer(name)
    image = this.io["tok.image_u8"].permute(2, 0, 1)[None].float() / 255
    image = image + image - 1
    expected = [b.long() for b in this.steps("tok.bits")]
    close = dict(rtol=1e-5, atol=1e-4)

    torch.testing.assert_close(tokenizer.features(image), this.io["tok.features"], **close)
    bits = tokenizer.encode(image, this.schedule)
    assert same(bits, expected)
    assert {b.dtype for b in bits} == {torch.int64}

    chain = tokenizer.quantized(image, this.schedule)
    sums = tokenizer.partial_sums(bits)
    assert same([q.f_hat for q in chain], sums)
    torch.testing.assert_close(sums[-1], this.io["tok.quantized"], **close)
    for q, following, wanted in zip(chain, chain[1:], this.steps("tok.quantizer_next"), strict=False):
        torch.testing.assert_close(shrink(q.f_hat, tuple(following.bits.shape[1:3])), wanted, **close)

    recon = tokenizer.decode(bits)
    torch.testing.assert_close(recon, this.io["tok.recon"], rtol=0, atol=1e-4)
    in_strips = tokenizer.decode_latent(sums[-1], tile=3)
    torch.testing.assert_close(in_strips, this.io["tok.recon"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_golden_bits_in_the_layout_of_tokens(name: str, case: Callable, golden_tokenizer: Callable):
    """The bits a run of the official sampler chose, and the sums and inputs it made of them."""
    this, tokenizer = case(name), golden_tokenizer(name)
    flat = this.steps("ar.guide_head.bits")  # (B, L, D)
    tokens = [b.unflatten(1, grid).bool() for b, grid in zip(flat, this.schedule, strict=True)]
    expected = this.steps("ar.guide_head.summed")
    for given_bits, schedule in ((flat, this.schedule), (tokens, None), (map(to_long, tokens), None)):
        sums = tokenizer.partial_sums(list(given_bits), schedule)
        torch.testing.assert_close(sums[-1], expected[-1], rtol=1e-5, atol=1e-4)
    for found, wanted in zip(sums, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    inputs = torch.cat(this.steps("ar.guide_head.next_in"), 1)
    torch.testing.assert_close(tokenizer.next_inputs(tokens), inputs, rtol=1e-5, atol=1e-4)

    image = this.io["ar.guide_head.image0"]
    h, w = image.shape[2:]
    torch.testing.assert_close(tokenizer.decode(tokens)[:1, :, :h, :w], image, rtol=0, atol=1e-3)


def to_long(bits: Tensor) -> Tensor:
    return bits.long()


@pytest.mark.parametrize("name", CASES)
def test_golden_self_correction(name: str, case: Callable, golden_tokenizer: Callable):
    this, tokenizer = case(name), golden_tokenizer(name)
    found = tokenizer.self_correction(this.io["tok.features"], this.schedule, flips=this.steps("train.flip"))
    torch.testing.assert_close(found.inputs, this.io["train.x_in"], rtol=1e-5, atol=1e-4)
    assert torch.equal(found.targets, torch.cat(this.steps("train.labels"), 1).long())
    for wanted, span in zip(this.steps("train.labels"), map(this.schedule.span, range(99)), strict=False):
        assert torch.equal(found.targets[:, span], wanted.long())


# ------------------------------------------------------------------ layouts


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_tokens_are_pixel_unshuffled_cells(batch: int, h: int, w: int, d: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(batch, 2 * h, 2 * w, d, generator=generator)
    tokens = to_tokens(cells)
    expected = F.pixel_unshuffle(cells.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert torch.equal(tokens, expected)
    assert torch.equal(to_cells(tokens), cells)


def test_the_channel_order_of_a_token():
    cells = torch.arange(2 * 4 * 6 * 3).view(2, 4, 6, 3)
    tokens = to_tokens(cells)
    for k, a, b in ((0, 0, 0), (2, 0, 1), (1, 1, 0), (2, 1, 1)):
        assert torch.equal(tokens[:, 1, 2, 4 * k + 2 * a + b], cells[:, 2 + a, 4 + b, k])


@given(st.integers(1, 40), st.integers(0, 99))
def test_codes_have_norm_one(d: int, seed: int):
    bits = torch.randint(0, 2, (2, 3, 4, d), generator=torch.Generator().manual_seed(seed))
    codes = bit_codes(bits)
    assert codes.shape == (2, d, 3, 4)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2, 3, 4))
    assert torch.equal(codes > 0, bits.permute(0, 3, 1, 2) == 1)


def test_resizing_is_bilinear_both_ways():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # Half-pixel centres: the middle of two cells, without the smoothing of anti-aliasing.
    assert resize(x, (2, 2))[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert resize(x, (2, 2)).shape == (1, 1, 2, 2)
    steep = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]]).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    assert resize(steep, (2, 2)).abs().max() == 0  # cells 1 and 2 of 8 are in the middle of the first half
    assert resize(x, (4, 4)) is x
    torch.testing.assert_close(resize(torch.ones(1, 1, 1, 1), (3, 5)), torch.ones(1, 1, 3, 5))


@pytest.mark.parametrize("patchify", [False, True])
@pytest.mark.parametrize("grids", [[1, 2, 3], [(1, 1), (1, 2), (3, 5), (4, 8)]])
def test_both_layouts_mean_the_same(patchify: bool, grids: Any):
    tokenizer = make(patchify=patchify, patch_nums=grids)
    schedule = tokenizer.schedule
    assert schedule is not None
    side = tokenizer.config.reduction * tokenizer.config.patch
    assert side == (4 if patchify else 2)
    h, w = schedule.final
    images = some_images(2, h * side, w * side)
    bits = tokenizer.encode(images)
    tokens = [tokenizer.tokens(b) for b in bits]
    assert [tuple(t.shape[1:]) for t in tokens] == [(*g, tokenizer.config.token_bits) for g in schedule]
    assert tokenizer.config.token_bits == (20 if patchify else 5)
    mixed = [t if i % 2 else b for i, (b, t) in enumerate(zip(bits, tokens, strict=True))]
    flat = [t.flatten(1, 2) for t in tokens]
    for given_bits in (tokens, mixed, flat, [b.bool() for b in bits], [b.byte() for b in tokens]):
        assert same(tokenizer.partial_sums(bits), tokenizer.partial_sums(given_bits))
    progress = tokenizer.decode_progressive(bits)
    assert torch.equal(tokenizer.decode(tokens), progress[-1])
    assert {p.shape for p in progress} == {images.shape}


@pytest.mark.parametrize("patchify", [False, True])
@torch.no_grad()  # with gradients a decoder rounds differently
def test_the_first_maps_alone(patchify: bool):
    tokenizer = make(patchify=patchify, patch_nums=None)
    schedule = ScaleSchedule(((1, 1), (2, 2), (3, 4), (4, 6)))
    side = tokenizer.config.reduction * tokenizer.config.patch
    bits = tokenizer.encode(some_images(2, 4 * side, 6 * side), schedule)
    whole = tokenizer.partial_sums(bits, schedule)
    assert same(whole, tokenizer.partial_sums(bits))  # the last map tells the size
    inputs = tokenizer.next_inputs(bits, schedule)
    assert inputs.shape == (2, schedule.num_tokens - 1, tokenizer.config.token_bits)
    for n in range(1, 5):
        assert same(whole[:n], tokenizer.partial_sums(bits[:n], schedule))
        assert torch.equal(tokenizer.decode(bits[:n], schedule), tokenizer.decode_latent(whole[n - 1]))
        part = tokenizer.next_inputs(bits[:n], schedule)
        assert torch.equal(part, inputs[:, : schedule.offsets[n] - 1])


def test_next_inputs_are_bilinear_from_the_whole_sum():
    tokenizer = make(patch_nums=None)
    schedule = ScaleSchedule.from_sides([1, 2, 5, 8])
    bits = tokenizer.encode(some_images(1, 16, 16), schedule)
    sums = tokenizer.partial_sums(bits)
    maps = [F.interpolate(s, size=g, mode="bilinear") for s, g in zip(sums, schedule.grids[1:], strict=False)]
    expected = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
    torch.testing.assert_close(tokenizer.next_inputs(bits), expected)


# ------------------------------------------------------------------ schedules and sizes


def test_published_sizes_find_their_schedule():
    for patchify, levels in ((False, 5), (True, 4)):
        config = InfinityTokenizerConfig(
            bits=2, ch=24, encoder_ch_mult=(1,) * levels, decoder_ch_mult=(1,) * levels, patchify=patchify
        )
        assert config.reduction * config.patch == 16
        with torch.device("meta"):
            tokenizer = InfinityTokenizer(config)
        assert tokenizer.schedule is None
        for aspect, budget in (("1:1", "0.06M"), ("16:9", "1M"), ("1:3", "0.25M")):
            schedule = schedule_for(aspect, budget)
            cells = tokenizer.cells(schedule)
            assert tokenizer.schedule_for(cells.final) == schedule
            assert cells[0] == ((2, 2) if patchify else (1, 1))
        with pytest.raises(
            GridError, match=r"no published schedule is for pictures of 1008x1024 .*nearest size is 1024x1024"
        ):
            tokenizer.schedule_for((63 * config.patch, 64 * config.patch))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 0}, "at least one bit, got 0"),
        ({"ch": 20}, "multiples of 32 or 24 .*got 20"),
        ({"ch": 12, "norm_groups": (8,)}, "multiples of 8 for .*got 12"),
        ({"ch": 48, "encoder_ch_mult": (1, 0)}, "got 0"),
        ({"decoder_ch_mult": (1,)}, r"same number of levels, got the widths \(1, 2\) and \(1,\)"),
        ({"encoder_ch_mult": (), "decoder_ch_mult": ()}, "same number of levels"),
        ({"patch_nums": (3, 1)}, "must not shrink"),
    ],
)
def test_sizes_that_make_no_tokenizer(changes: dict[str, Any], message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        replace(TINY, **changes)


def test_config_through_json():
    config = replace(TINY, patch_nums=((1, 1), (2, 3)))
    assert InfinityTokenizerConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert (
        InfinityTokenizerConfig(**json.loads(json.dumps(InfinityTokenizerConfig().to_dict()))).schedule
        is None
    )


def test_narrow_tokenizers_take_fewer_groups():
    tokenizer = make(ch=8, norm_groups=(16, 4))
    groups = {m.num_channels: m.num_groups for m in tokenizer.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert groups == {8: 4, 16: 16}
    published = make()
    assert {m.num_groups for m in published.modules() if isinstance(m, torch.nn.GroupNorm)} == {24}
    config = replace(TINY, ch=8, norm_groups=(16, 4))
    assert InfinityTokenizerConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_pictures_that_do_not_fit():
    tokenizer = make(patchify=True)
    for images in (torch.zeros(1, 3, 18, 16), torch.zeros(1, 1, 16, 16), torch.zeros(3, 16, 16)):
        with pytest.raises(
            InvalidArgumentError, match=r"\(B, 3, H, W\) .* multiples of 4, got torch.float32"
        ):
            tokenizer.encode(images)
    with pytest.raises(InvalidArgumentError, match=r"got torch.uint8"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(GridError, match=r"last scale is \(4, 4\), so images must be 16x16 .*; got 20x16"):
        tokenizer.encode(torch.zeros(1, 3, 20, 16))
    with pytest.raises(GridError, match=r"last scale is \(1, 1\), so images must be 4x4"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16), ScaleSchedule.from_sides([1]))


def test_bits_that_do_not_fit():
    tokenizer = make(patchify=True)
    bits = tokenizer.encode(some_images(2, 16, 16))

    def refused(error: type[Exception], message: str, given_bits: list[Tensor], **options: Any) -> None:
        with pytest.raises(error, match=message):
            tokenizer.decode(given_bits, **options)

    refused(GridError, "at least one scale are needed, got none", [])
    refused(
        GridError,
        r"expected bits \(B, H, W, 5\) or tokens \(B, h, w, 20\), but those of step 1 are",
        [bits[0], bits[1][..., :4]],
    )
    refused(GridError, r"grids 1x1 2x2 3x3 4x4, or for the first, got shapes \[\(2, 4, 4, 5\)\]", bits[1:2])
    refused(GridError, "got shapes", [*bits, bits[-1]])
    refused(GridError, "got shapes", [bits[0], bits[1][:1]])
    refused(GridError, "pass their schedule", bits, schedule=ScaleSchedule.from_sides([1, 2]))
    refused(
        InvalidArgumentError,
        "whole numbers or bool, but those of step 0 are torch.float32",
        [bits[0].float()],
    )
    refused(InvalidArgumentError, "0 or 1, but those of step 1 reach from 0 to 2", [bits[0], bits[1] * 2])
    refused(InvalidArgumentError, "reach from -1 to -1", [bits[0] * 0 - 1])
    with pytest.raises(InvalidArgumentError, match="at least 1, got 0"):
        tokenizer.decode_latent(tokenizer.partial_sums(bits)[-1], tile=0)


def test_sums_stay_in_float32():
    tokenizer = make().to(torch.bfloat16)
    images = some_images(2, 8, 8)
    chain = tokenizer.quantized(images)
    assert {q.f_hat.dtype for q in chain} == {torch.float32} == {q.residual.dtype for q in chain}
    assert {s.dtype for s in tokenizer.partial_sums([q.bits for q in chain])} == {torch.float32}
    assert tokenizer.next_inputs([q.bits for q in chain]).dtype == torch.float32
    assert tokenizer.decode([q.bits for q in chain]).dtype == torch.float32
    assert tokenizer.decode_latent(chain[-1].f_hat, tile=1).dtype == torch.float32


def test_zero_is_bit_zero():
    tokenizer = make()
    bits = next(tokenizer.residual_chain(torch.zeros(1, 5, 4, 4))).bits
    assert bits.sum() == 0


# ------------------------------------------------------------------ self-correction


@pytest.mark.parametrize("patchify", [False, True])
def test_without_flips_targets_are_the_encoded_bits(patchify: bool):
    tokenizer = make(patchify=patchify)
    images = some_images(3, 16, 16) if patchify else some_images(3, 8, 8)
    bits = tokenizer.encode(images)
    expected = torch.cat([tokenizer.tokens(b).flatten(1, 2) for b in bits], 1)
    for options in (dict(flip_scales=0), dict(flip_scales=-1), dict(flips=[]), dict(max_strength=0.0)):
        found = tokenizer.self_correction(tokenizer.features(images), **options)
        assert torch.equal(found.targets, expected)
        assert torch.equal(found.inputs, tokenizer.next_inputs(bits))


def test_targets_make_up_for_the_flips():
    """Scale i's target is the sign of what the flipped sum leaves over."""
    tokenizer = make()
    f = tokenizer.features(some_images(2, 8, 8))
    generator = torch.Generator().manual_seed(3)
    flips = [torch.rand(2, n, n, 5, generator=generator) < 0.4 for n in (1, 2, 3, 4)]
    found = tokenizer.self_correction(f, flips=flips)
    f_hat = torch.zeros_like(f)
    for k, n in enumerate((1, 2, 3, 4)):
        bits = (F.adaptive_avg_pool2d(f - f_hat, n) > 0).permute(0, 2, 3, 1)
        span = tokenizer.schedule.span(k)
        assert torch.equal(found.targets[:, span], bits.flatten(1, 2).long())
        f_hat = f_hat + tokenizer.term(bits ^ flips[k], (4, 4))
        if k < 3:
            inputs = resize(f_hat, (n + 1, n + 1)).flatten(2).transpose(1, 2)
            span = tokenizer.schedule.span(k + 1)
            torch.testing.assert_close(found.inputs[:, span.start - 1 : span.stop - 1], inputs)


def test_drawn_flips_come_from_the_generator_and_stop():
    tokenizer = make()
    f = tokenizer.features(some_images(2, 8, 8))

    def draw(seed: int, **options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return tokenizer.self_correction(f, generator=generator, **options).inputs

    plain = tokenizer.self_correction(f, flip_scales=0).inputs
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(draw(0), plain)
    # With flips at the first scale alone the next sums differ from those without any.
    assert not torch.equal(draw(0, flip_scales=1, max_strength=1.0)[:, :4], plain[:, :4])
    torch.manual_seed(5)
    a = tokenizer.self_correction(f).inputs
    torch.manual_seed(5)
    assert torch.equal(a, tokenizer.self_correction(f).inputs)


def test_the_share_of_drawn_flips():
    from nextscale.families.infinity.bits import draw_flips

    generator = torch.Generator().manual_seed(0)
    bits = torch.zeros(1, 40, 40, 32, dtype=torch.int64)
    shares = torch.stack([draw_flips(bits, 0.3, generator).float().mean() for _ in range(200)])
    assert shares.min() < 0.01
    assert 0.29 < shares.max() < 0.31
    assert abs(float(shares.mean()) - 0.15) < 0.02
    rounded = (shares * 100).round()
    assert len(rounded.unique()) == 31
    assert (shares * 100 - rounded).abs().max() < 0.8  # hundredths, up to chance


def test_what_self_correction_refuses():
    tokenizer = make()
    f = tokenizer.features(some_images(2, 8, 8))
    with pytest.raises(InvalidArgumentError, match=r"max_strength is a share of the bits, 0 to 1; got 30"):
        tokenizer.self_correction(f, max_strength=30)
    with pytest.raises(GridError, match=r"flips of step 0 must be \(2, 1, 1, 5\), got \(2, 2, 2, 5\)"):
        tokenizer.self_correction(f, flips=[torch.zeros(2, 2, 2, 5)])


# ------------------------------------------------------------------ training


def test_training_forward_reaches_everything():
    tokenizer = make().train().requires_grad_(True)
    images = some_images(4, 8, 8)
    recon, loss, bits = tokenizer.training_forward(images)
    assert recon.shape == images.shape
    assert loss.shape == ()
    assert same(bits, tokenizer.encode(images))
    torch.testing.assert_close(recon.clamp(-1, 1), tokenizer.decode(bits), rtol=1e-4, atol=1e-4)
    ((recon - images).square().mean() + loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tokenizer.parameters())
    assert all(p.grad.abs().max() > 0 for p in tokenizer.parameters() if p.ndim > 1)


def test_the_quantizer_loss():
    tokenizer = make(beta=0.5, entropy=0.0)
    images = some_images(4, 8, 8)
    f, chain = tokenizer.features(images), tokenizer.quantized(images)
    commitment = (f - chain[-1].f_hat).square().sum(1).mean()
    torch.testing.assert_close(tokenizer.training_forward(images)[1], 0.5 * commitment)
    with_entropy = InfinityTokenizer(replace(tokenizer.config, entropy=2.0))
    with_entropy.load_state_dict(tokenizer.state_dict())
    penalty = torch.stack([entropy_penalty(q.residual) for q in chain]).mean()
    torch.testing.assert_close(with_entropy.training_forward(images)[1], 0.5 * commitment + 2 * penalty)


def test_the_straight_through_gradient():
    """With neither term of the loss, the encoder gets the decoder's gradient at the quantized latent."""
    tokenizer = make(beta=0.0, entropy=0.0).requires_grad_(True)
    images = some_images(2, 8, 8)
    tokenizer.training_forward(images)[0].sum().backward()
    found = tokenizer.encoder.conv_out.bias.grad.clone()
    z = tokenizer.partial_sums(tokenizer.encode(images))[-1].requires_grad_(True)
    tokenizer.decoder(z).sum().backward()
    torch.testing.assert_close(found, z.grad.sum((0, 2, 3)), rtol=1e-4, atol=1e-5)


def binary_entropy(p: Tensor) -> Tensor:
    return -(p * p.log2() + (1 - p) * (1 - p).log2())


def test_the_entropy_penalty():
    residual = torch.randn(6, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    u = F.normalize(residual, dim=1).double()
    tau = 4.0 * 4 / 2  # SHARPNESS * d / 2
    p = torch.sigmoid(2 * tau * u / 4**0.5)
    expected = binary_entropy(p).mean() - binary_entropy(p.mean((0, 2, 3))).mean()
    torch.testing.assert_close(entropy_penalty(residual).double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(entropy_penalty(residual), entropy_penalty(residual * 8))  # of directions alone


def test_the_entropy_penalty_at_its_ends():
    corners = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 8, 1, 1)
    assert float(entropy_penalty(corners)) < -0.8  # decided, and both values equally frequent
    one_sided = torch.ones(2, 8, 1, 1)
    assert abs(float(entropy_penalty(one_sided))) < 1e-5  # decided, but always the same
    huge = (torch.ones(3, 2, 1, 1) * torch.tensor([1e6, 1e-6]).view(1, 2, 1, 1)).requires_grad_(True)
    entropy_penalty(huge).backward()
    assert huge.grad is not None
    assert huge.grad.isfinite().all()


def test_training_a_few_steps_lowers_the_error():
    torch.manual_seed(0)
    tokenizer = InfinityTokenizer(replace(TINY, bits=8)).train()
    images = some_images(8, 8, 8)
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    errors = []
    for _ in range(25):
        recon, loss, _ = tokenizer.training_forward(images)
        error = (recon - images).square().mean()
        errors.append(error.item())
        optimizer.zero_grad()
        (error + loss).backward()
        optimizer.step()
    assert errors[-1] < 0.6 * errors[0]
