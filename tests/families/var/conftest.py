"""Small VAR models for the tests: the golden cases as pipelines, and random models of any shape."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nextscale import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig


@dataclass(frozen=True)
class Case:
    """A golden case: its settings, its inputs and expected outputs, and the pipeline its files make."""

    folder: Path
    config: dict[str, Any]
    io: dict[str, Tensor]

    @property
    def patch_nums(self) -> list[int]:
        return self.config["tokenizer"]["patch_nums"]

    @property
    def num_steps(self) -> int:
        return len(self.patch_nums)

    def load(self, **options: Any) -> VARPipeline:
        files = self.folder / "transformer.safetensors", self.folder / "tokenizer.safetensors"
        return VARPipeline.from_official(*files, **options)


@pytest.fixture(scope="session")
def case(golden: Path) -> Callable[[str], Case]:
    """A golden case of ``golden/var`` by name."""

    @cache
    def load(name: str) -> Case:
        folder = golden / "var" / name
        config = json.loads((folder / "config.json").read_text())
        return Case(folder, config, load_file(folder / "io.safetensors"))

    return load


@pytest.fixture(scope="session")
def pipeline(case: Callable[[str], Case]) -> Callable[[str], VARPipeline]:
    """The pipeline of a golden case, shared by the tests, which must leave it as it is."""

    @cache
    def load(name: str) -> VARPipeline:
        return case(name).load(device="cpu")

    return load


@pytest.fixture(scope="session")
def published(golden: Path) -> dict[str, Any]:
    """Names and shapes of the published files at true size, and their parameter counts."""
    return json.loads((golden / "var" / "var_state_dict.json").read_text())


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations at the order of one, whatever the sizes; biases are small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(module.state_dict().items()):
            noise = torch.randn(value.shape, generator=generator)
            fan_in = math.prod(value.shape[1:]) if value.ndim > 1 else 1
            if name.endswith("embedding.weight") or name.startswith(("class_emb", "lvl_embed", "pos_")):
                value.copy_(noise)
            elif name.startswith("head.weight"):
                value.copy_(noise * 3 / fan_in**0.5)
            elif value.ndim > 1 and "scale_mul" not in name:
                value.copy_(noise / fan_in**0.5)
            elif "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.1 * noise)
            else:
                value.copy_(value + 0.1 * noise if "scale_mul" in name else 0.1 * noise)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., VARPipeline]:
    """A pipeline of random weights: 2 blocks of width 32, 24 codes, pictures of 2 pixels per latent cell."""

    def build(
        patch_nums: Sequence[Any] = (1, 2, 3, 4),
        *,
        seed: int = 0,
        class_names: Sequence[str] = (),
        **sizes: Any,
    ) -> VARPipeline:
        sides = tuple(patch_nums)
        common = {"vocab_size": 24, "z_channels": 8, "patch_nums": sides}
        ours = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
        theirs = {"num_classes": 5, "depth": 2, "embed_dim": 32, "num_heads": 2}
        tokenizer_sizes = {**common, **ours, **{k: v for k, v in sizes.items() if k in TOKENIZER_FIELDS}}
        transformer_sizes = {
            **common,
            **theirs,
            **{k: v for k, v in sizes.items() if k in TRANSFORMER_FIELDS},
        }
        tokenizer = VARTokenizer(VARTokenizerConfig(**tokenizer_sizes)).eval().requires_grad_(False)
        transformer = VARTransformer(VARTransformerConfig(**transformer_sizes)).eval().requires_grad_(False)
        randomise(tokenizer, seed)
        randomise(transformer, seed + 1)
        return VARPipeline(transformer, tokenizer, class_names=class_names)

    return build


TOKENIZER_FIELDS = set(VARTokenizerConfig.__dataclass_fields__)
TRANSFORMER_FIELDS = set(VARTransformerConfig.__dataclass_fields__)


@pytest.fixture(scope="session")
def procedural() -> Callable[
    [Mapping[str, Sequence[int]], int, Sequence[Mapping[str, Any]]], dict[str, Tensor]
]:
    """Fill a state dict from weight rules instead of a file; see :func:`procedural_tensor`."""

    def fill(
        shapes: Mapping[str, Sequence[int]], seed: int, rules: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        return {name: procedural_tensor(name, shape, seed, rules) for name, shape in shapes.items()}

    return fill


def procedural_tensor(
    name: str, shape: Sequence[int], seed: int, rules: Sequence[Mapping[str, Any]]
) -> Tensor:
    """``offset + amplitude * v`` with v in (-1, 1), the same on every platform.

    Element i comes from the (i+1)-th SplitMix64 output after the FNV-1a hash of ``"seed:name"``: its upper
    24 bits, moved to the middle of their cell. The first rule whose expression is found in the name decides
    offset and amplitude; with ``fan_in`` the amplitude is divided by the root of one output's weights.
    """
    rule = next(rule for rule in rules if re.search(rule["match"], name))
    state = 0xCBF29CE484222325
    for byte in f"{seed}:{name}".encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    count = math.prod(shape)
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    v = ((z >> np.uint64(40)).astype(np.float64) + 0.5) / 2**23 - 1
    amplitude = float(rule.get("amp", 0.0))
    if rule.get("fan_in"):
        amplitude /= math.sqrt(math.prod(shape[1:]))
    values = float(rule.get("offset", 0.0)) + amplitude * v
    return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape)))
