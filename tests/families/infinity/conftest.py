"""The golden cases of Infinity, the published names and shapes, and the published schedules."""

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

from nextscale.scales import ScaleSchedule


@dataclass(frozen=True)
class Case:
    """A golden case: its settings, its inputs and expected outputs, and the files of its two models."""

    folder: Path
    config: dict[str, Any]
    io: dict[str, Tensor]

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.safetensors"

    @property
    def transformer(self) -> Path:
        return self.folder / "transformer.safetensors"

    @property
    def patchify(self) -> bool:
        return self.config["transformer"]["spatial_patchify"]

    @property
    def schedule(self) -> ScaleSchedule:
        """The transformer's grids."""
        return ScaleSchedule.from_sides(map(tuple, self.config["schedule"]))

    def steps(self, key: str) -> list[Tensor]:
        """The tensors ``key.0``, ``key.1``, … in order."""
        names = [n for n in self.io if n.rpartition(".")[0] == key]
        return [self.io[n] for n in sorted(names, key=lambda n: int(n.rpartition(".")[2]))]


@pytest.fixture(scope="session")
def case(golden: Path) -> Callable[[str], Case]:
    """A golden case of ``golden/infinity`` by name."""

    @cache
    def load(name: str) -> Case:
        folder = golden / "infinity" / name
        config = json.loads((folder / "config.json").read_text())
        return Case(folder, config, load_file(folder / "io.safetensors"))

    return load


@pytest.fixture(scope="session")
def published(golden: Path) -> dict[str, Any]:
    """Names and shapes of the published files at true size, and their parameter counts."""
    return json.loads((golden / "infinity" / "infinity_state_dict.json").read_text())
