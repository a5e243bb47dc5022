"""The tables of growth on the performance page are what their data files make of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["growth.json", "growth-gpu.json"])
def test_the_table_comes_from_the_data(name: str, tmp_path: Path):
    data, picture = ROOT / "docs" / "results" / "performance" / name, tmp_path / "growth.png"
    command = [sys.executable, ROOT / "benchmarks" / "growth.py", "--show", data, "--plot", picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (ROOT / "docs" / "performance.md").read_text()
    assert picture.stat().st_size > 10_000
