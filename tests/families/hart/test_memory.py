"""Estimates of memory against what a run really allocates, and at the published size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.families.hart.memory import estimate_memory
from nextscale.families.hart.tokenizer import HARTTokenizerConfig
from nextscale.families.hart.transformer import HARTTransformerConfig

# What takes most of the memory, one after the other: logits, the cache, the blocks, the residual head, the
# decoder.
SIZES: list[dict[str, Any]] = [
    dict(vocab_size=1024),
    dict(vocab_size=1024, batch=2, options=dict(mask_iterations=4, ssg=0.5)),
    dict(vocab_size=16, depth=8, options=dict(guidance_scale=0)),
    dict(vocab_size=16, mlp_hidden=1024, options=dict(residual=False)),
    dict(vocab_size=16, embed_dim=256, mlp_hidden=32, depth=1, options=dict(residual=False)),
    dict(vocab_size=16, diff_width=512),
    dict(vocab_size=16, ch=32, ch_mult=(1, 1, 2)),
]


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [*((s, torch.float32) for s in SIZES), *((s, torch.bfloat16) for s in (SIZES[0], SIZES[3], SIZES[4]))],
    ids=str,
)
def test_estimates(
    sizes: dict[str, Any], dtype: torch.dtype, tiny: Callable, prompts: Callable, live_bytes: Callable
):
    sizes = dict(sizes)
    batch, options = sizes.pop("batch", 1), sizes.pop("options", {})
    made = tiny((1, 2, 4, 6, 9, 12), **{"context_token": 20, "embed_dim": 64, **sizes})
    made.transformer.to(dtype)
    made.tokenizer.to(dtype)
    weights = [t for m in (made.transformer, made.tokenizer) for t in m.state_dict().values()]
    text = prompts(batch, tokens=20)
    made(text, seed=0, batch_size=batch, **options)  # what is made once and kept is not counted
    with live_bytes():  # what the counting itself makes PyTorch load
        made(text, seed=0, batch_size=batch, output_type="pt", **options)
    with live_bytes([*weights, text.features, text.mask], arrays=True) as live:
        made(text, seed=0, batch_size=batch, output_type="pt", **options)
    estimate = made.memory_estimate(
        batch,
        guided=options.get("guidance_scale", 1) > 0,
        ssg="ssg" in options,
        mask_iterations=options.get("mask_iterations", 1),
    )
    measured = live.peak + sum(t.nbytes for t in weights)
    assert abs(estimate.total - measured) < 0.15 * measured, (str(estimate), measured)


def test_the_published_model():
    """Nothing is allocated for it, and its parts can be read."""
    sizes = HARTTransformerConfig(), HARTTokenizerConfig(patch_nums=HARTTransformerConfig().patch_nums)
    exact, half = (estimate_memory(*sizes, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert exact.weights == pytest.approx(4 * (732.62e6 + 108.95e6), rel=1e-3)
    assert exact.cache == 2 * 24 * 2 * (9750 - 4096) * 1536 * 4  # the last scale is not kept
    assert (half.weights, half.cache) == (exact.weights // 2, exact.cache // 2)
    assert exact.total == exact.weights + exact.cache + exact.activations
    four = estimate_memory(*sizes, batch=4)
    assert four.cache == 4 * exact.cache
    assert four.decoder < 1.1 * exact.decoder  # pictures are decoded one by one
    alone = estimate_memory(*sizes, guided=False)
    assert alone.cache == exact.cache // 2


def test_the_pipelines_dtype_or_another(tiny: Callable):
    pipe = tiny()
    own, half = pipe.memory_estimate(3), pipe.memory_estimate(3, "bfloat16")
    assert own == pipe.memory_estimate(3, "float32")
    assert half.weights * 2 == own.weights
    with pytest.raises(InvalidArgumentError, match="unknown dtype"):
        pipe.memory_estimate(1, "int8")
