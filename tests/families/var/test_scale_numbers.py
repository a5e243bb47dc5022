"""The buffer of scale numbers in VAR's files is believed where it describes square scales in order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nextscale.errors import CheckpointError
from nextscale.families.var.checkpoint import infer_transformer


def level_of(counts: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[None]


def sides(level: Tensor, folder: Path, steps: int = 4, length: int = 30) -> tuple[int, ...]:
    shapes = {
        "pos_start": (1, 1, 8),
        "pos_1LC": (1, length, 8),
        "word_embed.weight": (8, 4),
        "class_emb.weight": (4, 8),
        "lvl_embed.weight": (steps, 8),
        "head.weight": (16, 8),
        "blocks.0.ffn.fc1.weight": (32, 8),
    }
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()} | {"lvl_1L": level}
    path = folder / "var.pth"
    torch.save(tensors, path)
    return tuple(infer_transformer(tensors, path).patch_nums)


def test_right_ones(tmp_path: Path):
    assert sides(level_of([1, 4, 9, 16]), tmp_path) == (1, 2, 3, 4)
    assert sides(level_of([1, 4, 9, 16]).float(), tmp_path) == (1, 2, 3, 4)
    assert sides(level_of([4, 4, 9, 9]), tmp_path, length=26) == (2, 2, 3, 3)


WRONG = {
    "shrinking squares": level_of([16, 9, 4, 1]),
    "too few tokens": level_of([1, 4, 9, 9]),
    "too many tokens": level_of([1, 4, 9, 25]),
    "too many scales": level_of([4, 4, 4, 9, 9]),
    "too few scales": level_of([1, 4, 25]),
    "an empty scale": level_of([0, 1, 4, 25]),
    "in another order": level_of([1, 4, 9, 16]).flip(1),
    "mixed": level_of([1, 4, 9, 16])[:, torch.randperm(30, generator=torch.Generator().manual_seed(0))],
    "mixed between its ends": level_of([1, 4, 9, 16])[:, [0, *reversed(range(1, 29)), 29]],
    "negative": level_of([1, 4, 9, 16]) - 1,
    "beyond all memory": level_of([1, 4, 9, 16]) * 2**50,
    "no numbers": torch.full((1, 30), torch.nan),
    "nothing": torch.zeros(1, 0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_ones(wrong: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match="pass patch_nums"):
        sides(WRONG[wrong], tmp_path)
