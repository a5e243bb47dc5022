"""Weights that are damaged: every command that draws ends with one line, and writes no picture."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

Command = Callable[..., Any]
Damage = Callable[[Path, str, str], Path]


@pytest.fixture
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damage:
    """A copy of a model's folder with one number of a tensor NaN."""

    def copy(model: Path, part: str, name: str) -> Path:
        folder = tmp_path_factory.mktemp("damaged") / "model"
        shutil.copytree(model, folder)
        file = folder / part / "model.safetensors"
        tensors = load_file(file)
        tensors[name].view(-1)[0] = torch.nan
        save_file(tensors, file)
        return folder

    return copy


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "cat", "--output", "a.png"),
        ("generate", "--count", "4", "--out", "run"),
        ("compare", "cat", "--ssg", "0.5", "--output", "a.png"),
        ("evaluate", "--images", "10"),
        ("spectrum", "--images", "4", "--output", "s"),
    ],
    ids=lambda c: c[0],
)
def test_logits(nextscale: Command, model: Path, damaged: Damage, tmp_path: Path, command: tuple[str, ...]):
    folder = damaged(model, "transformer", "head.weight")
    done = nextscale(*command, "--model", folder, code=2)
    last = done.stderr.strip().splitlines()[-1]
    assert "logits are NaN or infinite at step 1 (1 x 1) of picture 0; the weights may be damaged" in last
    assert "Traceback" not in done.stderr
    written = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert all(name == "manifest.json" or name.endswith(".jsonl") for name in written)  # of a run


@pytest.mark.parametrize("kind", ["var", "text"])
def test_pixels(
    nextscale: Command, model: Path, text_model: Path, damaged: Damage, tmp_path: Path, kind: str
):
    folder = damaged({"var": model, "text": text_model}[kind], "tokenizer", "decoder.conv_out.bias")
    shown = ("cat",) if kind == "var" else ("--prompt", "a cat")
    done = nextscale("generate", *shown, "--model", folder, "--output", "a.png", code=2)
    assert "pixels are NaN or infinite, though no logits are, in picture 0" in done.stderr
    assert not (tmp_path / "a.png").exists()
