from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nextscale.nn.attention import block_causal_mask, normalise_qk
from nextscale.scales import ScaleSchedule


def test_mask_small():
    assert block_causal_mask(ScaleSchedule.from_sides([1, (1, 2), (1, 3)])).int().tolist() == [
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
    mask = block_causal_mask(schedule)
    assert mask.dtype == torch.bool
    assert mask.shape == (schedule.num_tokens,) * 2
    for k in range(schedule.num_steps):
        rows = mask[schedule.span(k)]
        assert rows[:, : schedule.offsets[k + 1]].all()
        assert not rows[:, schedule.offsets[k + 1] :].any()


def test_unit_keys_and_queries_of_a_learned_length():
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    log_scale = torch.tensor([0.0, math.log(4), 2.0]).view(1, 3, 1, 1)
    unit_q, unit_k = normalise_qk(q, k, log_scale)
    torch.testing.assert_close(unit_k, F.normalize(k, dim=-1))
    torch.testing.assert_close(unit_q.norm(dim=-1)[0, :, 0], torch.tensor([1.0, 4.0, math.e**2]))
    torch.testing.assert_close(F.normalize(unit_q, dim=-1), F.normalize(q, dim=-1))


def test_the_length_has_a_ceiling_of_one_hundred():
    q = torch.ones(1, 4, 1, 2)
    log_scale = torch.tensor([4.0, math.log(100), 5.0, 80.0]).view(1, 4, 1, 1)
    lengths = normalise_qk(q, q, log_scale)[0].norm(dim=-1).flatten()
    torch.testing.assert_close(lengths, torch.tensor([math.e**4, 100.0, 100.0, 100.0]))


def test_a_vector_of_zeros_stays_finite():
    q, k = normalise_qk(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 1))
    assert torch.equal(q, torch.zeros_like(q))
    assert torch.equal(k, torch.zeros_like(k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype):
    q = torch.full((1, 1, 1, 64), 200.0, dtype=dtype)  # the sum of its squares is too large for float16
    found, unit = normalise_qk(q, q, torch.zeros(1, 1, 1, 1, dtype=dtype))
    assert found.dtype == unit.dtype == torch.float32
    torch.testing.assert_close(unit, torch.full((1, 1, 1, 64), 1 / 8))
