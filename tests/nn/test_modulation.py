from __future__ import annotations

import pytest
import torch
from torch import nn

from nextscale.nn.modulation import AdaLinear, HeadNorm, UpcastLinear, drop_branches, full_precision


def test_a_linear_layer_computes_in_the_dtype_of_its_input():
    torch.manual_seed(0)
    layer = UpcastLinear(6, 3).bfloat16()
    x = torch.randn(2, 6)
    assert layer(x).dtype == torch.float32
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight.float(), layer.bias.float()))
    plain = nn.Linear(6, 3).bfloat16()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x.bfloat16()), plain(x.bfloat16()))
    assert UpcastLinear(6, 3, bias=False).half()(x).dtype == torch.float32


def test_modulation_follows_the_condition():
    ada, head = AdaLinear(4, 6).bfloat16(), HeadNorm(4, 1e-6).bfloat16()
    condition, x = torch.randn(2, 4), torch.randn(2, 5, 4)
    assert ada(condition).shape == (2, 1, 6, 4)
    assert ada(condition).dtype == head(x, condition).dtype == torch.float32
    assert ada(condition.bfloat16()).dtype == torch.bfloat16


def test_autocast_is_off_inside():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with full_precision(x.device):
            assert layer(x).dtype == torch.float32
    with full_precision(torch.device("meta")):  # a device without autocast
        pass


def test_dropped_branches_keep_their_mean():
    torch.manual_seed(0)
    ones = torch.ones(20_000, 1, 1)
    assert drop_branches(ones, 0.3, training=False) is ones
    assert drop_branches(ones, 0.0, training=True) is ones
    found = drop_branches(ones, 0.25, training=True)
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(found.mean()) == pytest.approx(1, abs=0.02)
