"""Linear layers: the fused operator and PyTorch's own agree, and gradients take the latter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nextscale import kernels as module
from nextscale.kernels import linear
from nextscale.nn.linear import Linear

AGREE = {torch.float32: dict(rtol=1e-5, atol=1e-5), torch.bfloat16: dict(rtol=2e-2, atol=2e-2)}


def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
    gelu=st.booleans(),
    strided=st.booleans(),
)
@torch.no_grad()
def test_agrees_with_torch(
    shape: list[int], sizes: tuple[int, int], dtype: torch.dtype, bias: bool, gelu: bool, strided: bool
):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 2 * sizes[0], generator=generator).to(dtype)
    x = x[..., ::2] if strided else x[..., : sizes[0]].contiguous()
    weight = (torch.randn(sizes[1], sizes[0], generator=generator) / sizes[0] ** 0.5).to(dtype)
    offset = torch.randn(sizes[1], generator=generator).to(dtype) if bias else None
    found = linear(x, weight, offset, gelu=gelu)
    assert found.dtype == dtype
    torch.testing.assert_close(found, plain(x, weight, offset, gelu), **AGREE[dtype])


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours():
    x, weight = torch.randn(6, 33), torch.randn(17, 33)
    other = torch.cat([x[:3], torch.randn(3, 33)])
    assert torch.equal(linear(x, weight)[:3], linear(other, weight)[:3])


@pytest.mark.parametrize("gelu", [False, True])
def test_gradients_flow(gelu: bool):
    layer, x = Linear(5, 4), torch.randn(3, 5, requires_grad=True)
    layer(x, gelu=gelu).sum().backward()
    expected_x, expected_w = torch.autograd.grad(
        plain(x, layer.weight, layer.bias, gelu).sum(), (x, layer.weight)
    )
    assert torch.equal(x.grad, expected_x)
    assert torch.equal(layer.weight.grad, expected_w)


@torch.no_grad()
def test_autocast_and_other_dtypes_are_left_to_torch():
    layer, x = Linear(5, 4), torch.randn(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.half()(x.half()).dtype == torch.float16
    assert Linear(5, 4)(torch.empty(0, 5)).shape == (0, 4)
    assert Linear(5, 4, device="meta")(x.to("meta")).shape == (3, 4)


@torch.no_grad()
def test_without_the_operator(monkeypatch: pytest.MonkeyPatch):
    layer, x = Linear(5, 4), torch.randn(3, 5)
    monkeypatch.setattr(module, "_available", lambda: False)
    assert torch.equal(layer(x, gelu=True), plain(x, layer.weight, layer.bias, gelu=True))
