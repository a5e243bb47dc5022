"""VAR on a GPU: the golden cases, recordings, and that nothing waits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import VARPipeline, recording
from nextscale.generation import request

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
MODELS = ["a_basic", "b_shared_adaln", "c_ten_scales"]


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """In float32, where PyTorch's default on a GPU is TF32."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def same(found: Any, wanted: Any) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found.tokens, wanted.tokens, strict=True))
    assert torch.equal(found.images, wanted.images)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("times", [1, 3])  # as written; recorded, and replayed
def test_golden_pictures(name: str, times: int, case: Callable):
    this = case(name)
    pipe, settings = this.load(device="cuda", dtype="float32"), this.config["run"]["greedy"]
    for _ in range(times):
        found = pipe(
            this.io["ar.labels"].tolist(),
            guidance_scale=settings["cfg"],
            top_k=settings["top_k"],
            top_p=settings["top_p"],
            sampler="greedy",
            output_type="pt",
        )
    for k, tokens in enumerate(found.tokens):
        assert torch.equal(tokens.flatten(1), this.io[f"ar.idx.{k}"])
    wanted = this.io["ar.image"]
    assert float((found.images - wanted).abs().max() / wanted.std()) <= 2e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_recordings_change_nothing(dtype: str, case: Callable):
    pipe = case("c_ten_scales").load(device="cuda", dtype=dtype)
    settings = [
        dict(ssg=None),
        dict(ssg=0.6),
        dict(guidance_scale=0.0, temperature=0.7),
        dict(top_k=3, top_p=0.8, min_p=0.1),
    ]
    for labels, seed in (([0], 1), ([1, 2, 0], 5)):
        wanted = [pipe(labels, seed=seed, output_type="pt", **s) for s in settings]
        others = [pipe(labels[::-1], seed=seed + 7, output_type="pt", **s) for s in settings]
        assert len(pipe.recordings._idle) >= len(settings)
        for s, first, second in zip(settings, wanted, others, strict=True):
            same(pipe(labels, seed=seed, output_type="pt", **s), first)
            same(pipe(labels[::-1], seed=seed + 7, output_type="pt", **s), second)


def test_weights_may_change_and_move(case: Callable):
    pipe = case("a_basic").load(device="cuda")
    for _ in range(3):
        before = pipe([0], seed=1, output_type="pt")
    with torch.no_grad():
        pipe.transformer.head.bias.add_(torch.randn_like(pipe.transformer.head.bias))
    after = pipe([0], seed=1, output_type="pt")
    assert not torch.equal(after.images, before.images)
    pipe.transformer.head.bias.data = pipe.transformer.head.bias.data.clone()
    (known,) = pipe.recordings._idle.values()
    same(pipe([0], seed=1, output_type="pt"), after)
    assert known not in pipe.recordings._idle.values()  # it would have read what was there before


def test_hooks_are_called(case: Callable):
    pipe = case("a_basic").load(device="cuda")
    for _ in range(3):
        pipe([0], seed=1)
    calls: list[None] = []
    hook = pipe.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(None))
    pipe([0], seed=1)
    hook.remove()
    assert len(calls) == pipe.schedule.num_steps


def test_too_large_batches_are_not_recorded(case: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recording, "RECORDED_SHARE", 1e-9)
    pipe = case("a_basic").load(device="cuda")
    for _ in range(3):
        pipe([0], seed=1)
    assert not pipe.recordings._idle and not pipe.tokenizer.recordings._idle


@pytest.mark.parametrize("ssg", [None, 0.6])
def test_nothing_waits_before_the_end(ssg: float | None, case: Callable, monkeypatch: pytest.MonkeyPatch):
    pipe = case("c_ten_scales").load(device="cuda", dtype="bfloat16")
    pipe([0, 1], seed=1, ssg=ssg)  # makes what is made once
    seen: list[str] = []
    generate = request.generate

    def watched(*arguments: Any) -> list[Tensor]:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                return generate(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            seen.extend(str(w.message) for w in caught if "prototype" not in str(w.message))

    monkeypatch.setattr(request, "generate", watched)
    pipe([0, 1], seed=1, ssg=ssg, on_step=lambda _: None)  # which is not recorded
    assert not seen


def test_the_devices_agree(case: Callable):
    pipes: list[VARPipeline] = [case("c_ten_scales").load(device=d, dtype="float32") for d in ("cpu", "cuda")]
    cpu, cuda = (pipe([0, 1, 2], seed=3, ssg=0.6, output_type="pt") for pipe in pipes)
    agree = [float((a == b).float().mean()) for a, b in zip(cpu.tokens, cuda.tokens, strict=True)]
    assert min(agree) == 1
    torch.testing.assert_close(cuda.images, cpu.images, atol=1e-4, rtol=0)
