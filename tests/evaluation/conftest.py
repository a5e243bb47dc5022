"""The golden cases of the metrics, weights from rules instead of files, and a tiny pipeline."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.training.transformer import init_transformer


@pytest.fixture(scope="session")
def expected(golden: Path) -> dict[str, Any]:
    """Expected values with their tolerances."""
    return json.loads((golden / "eval" / "expected.json").read_text())


@pytest.fixture(scope="session")
def tensors(golden: Path) -> dict[str, Tensor]:
    """The inputs of the golden cases."""
    return load_file(golden / "eval" / "features.safetensors")


Rules = Sequence[Mapping[str, Any]]


@pytest.fixture(scope="session")
def procedural() -> Callable[[Mapping[str, Sequence[int]], int, Rules], dict[str, Tensor]]:
    """Fill a state dict from weight rules instead of a file; see :func:`procedural_tensor`."""
    return lambda shapes, seed, rules: {n: procedural_tensor(n, s, seed, rules) for n, s in shapes.items()}


def procedural_tensor(name: str, shape: Sequence[int], seed: int, rules: Rules) -> Tensor:
    """``offset + amplitude * v`` with v in (-1, 1), the same on every platform.

    Element i comes from the (i+1)-th SplitMix64 output after the FNV-1a hash of ``"seed:name"``: its upper
    24 bits, moved to the middle of their cell. The first rule whose expression is found in the name decides
    offset and amplitude; with ``fan_in`` the amplitude is divided by the root of one output's weights.
    """
    rule = next(rule for rule in rules if re.search(rule["match"], name))
    state = 0xCBF29CE484222325
    for byte in f"{seed}:{name}".encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        steps = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
        z = np.uint64(state) + steps * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    v = ((z >> np.uint64(40)).astype(np.float64) + 0.5) / 2**23 - 1
    amplitude = float(rule.get("amp", 0.0))
    if rule.get("fan_in"):
        amplitude /= math.sqrt(math.prod(shape[1:]))
    values = float(rule.get("offset", 0.0)) + amplitude * v
    return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape)))


@pytest.fixture(scope="session")
def pipe() -> VARPipeline:
    """32 x 32 pixels, ten classes, random weights large enough for classes and guidance to matter."""
    torch.manual_seed(0)
    shared = {"vocab_size": 32, "z_channels": 8, "patch_nums": (1, 2, 4, 8)}
    transformer = VARTransformer(
        VARTransformerConfig(**shared, num_classes=10, depth=1, embed_dim=16, num_heads=2)
    )
    init_transformer(transformer, gate=1.0, modulation=1.0, head=2.0)
    tokenizer = VARTokenizer(
        VARTokenizerConfig(**shared, ch=4, ch_mult=(1, 1, 2), num_res_blocks=1, norm_groups=4)
    )
    return VARPipeline(transformer.eval(), tokenizer.eval(), name="tiny")


@pytest.fixture(scope="session")
def pictures() -> Tensor:
    """260 uint8 pictures of 32 x 32 pixels: smooth, so that neighbours differ less than strangers."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(260, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    return (fine * 255).round().to(torch.uint8)
