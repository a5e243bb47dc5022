from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nextscale.nn.attention import block_causal_attention, level_mask, normalise_qk, split_heads
from nextscale.scales import ScaleSchedule


def test_mask_small():
    assert level_mask([1, 2, 3]).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("preset", ["var-256", "cifar10"])
def test_a_position_attends_to_its_own_step_and_all_coarser_ones(preset: str):
    schedule = ScaleSchedule.preset(preset)
    mask = level_mask(schedule.lengths)
    assert mask.dtype == torch.bool
    assert mask.shape == (schedule.num_tokens,) * 2
    for k in range(schedule.num_steps):
        rows = mask[schedule.span(k)]
        assert rows[:, : schedule.offsets[k + 1]].all()
        assert not rows[:, schedule.offsets[k + 1] :].any()


def test_unit_keys_and_queries_of_a_learned_length():
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, 3 * 24)
    log_scale = torch.tensor([0.0, math.log(4), 2.0]).view(1, 3, 1, 1)
    q, k, v = split_heads(qkv, 3)
    unit_q, unit_k, same_v = split_heads(qkv, 3, log_scale)
    torch.testing.assert_close(unit_k, F.normalize(k, dim=-1))
    torch.testing.assert_close(unit_q, F.normalize(q, dim=-1) * log_scale.exp())
    assert torch.equal(v, same_v)


def test_heads_are_consecutive_channels_of_queries_then_keys_then_values():
    qkv = torch.arange(2 * 4 * 3 * 6.0).view(2, 4, 18)
    for part, found in enumerate(split_heads(qkv, 2)):
        for head in range(2):
            first = 6 * part + 3 * head
            assert torch.equal(found[:, head], qkv[:, :, first : first + 3])


def test_the_length_has_a_ceiling_of_one_hundred():
    log_scale = torch.tensor([4.0, math.log(100), 5.0, 80.0]).view(1, 4, 1, 1)
    q = normalise_qk(torch.ones(1, 1, 2, 4, 2), log_scale)[:, :, 0]
    torch.testing.assert_close(q.norm(dim=-1).flatten(), torch.tensor([math.e**4, 100.0, 100.0, 100.0]))


def test_a_vector_of_zeros_stays_finite():
    zeros = torch.zeros(1, 1, 2, 1, 4)
    assert torch.equal(normalise_qk(zeros, torch.zeros(1, 1, 1, 1)), zeros)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype):
    qk = torch.full((1, 1, 2, 1, 64), 200.0, dtype=dtype)  # the sum of its squares is too large for float16
    found = normalise_qk(qk, torch.zeros(1, 1, 1, 1, dtype=dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((1, 1, 2, 1, 64), 1 / 8))


@pytest.mark.parametrize("preset", ["var-256", "cifar10"])
@pytest.mark.parametrize("steps", [1, 2, 5, None])
def test_step_by_step_is_the_masked_square(preset: str, steps: int | None):
    """Outcome and gradients, also of prefixes."""
    lengths = ScaleSchedule.preset(preset).lengths[:steps]
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, sum(lengths), 8, dtype=torch.float64).requires_grad_()
    whole = F.scaled_dot_product_attention(q, k, v, attn_mask=level_mask(lengths), scale=0.7)
    ours = block_causal_attention(q, k, v, lengths, scale=0.7)
    torch.testing.assert_close(ours, whole)
    towards = torch.randn_like(whole)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (q, k, v), towards),
        torch.autograd.grad(whole, (q, k, v), towards),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_long_first_steps():
    q, k, v = torch.randn(3, 1, 2, 250, 8)
    whole = F.scaled_dot_product_attention(q, k, v, attn_mask=level_mask([200, 50]))
    torch.testing.assert_close(block_causal_attention(q, k, v, [200, 50]), whole)
