"""Digests of weights change with whatever makes a model another one, and with nothing else."""

from __future__ import annotations

import copy

import torch
from torch import nn

from nextscale.weights.digest import weights_digest


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
