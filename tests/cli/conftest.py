"""A small model with random weights in a folder, and a way to call the command line as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.training.transformer import init_transformer

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIDES = (1, 2, 3, 4, 6, 8)

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the library's layout: 32 x 32 pixels, CIFAR-10's classes, random weights."""
    shared = {"vocab_size": 64, "z_channels": 8, "patch_nums": SIDES}
    transformer = VARTransformer(
        VARTransformerConfig(**shared, num_classes=10, depth=2, embed_dim=32, num_heads=2)
    )
    # Everything larger than a training run would start from, so that classes and guidance make a difference.
    init_transformer(transformer, gate=1.0, modulation=1.0, head=2.0)
    tokenizer = VARTokenizer(
        VARTokenizerConfig(**shared, ch=8, ch_mult=(1, 2, 4), num_res_blocks=1, norm_groups=8)
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    VARPipeline(transformer, tokenizer, class_names=CIFAR10, name="tiny").save_pretrained(folder)
    return folder


@pytest.fixture
def nextscale(tmp_path: Path) -> Command:
    """Runs ``nextscale ARGUMENTS`` in an empty folder; fails the test unless the exit code is as expected."""

    def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "nextscale.cli.main", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    return run
