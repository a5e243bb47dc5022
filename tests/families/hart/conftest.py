"""The golden cases of HART with the files they are made of, and random models of any shape."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nextscale import HARTPipeline
from nextscale.families.hart.tokenizer import HARTTokenizer, HARTTokenizerConfig
from nextscale.families.hart.transformer import HARTTransformer, HARTTransformerConfig
from nextscale.families.text import TextFeatures


@dataclass(frozen=True)
class Case:
    """A golden case: its settings, and its inputs and expected outputs by name."""

    folder: Path
    config: dict[str, Any]
    io: dict[str, Tensor]

    @property
    def patch_nums(self) -> tuple[int, ...]:
        return tuple(self.config["patch_nums"])

    @property
    def num_steps(self) -> int:
        return len(self.patch_nums)

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.safetensors"

    @property
    def transformer(self) -> Path:
        return self.folder / "transformer.safetensors"

    @property
    def text_encoder(self) -> Path:
        return self.folder / "text_encoder.safetensors"

    def series(self, name: str) -> list[Tensor]:
        """The tensors of all scales, named like ``"tok.idx.{}"``."""
        return [self.io[name.format(s)] for s in range(self.num_steps)]


@pytest.fixture(scope="session")
def case(golden: Path) -> Callable[[str], Case]:
    """A golden case of ``golden/hart`` by name: ``tiny_a`` or ``tiny_b``."""

    @cache
    def load(name: str) -> Case:
        folder = golden / "hart" / name
        config = json.loads((folder / "config.json").read_text())
        return Case(folder, config, load_file(folder / "io.safetensors"))

    return load


@pytest.fixture(scope="session")
def published(golden: Path) -> dict[str, Any]:
    """Names and shapes of the published files at true size, their settings and parameter counts."""
    return json.loads((golden / "hart" / "hart_state_dict.json").read_text())


# ---------------------------------------------------------------------- random models of any shape


GAINS = {"word_embed": 4.0, "lvl_embed": 0.3, "head_nm.ada_lin": 0.2, "context_embed": 0.5}


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations at the order of one, whatever the sizes; biases are small.

    What tells one token from another is stronger than what all of them share, so that tokens differ.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(module.state_dict().items()):
            noise = torch.randn(value.shape, generator=generator)
            if "scale_mul" in name or ("norm" in name and name.endswith("weight")) or "ln_wo_grad" in name:
                value.add_(0.1 * noise)
            elif name.endswith("embedding.weight") or "lvl_embed.weight" in name or "table" in name:
                value.copy_(noise)
            elif value.ndim > 1:
                gain = next((g for part, g in GAINS.items() if part in name), 1.0)
                value.copy_(gain * noise / math.prod(value.shape[1:]) ** 0.5)
            else:
                value.copy_(0.1 * noise)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., HARTPipeline]:
    """A pipeline of random weights: 2 blocks of width 32, 24 codes, 6 text tokens, 2 pixels a cell.

    Its residual head takes 4 steps.
    """

    def build(patch_nums: Sequence[Any] = (1, 2, 3, 4), *, seed: int = 0, **sizes: Any) -> HARTPipeline:
        common = {"vocab_size": 24, "z_channels": 8, "patch_nums": tuple(patch_nums)}
        ours = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
        theirs = {"context_token": 6, "context_dim": 12, "depth": 2, "embed_dim": 32, "num_heads": 2}
        theirs |= {"mlp_hidden": 64, "diff_width": 16, "diff_depth": 1, "num_sampling_steps": "4"}
        tokenizer = HARTTokenizer(
            HARTTokenizerConfig(**{**common, **ours, **_fields(HARTTokenizerConfig, sizes)})
        )
        transformer = HARTTransformer(
            HARTTransformerConfig(**{**common, **theirs, **_fields(HARTTransformerConfig, sizes)})
        )
        for module, own_seed in ((tokenizer, seed), (transformer, seed + 1)):
            randomise(module.eval().requires_grad_(False), own_seed)
        return HARTPipeline(transformer, tokenizer)

    return build


def _fields(config: type, sizes: dict[str, Any]) -> dict[str, Any]:
    known = config.__dataclass_fields__  # type: ignore[attr-defined]
    return {k: v for k, v in sizes.items() if k in known}


@pytest.fixture(scope="session")
def prompts() -> Callable[..., TextFeatures]:
    """Random features of prompts, padded in front, the padding as random as the rest."""

    def make(count: int, *, tokens: int = 6, width: int = 12, seed: int = 0) -> TextFeatures:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(count, tokens, width, generator=generator)
        lengths = 1 + torch.arange(count)[:, None] % tokens
        return TextFeatures(features, torch.arange(tokens) >= tokens - lengths)

    return make
