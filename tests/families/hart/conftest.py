"""The golden cases of HART: their settings, inputs and expected outputs, and the files they are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor


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
