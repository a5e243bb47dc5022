"""The hybrid tokenizer: every ``tok.*`` tensor of the golden cases, and the two ways to end the sum."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.families.hart.checkpoint import load_tokenizer
from nextscale.families.hart.tokenizer import HARTTokenizer, HARTTokenizerConfig
from nextscale.nn.placement import place
from nextscale.nn.quantizer import shrink
from nextscale.scales import ScaleSchedule

CASES = ["tiny_a", "tiny_b"]
ALLOWED = 1e-4  # absolute, as the README of the cases suggests; whole numbers are equal


@pytest.fixture(scope="module")
def tokenizer(case: Callable) -> Callable[[str], HARTTokenizer]:
    return cache(lambda name: load_tokenizer(case(name).tokenizer, place("cpu")))


@pytest.fixture(scope="module")
def expect(case: Callable) -> Callable[[str], Callable[[str, Tensor], None]]:
    """Compare a tensor with that of a case."""

    def of(name: str) -> Callable[[str, Tensor], None]:
        def check(key: str, found: Tensor) -> None:
            wanted = case(name).io[key]
            assert found.shape == wanted.shape, key
            if not wanted.is_floating_point():
                assert torch.equal(found, wanted), key
                return
            assert found.dtype == torch.float32
            assert float((found - wanted).abs().max()) <= ALLOWED, key

        return check

    return of


# ------------------------------------------------------------------ golden cases


@pytest.mark.parametrize("name", CASES)
def test_codes_and_rest(name: str, case: Callable, tokenizer: Callable, expect: Callable):
    model, check, image = tokenizer(name), expect(name), case(name).io["tok.image"]
    check("tok.f", model.features(image))
    tokens, rest = model.encode_hybrid(image)
    for s, maps in enumerate(tokens):
        assert maps.dtype == torch.int64
        assert maps.shape[1:] == model.schedule[s]
        check(f"tok.idx.{s}", maps.flatten(1))
    assert all(torch.equal(a, b) for a, b in zip(model.encode(image), tokens, strict=True))
    check("tok.f_rest", rest)
    check("tok.residual", model.residual(tokens[-1], rest))


@pytest.mark.parametrize("name", CASES)
def test_sums_and_pictures(name: str, case: Callable, tokenizer: Callable, expect: Callable):
    model, check, io = tokenizer(name), expect(name), case(name).io
    tokens, residual = case(name).series("tok.idx.{}"), io["tok.residual"]
    sums = model.partial_sums(tokens)
    for s, f_hat in enumerate(sums):
        check(f"tok.fhat_gen.{s}", f_hat)
        if s + 1 < case(name).num_steps:
            check(f"tok.next_map.{s}", shrink(f_hat, model.schedule[s + 1]))
    for s, f_hat in enumerate(model.partial_sums(tokens, last_phi=True)):
        check(f"tok.fhat_phi_all.{s}", f_hat)
    check("tok.teacher_input", model.next_inputs(tokens))
    check("tok.image_gen_discrete", model.decode(tokens))
    check("tok.image_gen_discrete", model.decode_progressive(tokens)[-1])
    check("tok.fhat_gen_full", model.latent(tokens, residual))
    check("tok.image_gen_full", model.decode(tokens, residual))
    check("tok.image_phi_all", model.decode(tokens, last_phi=True))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_training_forward(name: str, kind: str, case: Callable, tokenizer: Callable, expect: Callable):
    model, check, io = tokenizer(name), expect(name), case(name).io
    out, loss, tokens = model.training_forward(io["tok.image"], continuous=kind == "continuous")
    check(f"tok.forward_{kind}.out", out)
    check(f"tok.forward_{kind}.vq_loss", loss[None])
    used = torch.cat([t.flatten() for t in tokens]).unique()
    check(f"tok.forward_{kind}.usage_percent", torch.tensor([100 * len(used) / model.config.vocab_size]))


@pytest.mark.parametrize("name", CASES)
def test_generated_tokens_become_the_generated_picture(name: str, case: Callable, tokenizer: Callable):
    """The greedy run of the cases: its tokens, and the residual drawn at its last scale."""
    model, io = tokenizer(name), case(name).io
    tokens = case(name).series("ar.{}.tokens")
    for s, f_hat in enumerate(model.partial_sums(tokens)):
        torch.testing.assert_close(f_hat, io[f"ar.{s}.f_hat"], rtol=0, atol=ALLOWED)
    torch.testing.assert_close((model.decode(tokens) + 1) / 2, io["ar.image"], rtol=0, atol=ALLOWED)
    result = io["diff.result"].chunk(2)[0].unflatten(0, (len(tokens[0]), -1))
    torch.testing.assert_close(model.latent(tokens, result), io["diff.f_hat"], rtol=0, atol=ALLOWED)
    torch.testing.assert_close((model.decode(tokens, result) + 1) / 2, io["diff.image"], rtol=0, atol=ALLOWED)


# ------------------------------------------------------------------ the residual


def tiny(patch_nums: tuple[Any, ...] = (1, 2, (3, 4)), **sizes: Any) -> HARTTokenizer:
    torch.manual_seed(0)
    ours = {
        "vocab_size": 12,
        "z_channels": 4,
        "ch": 8,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "norm_groups": 4,
    }
    config = HARTTokenizerConfig(patch_nums=patch_nums, **{**ours, **sizes})
    return HARTTokenizer(config).eval()


def pictures(model: HARTTokenizer, count: int = 3) -> Tensor:
    h, w = model.schedule.final
    r = model.config.reduction
    return torch.rand(count, 3, h * r, w * r, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("share", [0, 1, 2, 4])
def test_codes_and_residual_are_the_latent(share: int):
    model = tiny(share_quant_resi=share)
    image = pictures(model)
    tokens, rest = model.encode_hybrid(image)
    residual = model.residual(tokens[-1], rest)
    latent = model.features(image).detach()
    torch.testing.assert_close(model.latent(tokens, residual), latent, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.decode(tokens, residual), model.decode_latent(latent), rtol=0, atol=1e-5)
    coarser = model.partial_sums(tokens[:-1])[-1]
    torch.testing.assert_close(coarser.flatten(2).transpose(1, 2) + rest, latent.flatten(2).transpose(1, 2))


def test_only_the_last_scale_depends_on_the_convention():
    model = tiny()
    tokens = model.encode(pictures(model))
    plain, smoothed = model.partial_sums(tokens), model.partial_sums(tokens, last_phi=True)
    assert all(torch.equal(a, b) for a, b in zip(plain[:-1], smoothed[:-1], strict=True))
    assert not torch.allclose(plain[-1], smoothed[-1])
    codes = model.quantize.lookup(tokens[-1])
    torch.testing.assert_close(plain[-1] - plain[-2], codes)
    assert torch.equal(model.quantize.term(codes, 2, model.schedule), codes)
    phi = model.quantize.phis(3, last_phi=True)[-1]
    assert torch.equal(model.quantize.term(codes, 2, model.schedule, last_phi=True), phi(codes))


def test_an_image_alone_is_the_image_in_a_batch():
    model = tiny()
    image = pictures(model)
    tokens, rest = model.encode_hybrid(image)
    for i in range(len(image)):
        alone, its_rest = model.encode_hybrid(image[i : i + 1])
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, tokens, strict=True))
        torch.testing.assert_close(its_rest, rest[i : i + 1])


def test_another_schedule():
    model = tiny()
    finer = ScaleSchedule.from_sides([1, 3, 5, 6])
    image = torch.rand(1, 3, 12, 12) * 2 - 1
    tokens, rest = model.encode_hybrid(image, finer)
    found = model.latent(tokens, model.residual(tokens[-1], rest), finer)
    torch.testing.assert_close(found, model.features(image).detach(), rtol=0, atol=1e-5)


def test_residuals_that_do_not_fit():
    model = tiny()
    tokens, rest = model.encode_hybrid(pictures(model))
    with pytest.raises(GridError, match=r"all 3 token maps .* \(3, 12, 4\), got \(3, 12, 4\) with 2 maps"):
        model.decode(tokens[:2], rest)
    for wrong in (rest[:1], rest[:, :4], rest.transpose(1, 2)):
        with pytest.raises(GridError, match=r"has the shape \(3, 12, 4\), got"):
            model.decode(tokens, wrong)
    with pytest.raises(InvalidArgumentError, match=r"tokens must be in 0\.\.11"):
        model.decode([t + 11 for t in tokens], rest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_and_pictures_are_float32_whatever_the_weights(dtype: torch.dtype):
    model = tiny().to(dtype)
    tokens, rest = model.encode_hybrid(pictures(model))
    residual = model.residual(tokens[-1], rest)
    assert rest.dtype == residual.dtype == model.latent(tokens, residual).dtype == torch.float32
    image = model.decode(tokens, residual)
    assert image.dtype == torch.float32
    assert bool(image.isfinite().all())


# ------------------------------------------------------------------ training


def test_the_loss_is_weighted_mse_with_phi_everywhere():
    model = tiny(beta=0.4)
    image = pictures(model)
    tokens = model.encode(image)
    sums, f = model.partial_sums(tokens, last_phi=True), model.features(image)
    expected = torch.stack([1.4 * F.mse_loss(f_hat, f) for f_hat in sums]).mean()
    for continuous in (True, False):
        torch.testing.assert_close(model.training_forward(image, continuous=continuous)[1], expected)


def test_gradients_with_the_codes_frozen():
    model = tiny()
    model.freeze_codes()
    for continuous in (True, False):
        model.zero_grad()
        out, loss, _ = model.training_forward(pictures(model), continuous=continuous)
        assert not loss.requires_grad
        out.square().mean().backward()
        trained = {name for name, p in model.named_parameters() if p.grad is not None}
        assert trained == {n for n, _ in model.named_parameters() if n.startswith(("decoder.", "post_quant"))}


def test_gradients_reach_the_encoder_straight_through():
    model = tiny(share_quant_resi=0)
    out, loss, _ = model.training_forward(pictures(model), continuous=False)
    (out.square().mean() + loss).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sizes():
    config = HARTTokenizerConfig()
    assert (config.vocab_size, config.z_channels, config.reduction) == (4096, 32, 16)
    assert config.schedule == ScaleSchedule.preset("var-256")
    assert HARTTokenizerConfig(**config.to_dict()) == config
