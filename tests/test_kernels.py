"""Linear layers and attention: our ways and PyTorch's own agree; what is made of weights follows them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nextscale import kernels as module
from nextscale.kernels import attention, constant_weights, keeps_layouts, linear, of_weight
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
    monkeypatch.setattr(module, "_available", lambda dtype: False)
    assert torch.equal(layer(x, gelu=True), plain(x, layer.weight, layer.bias, gelu=True))


# ------------------------------------------------------------------ what is made of weights


def test_what_is_made_of_a_weight_is_kept_only_while_weights_are_constant():
    made: list[float] = []

    def make(weight: torch.Tensor) -> torch.Tensor:
        made.append(float(weight.sum()))
        return weight * 2

    weight, other = torch.ones(3), torch.zeros(3)
    assert of_weight(make, weight) is not of_weight(make, weight)
    made.clear()
    with constant_weights():
        first = of_weight(make, weight)
        with constant_weights():  # goes on with what there is
            assert of_weight(make, weight) is first
        assert of_weight(make, weight) is first
        assert torch.equal(of_weight(make, other), other)
    assert made == [3, 0]
    weight.data.fill_(5)  # which nothing could notice
    with constant_weights():
        assert torch.equal(of_weight(make, weight), torch.full((3,), 10.0))


def test_an_error_ends_it_too():
    with pytest.raises(ZeroDivisionError), constant_weights():
        raise ZeroDivisionError
    weight = torch.ones(1)
    assert of_weight(torch.clone, weight) is not of_weight(torch.clone, weight)


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70), st.booleans())
@torch.no_grad()
def test_a_kept_layout_changes_nothing(rows: int, inputs: int, outputs: int, gelu: bool):
    generator = torch.Generator().manual_seed(0)
    layer = Linear(inputs, outputs).bfloat16()
    x = torch.randn(2, rows, inputs, generator=generator).bfloat16()
    with constant_weights():
        found = [layer(x, gelu=gelu) for _ in range(2)]
    assert torch.equal(*found)
    expected = plain(x, layer.weight, layer.bias, gelu)
    torch.testing.assert_close(found[0], expected, **AGREE[torch.bfloat16])


@torch.no_grad()
def test_layouts_take_no_more_than_their_limit(monkeypatch: pytest.MonkeyPatch):
    laid_out: list[int] = []
    module._lays_out()  # which tries it out the first time it is asked
    layout = module._layout

    def counted(weight: torch.Tensor) -> torch.Tensor:
        laid_out.append(weight.nbytes)
        return layout(weight)

    monkeypatch.setattr(module, "_layout", counted)
    layers = [Linear(32, 32).bfloat16() for _ in range(4)]  # 2048 bytes each
    x = torch.randn(3, 32).bfloat16()
    for limit, count in ((4 * 2048, 4), (4 * 2048 - 1, 3), (0, 0)):
        monkeypatch.setattr(module, "LAYOUT_BYTES", limit)
        laid_out.clear()
        with constant_weights():
            for layer in layers * 2:
                expected = F.linear(x, layer.weight, layer.bias)
                torch.testing.assert_close(layer(x), expected, **AGREE[torch.bfloat16])
            Linear(32, 32)(x.float())
        assert laid_out == [2048] * (count if keeps_layouts(torch.bfloat16) else 0)  # else nothing uses them


# ------------------------------------------------------------------ attention


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(1, 30)),
    portion=st.integers(1, 400),
    scale=st.sampled_from([None, 1.0, 0.3]),
    precise=st.booleans(),
    peak=st.sampled_from([1.0, 20.0]),
)
@torch.no_grad()
def test_attention_in_portions_is_attention(
    sizes: tuple[int, int, int, int], portion: int, scale: float | None, precise: bool, peak: float
):
    batch, heads, rows, columns = sizes
    generator = torch.Generator().manual_seed(0)
    q = peak * torch.randn(batch, rows, heads, 8, generator=generator).transpose(1, 2)
    room = torch.randn(2, batch, heads, columns + 3, 8, generator=generator).bfloat16()  # as in a cache
    k, v = room[:, :, :, :columns]
    q, k = (q, k.float()) if precise else (q.bfloat16(), k)
    before = k.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_available", lambda dtype: True)  # a slow processor computes the same
        patch.setattr(module, "FEW_SCORES", 0)
        patch.setattr(module, "SCORES", portion)
        found = attention(q, k, v, scale=scale)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    assert found.dtype == torch.bfloat16
    assert found.shape == q.shape
    assert torch.equal(k, before)
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.02)


def test_other_attention_is_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FEW_SCORES", 0)
    monkeypatch.setattr(module, "_attention_in_portions", None)  # which could not be called
    q, k, v = torch.randn(3, 1, 2, 4, 8).unbind()
    plain_attention = F.scaled_dot_product_attention
    assert torch.equal(attention(q, k, v), plain_attention(q, k, v))
    half = v.bfloat16().requires_grad_()
    attention(q, k, half).sum().backward()
    assert half.grad is not None
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    found = attention(q, k, v.bfloat16(), mask=mask)
    assert torch.equal(found, plain_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), attn_mask=mask))
