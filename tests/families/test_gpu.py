"""HART and Infinity draw on a GPU what they draw on a CPU; for VAR see ``var/test_gpu.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale import HARTPipeline, InfinityPipeline
from nextscale.families.text import TextFeatures

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = ["cpu", "cuda"]


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """In float32, where PyTorch's default on a GPU is TF32."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def features(tokens: int, width: int) -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    return TextFeatures(torch.randn(2, tokens, width, generator=generator), torch.ones(2, tokens).bool())


def same(cpu: Any, gpu: Any) -> None:
    assert all(torch.equal(a, b) for a, b in zip(cpu.tokens, gpu.tokens, strict=True))
    torch.testing.assert_close(gpu.images, cpu.images, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
@pytest.mark.parametrize("mask_iterations", [1, 3])
def test_hart(name: str, mask_iterations: int, golden: Path):
    folder = golden / "hart" / name
    files = folder / "transformer.safetensors", folder / "tokenizer.safetensors"
    drawn = []
    for device in DEVICES:
        pipe = HARTPipeline.from_official(*files, device=device, dtype="float32")
        config = pipe.transformer.config
        text = features(config.context_token, config.context_dim)
        settings = dict(seed=3, ssg=0.6, mask_iterations=mask_iterations, more_smooth=False)
        drawn.append(pipe(text, output_type="pt", **settings))
    same(*drawn)


@pytest.mark.parametrize("name", ["square_d16", "wide_patchify_d6"])
@pytest.mark.parametrize("layer", [0, -1])
def test_infinity(name: str, layer: int, golden: Path):
    folder = golden / "infinity" / name
    files = folder / "transformer.safetensors", folder / "tokenizer.safetensors"
    config = json.loads((folder / "config.json").read_text())
    grids = [tuple(grid) for grid in config["schedule"]]
    drawn = []
    for device in DEVICES:
        pipe = InfinityPipeline.from_official(*files, patch_nums=grids, device=device, dtype="float32")
        text = features(5, pipe.transformer.config.text_dim)
        settings = dict(seed=3, ssg=0.6, guidance_layer=layer, schedule=grids, temperature=1.0)
        drawn.append(pipe(text, output_type="pt", **settings))
    same(*drawn)
