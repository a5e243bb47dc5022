"""Digests that name weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nextscale.weights.digest import SMALL, quick_digest, state_of, weights_digest


class Part(nn.Module):
    """A large tensor, whose sums are taken, and small ones of every size of numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = nn.Parameter(torch.randn(SMALL // 4 + 2049 * 3 + 5))
        self.short = nn.Parameter(torch.randn(7).half())
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False]))


@pytest.mark.parametrize("place", [0, 1, 5000, SMALL // 4, -1])
def test_one_number_changes_the_digest(place: int):
    part = Part()
    before, state = quick_digest({"a": part}), state_of({"a": part})
    assert quick_digest({"a": Part()}) == before  # the numbers alone count
    with torch.no_grad():
        part.large[place] = torch.nextafter(part.large[place], torch.tensor(9.0))
    assert quick_digest({"a": part}) != before
    assert state_of({"a": part}) != state


def test_order_names_types_and_parts_count():
    before = quick_digest({"a": Part()})
    for change in ("swap", "type", "small"):
        part = Part()
        with torch.no_grad():
            if change == "swap":
                part.large[[10, 2000]] = part.large[[2000, 10]]
            elif change == "type":
                part.short = nn.Parameter(part.short.float())
            else:
                part.mask[1] = True
        assert quick_digest({"a": part}) != before
    assert quick_digest({"b": Part()}) != before
    assert quick_digest({"a": Part(), "b": Part()}) != before
    assert quick_digest({}) == quick_digest({})


def test_weights_at_any_address_and_layout_have_one_digest():
    part, shifted = Part(), Part()
    room = torch.empty(len(part.large) + 1)
    room[1:] = part.large.detach()
    shifted.large = nn.Parameter(room[1:])  # 4 bytes from where numbers of 8 bytes could begin
    assert quick_digest({"a": shifted}) == quick_digest({"a": part})
    plain, turned = nn.Linear(300, 400), nn.Linear(300, 400)
    turned.load_state_dict(plain.state_dict())
    turned.weight = nn.Parameter(plain.weight.detach().t().contiguous().t())
    assert quick_digest({"a": turned}) == quick_digest({"a": plain})


def test_weights_of_inference_mode_have_a_state():
    with torch.inference_mode():
        part = Part()
    assert state_of({"a": part}) == state_of({"a": part})


class Holder(nn.Module):
    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def test_what_makes_another_model():
    numbers = torch.arange(6.0)
    variants = {
        "plain": Holder(a=numbers, b=numbers[:2]),
        "shape": Holder(a=numbers.view(2, 3), b=numbers[:2]),
        "turned": Holder(a=numbers.view(3, 2), b=numbers[:2]),
        "name": Holder(c=numbers, b=numbers[:2]),
        "order of names": Holder(b=numbers, a=numbers[:2]),
        "number": Holder(a=numbers + 1e-6, b=numbers[:2]),
        "type of equal bytes": Holder(a=numbers.view(torch.int32), b=numbers[:2]),
        "narrower": Holder(a=numbers.half(), b=numbers[:2]),
        "one more": Holder(a=numbers, b=numbers[:2], c=numbers[:0]),
    }
    digests = {name: weights_digest(module) for name, module in variants.items()}
    assert len(set(digests.values())) == len(variants)


def test_what_does_not():
    numbers = torch.arange(6.0).view(2, 3)
    first = weights_digest(Holder(a=numbers, b=numbers[0]))
    assert weights_digest(Holder(b=numbers[0], a=numbers)) == first  # made in another order
    assert weights_digest(Holder(a=numbers.T.contiguous().T, b=numbers[0].clone())) == first  # in memory
    assert weights_digest(copy.deepcopy(Holder(a=numbers, b=numbers[0]))) == first
