"""The table of growth on the performance page is what its data file makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_comes_from_the_data(tmp_path: Path):
    data, picture = ROOT / "docs" / "results" / "performance" / "growth.json", tmp_path / "growth.png"
    command = [sys.executable, ROOT / "benchmarks" / "growth.py", "--show", data, "--plot", picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (ROOT / "docs" / "performance.md").read_text()
    assert picture.stat().st_size > 10_000
