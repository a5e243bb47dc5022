"""Infinity's transformer alone: sizes, text, rotary positions, causality, and precision."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.families.infinity.schedules import released
from nextscale.families.infinity.transformer import SIZES, InfinityTransformer, InfinityTransformerConfig
from nextscale.families.text import TextFeatures
from nextscale.nn.attention import grid_rotation, rotate_pairs
from nextscale.scales import ScaleSchedule

CONFIG = InfinityTransformerConfig(
    bits=6, depth=3, embed_dim=32, num_heads=4, ffn_dim=48, text_dim=24, text_length=10, pool_heads=2
)
SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (2, 3), (4, 5)))


def make(seed: int = 0, **changes: Any) -> InfinityTransformer:
    """Random weights that leave no term without effect: biases and text queries included."""
    torch.manual_seed(seed)
    model = InfinityTransformer(InfinityTransformerConfig(**{**CONFIG.to_dict(), **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
            elif "ada" not in name and p.ndim == 2:
                p.mul_(2)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> InfinityTransformer:
    return make()


def some_text(lengths: list[int], seed: int = 1, width: int = 24) -> TextFeatures:
    generator = torch.Generator().manual_seed(seed)
    return TextFeatures.from_packed(torch.randn(sum(lengths), width, generator=generator), lengths)


def some_inputs(batch: int, seed: int = 2, schedule: ScaleSchedule = SCHEDULE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, schedule.num_tokens - 1, 6, generator=generator)


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("infinity_layer12", 125_148_800),
        ("infinity_layer16", 361_633_792),
        ("infinity_layer24", 940_944_832),
        ("infinity_layer32", 2_256_694_912),
        ("infinity_layer40", 4_716_421_888),
        ("infinity_layer48", 8_767_198_528),
        ("infinity_2b", 2_204_564_032),
        ("infinity_8b", 8_375_791_824),
        ("infinity_20b", 19_952_199_784),
    ],
)
def test_named_sizes_have_the_published_numbers_of_parameters(name: str, parameters: int):
    with torch.device("meta"):
        model = InfinityTransformer(SIZES[name])
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert set(SIZES) >= {name}


def test_every_published_name_is_there_at_true_size(published: dict[str, Any]):
    """But for the constant zeros in place of the keys' bias, and with chunks counted through."""
    whole = published["infinity_2b"]["tensors"]
    expected = {_flat(n, per_chunk=4): tuple(s) for n, s in whole.items() if not n.endswith("zero_k_bias")}
    with torch.device("meta"):
        found = {n: tuple(v.shape) for n, v in InfinityTransformer(SIZES["infinity_2b"]).state_dict().items()}
    assert found == expected
    for name in ("infinity_8b", "infinity_layer12"):
        with torch.device("meta"):
            state = InfinityTransformer(SIZES[name]).state_dict()
        outside = published[name]["tensors_outside_blocks"]
        one = {f"blocks.0.{n}": s for n, s in published[name]["tensors_of_one_block"].items()}
        for key, shape in {**outside, **one}.items():
            assert key.endswith("zero_k_bias") or tuple(state[key].shape) == tuple(shape), key
        blocks = published[name]["chunks"] * published[name]["blocks_per_chunk"]
        assert len({k.split(".")[1] for k in state if k.startswith("blocks.")}) == blocks


def _flat(name: str, per_chunk: int) -> str:
    if not name.startswith("block_chunks."):
        return name
    _, chunk, _, block, rest = name.split(".", 4)
    return f"blocks.{int(chunk) * per_chunk + int(block)}.{rest}"


def test_feed_forward_widths_round_half_to_even():
    assert (SIZES["infinity_layer32"].ffn_dim, SIZES["infinity_layer48"].ffn_dim) == (8192, 13312)


def test_a_configuration_comes_back_from_its_dictionary():
    assert InfinityTransformerConfig(**CONFIG.to_dict()) == CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "multiple of num_heads, got 32 and 5"),
        ({"pool_heads": 3}, "multiple of pool_heads, got 32 and 3"),
        ({"num_heads": 16}, "32 channels in 16 heads make 2"),
    ],
)
def test_sizes_that_do_not_divide(changes: dict[str, int], message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        InfinityTransformerConfig(**{**CONFIG.to_dict(), **changes})


# ------------------------------------------------------------------ rotary positions


def test_positions_are_exact_and_round_half_to_even():
    """As exact fractions do, for every published grid. Rounding halves up would change 64 of the axes."""
    sensitive = 0
    for schedule in (s for (_, budget), s in released().items() if budget == "1M"):
        rotation = grid_rotation(schedule, schedule.final, 8, torch.device("cpu"))
        # With 8 channels the angles are (Y, Y / 100, X, X / 100): read the positions back from the slow ones.
        places = torch.round(torch.atan2(rotation.sin, rotation.cos)[:, [1, 3]] * 100)
        for step, grid in enumerate(schedule):
            exact = [
                [Fraction(i * size, n) for i in range(n)]
                for n, size in zip(grid, schedule.final, strict=True)
            ]
            wanted = [torch.tensor([float(round(place)) for place in axis]) for axis in exact]
            assert torch.equal(places[schedule.span(step)], torch.cartesian_prod(*wanted))
            sensitive += sum(any(p % 2 == Fraction(1, 2) for p in axis) for axis in exact)
    assert sensitive == 64


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
def test_rotation_turns_pairs_and_keeps_lengths(h: int, w: int, seed: int):
    schedule = ScaleSchedule(((h, w),))
    rotation = grid_rotation(schedule, (16, 16), 8, torch.device("cpu"))
    x = torch.randn(1, 2, h * w, 8, generator=torch.Generator().manual_seed(seed))
    turned = rotate_pairs(x, rotation)
    angle = torch.atan2(rotation.sin, rotation.cos)
    plane = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous())
    expected = torch.view_as_real(plane * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_positions_of_a_small_budget_refer_to_the_full_one(model: InfinityTransformer):
    small, full = released()[2.0, "0.06M"], released()[2.0, "1M"]
    for a, b in zip(model.rotation(small), model.rotation(full), strict=True):
        assert torch.equal(a, b[: small.num_tokens])


# ------------------------------------------------------------------ text


def test_padding_has_no_effect(model: InfinityTransformer):
    """Neither what it holds, nor how much of it there is, nor on which side."""
    text, inputs = some_text([5, 2, 7]), some_inputs(3)
    expected = model(text, inputs, SCHEDULE)
    noise = torch.full_like(text.features, 1e6)
    garbage = TextFeatures(torch.where(text.mask[..., None], text.features, noise), text.mask)
    assert torch.equal(model(garbage, inputs, SCHEDULE), expected)
    wide = TextFeatures(
        torch.cat([torch.ones(3, 2, 24), text.features, torch.ones(3, 1, 24)], 1),
        torch.cat([torch.zeros(3, 2).bool(), text.mask, torch.zeros(3, 1).bool()], 1),
    )
    torch.testing.assert_close(model(wide, inputs, SCHEDULE), expected, rtol=0, atol=1e-5)
    left = TextFeatures(text.features.flip(1), text.mask.flip(1))  # without order, rows are a set
    torch.testing.assert_close(model(left, inputs, SCHEDULE), expected, rtol=0, atol=1e-5)


def test_a_batch_is_its_prompts_one_by_one(model: InfinityTransformer):
    text, inputs = some_text([5, 2, 7]), some_inputs(3)
    together = model(text, inputs, SCHEDULE)
    for i in range(3):
        alone = model(text[[i]], inputs[i : i + 1], SCHEDULE)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_no_text_keeps_the_length_of_the_prompt(model: InfinityTransformer):
    text = some_text([5, 2])
    none = model.unconditional(text)
    assert none.lengths == [5, 2]
    assert torch.equal(none.features[0, :5], model.cfg_uncond[:5])
    assert torch.equal(none.features[1, :2], model.cfg_uncond[:2])
    left = model.unconditional(TextFeatures(text.features.flip(1), text.mask.flip(1)))
    assert torch.equal(left.features[1, -2:], model.cfg_uncond[:2])


def test_rows_of_text_can_be_dropped_and_learned():
    """What training needs: rows mixed by a mask, with a gradient to the learned ones."""
    model = make().requires_grad_(True)
    text = some_text([3, 4])
    dropped = torch.tensor([True, False])[:, None, None]
    mixed = TextFeatures(torch.where(dropped, model.unconditional(text).features, text.features), text.mask)
    model(mixed, some_inputs(2), SCHEDULE).square().mean().backward()
    gradient = model.cfg_uncond.grad
    assert gradient is not None
    assert (gradient[:3] != 0).any(1).all() and not gradient[3:].any()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_text_that_does_not_fit(model: InfinityTransformer):
    with pytest.raises(InvalidArgumentError, match=r"text features of 24 channels, got 8"):
        model.encode_text(some_text([3], width=8))
    with pytest.raises(InvalidArgumentError, match="prompt 1 has 11 text tokens, and this model takes 10"):
        model.unconditional(some_text([3, 11]))
    with pytest.raises(InvalidArgumentError, match="2 prompts for inputs of 3 images"):
        model(some_text([3, 4]), some_inputs(3), SCHEDULE)


# ------------------------------------------------------------------ teacher forcing


def test_a_scale_sees_itself_and_coarser_ones_only(model: InfinityTransformer):
    text, inputs = some_text([4]), some_inputs(1)
    before = model(text, inputs, SCHEDULE)
    for step in range(1, SCHEDULE.num_steps):
        changed = inputs.clone()
        start = SCHEDULE.offsets[step] - 1  # the first scale has no input
        changed[:, start] += 1
        after = model(text, changed, SCHEDULE)
        assert torch.equal(after[:, : SCHEDULE.offsets[step]], before[:, : SCHEDULE.offsets[step]])
        differs = (after != before).any(-1)[0, SCHEDULE.offsets[step] :]
        assert differs.all()


def test_prefixes(model: InfinityTransformer):
    text, inputs = some_text([4, 6]), some_inputs(2)
    whole = model(text, inputs, SCHEDULE)
    assert whole.shape == (2, SCHEDULE.num_tokens, 12)
    for end in SCHEDULE.offsets[1:]:
        part = model(text, inputs[:, : end - 1], SCHEDULE)
        torch.testing.assert_close(part, whole[:, :end], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 5, SCHEDULE.num_tokens, 200])
def test_inputs_that_end_within_a_scale(length: int, model: InfinityTransformer):
    with pytest.raises(GridError, match=rf"inputs must be \(B, 30, 6\) .* got \(1, {length}, 6\)"):
        model(some_text([4]), torch.zeros(1, length, 6), SCHEDULE)


def test_schedules_that_do_not_fit(model: InfinityTransformer):
    with pytest.raises(GridError, match="begin with 1x1"):
        model(some_text([4]), torch.zeros(1, 9, 6), ScaleSchedule.from_sides([2, 3]))
    many = ScaleSchedule.from_sides([1] * 16)
    with pytest.raises(GridError, match="at most 15 scales, got 16"):
        model(some_text([4]), torch.zeros(1, 15, 6), many)


def test_one_model_takes_any_schedule(model: InfinityTransformer):
    for schedule in (SCHEDULE, ScaleSchedule.from_sides([1, 3]), ScaleSchedule(((1, 1), (1, 3), (2, 6)))):
        logits = model(some_text([4]), some_inputs(1, schedule=schedule), schedule)
        assert logits.shape == (1, schedule.num_tokens, 12)


# ------------------------------------------------------------------ precision and training


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_keeps_the_stream_and_the_logits_in_float32(dtype: torch.dtype, allowed: float):
    exact, half = make(), make().to(dtype)
    streams: list[Tensor] = []
    for block in half.blocks:
        block.register_forward_hook(lambda _m, _i, out: streams.append(out))
    text, inputs = some_text([4, 6]), some_inputs(2)
    expected, found = exact(text, inputs, SCHEDULE), half(text, inputs, SCHEDULE)
    assert found.dtype == torch.float32
    assert all(s.dtype == torch.float32 for s in streams)
    assert float((found - expected).abs().mean()) < allowed * float(expected.std())
    condition = half.encode_text(text)
    assert condition.pooled.dtype == condition.modulation.dtype == torch.float32
    assert condition.memory.dtype == dtype


def test_autocast_leaves_head_and_modulation_in_float32():
    model = make()
    text, inputs = some_text([4, 6]), some_inputs(2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(text, inputs, SCHEDULE)
        condition = model.encode_text(text)
    assert logits.dtype == condition.modulation.dtype == torch.float32
    expected = model(text, inputs, SCHEDULE)
    assert 0 < float((logits - expected).abs().mean()) < 0.1 * float(expected.std())


def test_stochastic_depth_in_training_only():
    model = make(drop_path=0.5)
    text, inputs = some_text([4, 6]), some_inputs(2)
    plain = make()(text, inputs, SCHEDULE)
    assert torch.equal(model(text, inputs, SCHEDULE), plain)
    torch.manual_seed(0)
    a, b = (model.train()(text, inputs, SCHEDULE) for _ in range(2))
    assert not torch.equal(a, b)


def test_tables_first_made_for_inference_serve_training():
    model = make().requires_grad_(True)
    schedule = ScaleSchedule.from_sides([1, 2, 5])  # no other test uses it, so its tables are new
    text, inputs = some_text([4]), some_inputs(1, schedule=schedule)
    with torch.inference_mode():
        model(text, inputs, schedule)
    model(text, inputs, schedule).sum().backward()
