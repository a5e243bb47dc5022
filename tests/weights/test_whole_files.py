"""A model's folder stays the old one until the new one is whole; its configuration comes last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nextscale.weights import layout


def module(value: float) -> nn.Module:
    made = nn.Linear(3, 2)
    with torch.no_grad():
        for p in made.parameters():
            p.fill_(value)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    layout.save_module(module(1.0), {"value": 1}, tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(".partial")}


def test_weights_that_cannot_be_written_leave_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def write_half(tensors: Any, file: Any, **options: Any) -> None:
        Path(file).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    before = contents(folder)
    monkeypatch.setattr(layout, "save_file", write_half)
    with pytest.raises(OSError, match="No space left"):
        layout.save_module(module(2.0), {"value": 2}, folder)
    assert contents(folder) == before


def test_a_configuration_that_cannot_be_written_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    written = Path.write_text

    def write_half(self: Path, text: str, **options: Any) -> int:
        written(self, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_half)
        with pytest.raises(OSError, match="No space left"):
            layout.write_json({"value": 2}, folder / layout.CONFIG)
    assert contents(folder) == before


@pytest.mark.parametrize("failing", [0, 1])
def test_what_is_renamed_last(folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int):
    """Weights, then their configuration: whoever finds the new one finds the new weights."""
    renamed: list[str] = []
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        if len(renamed) == failing:
            raise OSError(5, "Input/output error")
        renamed.append(Path(target).name)
        replace(source, target)

    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", watched)
        with pytest.raises(OSError, match="Input/output"):
            layout.save_module(module(2.0), {"value": 2}, folder)
    assert renamed == [layout.WEIGHTS][:failing]
    assert contents(folder)[layout.CONFIG] == before[layout.CONFIG]
    assert (contents(folder)[layout.WEIGHTS] == before[layout.WEIGHTS]) == (failing == 0)
