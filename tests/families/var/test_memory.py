"""Estimates of memory against what a run really allocates, and at the published sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nextscale import VARPipeline
from nextscale.benchmark.arms import published_sizes
from nextscale.errors import InvalidArgumentError
from nextscale.families.var.memory import estimate_memory

SIDES = (1, 2, 4, 6, 9, 12)
ALL = 1 - 1e-6  # top-p that looks at every entry and leaves nearly all, which takes the most memory

# What takes most of the memory, one after the other: logits, with and without SSG and top-k, the cache, the
# feed-forward, attention, the decoder, the decoder of more pictures than fit at once.
SIZES: list[dict[str, Any]] = [
    dict(vocab_size=2048, options=dict(top_k=0, top_p=ALL)),
    dict(vocab_size=2048, batch=2, options=dict(ssg=0.5, top_k=0, top_p=ALL)),
    dict(vocab_size=2048, batch=2, options=dict(ssg=0.5, top_k=50)),
    dict(vocab_size=2048, options=dict(guidance_scale=0, top_k=0, top_p=ALL)),
    dict(vocab_size=2048, options=dict(top_k=900)),
    dict(depth=8, embed_dim=128, options=dict(guidance_scale=0)),
    dict(embed_dim=256, depth=1),
    dict(embed_dim=256, depth=1, mlp_ratio=1.0),
    dict(ch=32, ch_mult=(1, 1, 2)),
    dict(ch=32, batch=3, ch_mult=(1, 1, 1, 2, 2, 2)),
]


def made(tiny: Callable, dtype: torch.dtype, **sizes: Any) -> VARPipeline:
    pipe = tiny(SIDES, **{"vocab_size": 16, "embed_dim": 64, "ch_mult": (1, 1), **sizes})
    pipe.transformer.to(dtype)
    pipe.tokenizer.to(dtype)
    return pipe


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [*((s, torch.float32) for s in SIZES), *((SIZES[i], torch.bfloat16) for i in (0, 2, 6, 7))],
    ids=str,
)
def test_estimates(sizes: dict[str, Any], dtype: torch.dtype, tiny: Callable, live_bytes: Callable):
    sizes = dict(sizes)
    batch, options = sizes.pop("batch", 1), sizes.pop("options", {})
    pipe = made(tiny, dtype, **sizes)
    weights = [t for m in (pipe.transformer, pipe.tokenizer) for t in m.state_dict().values()]
    labels = list(range(batch))
    pipe(labels, seed=0, batch_size=batch, **options)  # what is made once and kept is not counted
    with live_bytes():  # what the counting itself makes PyTorch load
        pipe(labels, seed=0, batch_size=batch, output_type="pt", **options)
    with live_bytes(weights, arrays=True) as live:
        pipe(labels, seed=0, batch_size=batch, output_type="pt", **options)
    estimate = pipe.memory_estimate(
        batch,
        guided=options.get("guidance_scale", 1) > 0,
        ssg="ssg" in options,
        top_k=options.get("top_k"),
    )
    measured = live.peak + sum(t.nbytes for t in weights)
    assert abs(estimate.total - measured) < 0.15 * measured, (str(estimate), measured)


def test_the_published_sizes():
    """Nothing is allocated for them."""
    d16 = published_sizes(16, 256)
    exact, half = (estimate_memory(*d16, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert exact.weights == pytest.approx(4 * (310_283_520 + 108_948_355), rel=1e-3)
    assert half.weights * 2 == pytest.approx(exact.weights, rel=1e-3)
    many = estimate_memory(*d16, batch=64, dtype=torch.bfloat16)
    assert many.cache == 64 * half.cache
    assert many.decoder < 5 * half.decoder  # pictures are decoded a few at a time
    assert estimate_memory(*d16, guided=False).cache * 2 == exact.cache


def test_the_pipelines_dtype_or_another(tiny: Callable):
    pipe = made(tiny, torch.float32)
    own, half = pipe.memory_estimate(3), pipe.memory_estimate(3, "bfloat16")
    assert own == pipe.memory_estimate(3, "float32")
    assert half.weights < 0.6 * own.weights
    with pytest.raises(InvalidArgumentError, match="unknown dtype"):
        pipe.memory_estimate(1, "int8")
