"""The golden models of all families behind one surface, for what holds in each of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale import HARTPipeline, InfinityPipeline, VARPipeline
from nextscale.families.text import TextFeatures
from nextscale.generation.request import GenerationOutput

PLACES = {"var": "var/a_basic", "hart": "hart/tiny_b", "infinity": "infinity/square_d16"}
PIPELINES: dict[str, Any] = {"var": VARPipeline, "hart": HARTPipeline, "infinity": InfinityPipeline}
FAMILIES = sorted(PLACES)


@dataclass(frozen=True)
class GoldenModel:
    """A pipeline, and calls of it that make ``count`` different pictures."""

    family: str
    pipe: Any
    options: dict[str, Any]

    @property
    def grids(self) -> list[tuple[int, int]]:
        return list(self.options.get("schedule") or self.pipe.schedule.grids)

    @property
    def neutral(self) -> float:
        """The strength of classifier-free guidance that is none."""
        return 1.0 if self.family == "infinity" else 0.0

    def subjects(self, rows: Sequence[int]) -> Any:
        """What the pictures of these numbers show."""
        config = self.pipe.transformer.config
        if self.family == "var":
            return [3 * row % config.num_classes for row in rows]
        hart = self.family == "hart"
        tokens, width = (config.context_token, config.context_dim) if hart else (5, config.text_dim)
        made = [torch.randn(tokens, width, generator=torch.Generator().manual_seed(row)) for row in rows]
        return TextFeatures(torch.stack(made), torch.ones(len(rows), tokens, dtype=torch.bool))

    def __call__(self, count: int | Sequence[int] = 4, seed: int = 7, **options: Any) -> GenerationOutput:
        rows = range(count) if isinstance(count, int) else count
        given = {"output_type": "pt", "batch_size": 16, **self.options, **options}
        return self.pipe(self.subjects(rows), seed=[seed + row for row in rows], **given)


def golden_model(family: str, golden: Path, **options: Any) -> GoldenModel:
    """The golden model of a family; options are those of ``from_official``."""
    folder = golden / PLACES[family]
    files = folder / "transformer.safetensors", folder / "tokenizer.safetensors"
    call: dict[str, Any] = {}
    if family == "infinity":
        config = json.loads((folder / "config.json").read_text())
        call["schedule"] = [tuple(grid) for grid in config["schedule"]]
        options["patch_nums"] = call["schedule"]
    if family == "hart":
        call["more_smooth"] = False
    return GoldenModel(family, PIPELINES[family].from_official(*files, device="cpu", **options), call)


def equal_tokens(a: GenerationOutput | list[Tensor], b: GenerationOutput | list[Tensor]) -> bool:
    """Whether all tokens of two calls are the same, scale by scale."""
    ours, theirs = (out if isinstance(out, list) else out.tokens for out in (a, b))
    return len(ours) == len(theirs) and all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
