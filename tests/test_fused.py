"""The kernels for NVIDIA GPUs against float64: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale import VARPipeline, kernels
from nextscale.generation.noise import Noise, Stream
from nextscale.generation.race import race
from nextscale.generation.tokens import filter_logits
from nextscale.nn.attention import MAX_LOG_SCALE

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton has no build for this system", allow_module_level=True)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# In the interpreter numpy warns where a GPU makes an infinity, as it should.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
ALLOWED = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
DTYPES = list(ALLOWED)


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    from nextscale import fused

    return fused


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def near(found: Tensor, wanted: Tensor, allowed: float) -> None:
    """In units of the length of the whole tensor."""
    assert found.shape == wanted.shape
    error = float((found.double() - wanted).norm() / wanted.norm())
    assert error <= allowed, f"off by {error:.1e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "width"), [(1, 16), (5, 48), (7, 130)])
def test_modulated_norm(fused: ModuleType, dtype: torch.dtype, length: int, width: int):
    x = normal(3, length, width, dtype=dtype)
    parts = normal(3, 1, 6, width, dtype=dtype).unbind(2)
    found = fused.modulated_norm(x, parts[2], parts[4], 1e-6, dtype)
    assert found.dtype == dtype
    scale, shift = parts[2].double(), parts[4].double()
    near(found, F.layer_norm(x.double(), (width,), eps=1e-6) * (1 + scale) + shift, ALLOWED[dtype])
    wide = fused.modulated_norm(x.float(), parts[2], parts[4], 1e-6, torch.bfloat16)
    assert wide.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_norm(fused: ModuleType, dtype: torch.dtype):
    x, branch = normal(3, 5, 48, dtype=dtype), normal(3, 5, 48, dtype=dtype, seed=1)
    gate, _, _, scale, _, shift = normal(3, 1, 6, 48, dtype=dtype).unbind(2)
    total, found = fused.gated_norm(x, branch, gate, scale, shift, 1e-6)
    wanted = x.double() + branch.double() * gate.double()
    near(total, wanted, ALLOWED[dtype])
    assert torch.equal(fused.gated(x, branch, gate), total)
    normed = F.layer_norm(total.double(), (48,), eps=1e-6)
    near(found, normed * (1 + scale.double()) + shift.double(), ALLOWED[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "width"), [(2, 16), (3, 24)])
@pytest.mark.parametrize("unit", [True, False])
def test_split_heads(fused: ModuleType, dtype: torch.dtype, heads: int, width: int, unit: bool):
    dim, length = heads * width, 5
    qkv = normal(2, length, 3 * dim, dtype=dtype)
    q_bias, v_bias = normal(dim, dtype=dtype), normal(dim, dtype=dtype, seed=1)
    log_scale = 3 * normal(1, heads, 1, 1, dtype=dtype)
    room = torch.zeros(2, 2, heads, 12, width, dtype=dtype, device=DEVICE)
    keys, values = room[0, :, :, 4:9], room[1, :, :, 4:9]
    given = log_scale if unit else None
    q = fused.split_heads(qkv, q_bias, v_bias, given, MAX_LOG_SCALE, keys, values)
    wanted_q, wanted_k, wanted_v = qkv.double().view(2, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    wanted_q = wanted_q + q_bias.double().view(heads, 1, width)
    wanted_v = wanted_v + v_bias.double().view(heads, 1, width)
    if unit:
        temperature = log_scale.double().clamp(max=math.log(100)).exp()
        wanted_q = F.normalize(wanted_q, dim=-1) * temperature
        wanted_k = F.normalize(wanted_k, dim=-1)
    for found, wanted in ((q, wanted_q), (keys, wanted_k), (values, wanted_v)):
        near(found, wanted, ALLOWED[dtype])
    assert not room[:, :, :, :4].any() and not room[:, :, :, 9:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 8), (16, 20), (32, 32)])
@pytest.mark.parametrize("biased", [True, False])
def test_group_norm_silu(fused: ModuleType, dtype: torch.dtype, size: tuple[int, int], biased: bool):
    x = (normal(2, 24, *size, dtype=dtype) + 5).contiguous(memory_format=torch.channels_last)
    weight, bias, before = (normal(24, dtype=dtype, seed=i) for i in range(3))
    found = fused.group_norm_silu(x, 4, weight, bias, 1e-6, before if biased else None)
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = x.double() + (before.double()[:, None, None] if biased else 0)
    wanted = F.silu(F.group_norm(exact, 4, weight.double(), bias.double(), 1e-6))
    near(found, wanted, 2 * ALLOWED[dtype])


@torch.no_grad()
def test_group_norm_keeps_digits_far_from_zero(fused: ModuleType):
    x = (normal(1, 8, 16, 16) + 1000).contiguous(memory_format=torch.channels_last)
    one, none = torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE)
    near(fused.group_norm_silu(x, 2, one, none, 1e-6), F.silu(F.group_norm(x.double(), 2)), 1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_biased(fused: ModuleType, dtype: torch.dtype):
    x, other = (
        normal(2, 24, 9, 7, dtype=dtype, seed=i).contiguous(memory_format=torch.channels_last)
        for i in range(2)
    )
    bias = normal(24, dtype=dtype)
    wanted = x.double() + other.double() + bias.double()[:, None, None]
    found = fused.add_biased(x, other, bias)
    assert found is x
    near(found, wanted, ALLOWED[dtype])


@pytest.mark.parametrize(("fine", "coarse", "channels"), [(9, 4, 10), (49, 36, 70), (100, 64, 130)])
def test_accumulate(fused: ModuleType, fine: int, coarse: int, channels: int):
    logits, previous, operator = normal(2, fine, channels), normal(2, coarse, channels), normal(fine, coarse)
    near(fused.in_parts(previous).float().sum(0), previous.double(), 1e-7)
    parts = fused.in_parts(previous)
    found = fused.accumulate(logits, parts, fused.operator_in_parts(operator), 0.6)
    near(found, 1.6 * logits.double() - 0.6 * operator.double() @ previous.double(), 3e-7)


@given(
    size=st.integers(2, 40),
    seed=st.integers(0, 10**6),
    top_k=st.integers(0, 40),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.96, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    ties=st.booleans(),
    removed=st.booleans(),
    parts=st.booleans(),
)
@settings(max_examples=60)
def test_draws_are_those_of_the_filters(
    size: int, seed: int, top_k: int, top_p: float, min_p: float, ties: bool, removed: bool, parts: bool
):
    from nextscale import fused

    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, size, generator=generator)
    logits = logits.round() if ties else logits
    if removed:
        logits[:, 1::3] = -torch.inf
    limits = {"top_k": min(top_k, size), "top_p": top_p, "min_p": min_p}
    noise = Noise([seed, 2**64 - 1 - seed])
    cells = torch.tensor([[5, 900], [0, 5]]) if parts else None
    keys = noise.keys(Stream.RESIDUAL, seed % 9, 2 if cells is None else cells)
    wanted = race(filter_logits(logits, **limits), keys.flatten())
    sorted_ = logits.to(DEVICE).sort(dim=-1, descending=True, stable=True)
    where = {"stream": int(Stream.RESIDUAL), "step": seed % 9}
    where["cells"] = None if cells is None else cells.to(DEVICE)
    found = fused.race_sorted(*sorted_, noise.seeds.to(DEVICE), **where, **limits)
    assert torch.equal(found.cpu(), wanted)


def test_something_is_drawn_where_logits_are_not_numbers(fused: ModuleType):
    values, order = torch.full((2, 8), torch.nan, device=DEVICE).sort(dim=-1, descending=True, stable=True)
    where = {"stream": 0, "step": 0, "cells": None}
    seeds = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    found = fused.race_sorted(values, order, seeds, **where, top_k=3, top_p=0.5, min_p=0.1)
    assert ((found >= 0) & (found < 8)).all()


@pytest.fixture
def everywhere(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels in use also where tensors are on the CPU."""

    def fused_for(x: Tensor) -> ModuleType | None:
        return fused if not torch.is_grad_enabled() and x.dtype in ALLOWED else None

    named = [m for n, m in sys.modules.items() if n.startswith("nextscale") and hasattr(m, "fused_for")]
    assert len(named) >= 4
    for module in named:
        monkeypatch.setattr(module, "fused_for", fused_for)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(
            torch,
            "_addmm_activation",  # means the other GELU on a CPU
            lambda b, x, w, use_gelu: F.gelu(torch.addmm(b, x, w), approximate="tanh"),
        )
    return fused


def test_a_model_draws_the_same_with_them(
    everywhere: ModuleType, golden: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = golden / "var" / "a_basic"
    files = folder / "transformer.safetensors", folder / "tokenizer.safetensors"
    pipe = VARPipeline.from_official(*files, device=DEVICE, dtype="float32")
    calls: list[str] = []
    used = {"modulated_norm", "gated", "gated_norm", "split_heads", "group_norm_silu", "add_biased"}
    used |= {"accumulate", "race_sorted"}
    for name in used:
        known = getattr(everywhere, name)
        monkeypatch.setattr(
            everywhere, name, lambda *a, f=known, n=name, **k: (calls.append(n), f(*a, **k))[1]
        )
    options = dict(seed=1, ssg=0.6, output_type="pt", top_k=9, top_p=0.9)
    found = pipe([0, 1], **options)
    assert set(calls) == used
    monkeypatch.undo()
    assert kernels.fused_for(torch.zeros(1)) is None
    wanted = pipe([0, 1], **options)
    assert all(torch.equal(a, b) for a, b in zip(found.tokens, wanted.tokens, strict=True))
    torch.testing.assert_close(found.images, wanted.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_for_gpus_that_are_not_here(capability: str, tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, Path(__file__).parent / "compile_fused.py", capability]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "10 kernels"
