"""The evidence page is what its data files make of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_tables_come_from_the_data(tmp_path: Path):
    page = tmp_path / "evidence.md"
    shutil.copy(ROOT / "docs" / "evidence.md", page)
    command = [sys.executable, ROOT / "benchmarks" / "evidence" / "page.py"]
    done = subprocess.run(
        [*command, "--page", page, "--figures", tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (ROOT / "docs" / "evidence.md").read_text()
    assert (tmp_path / "evidence-curves.png").stat().st_size > 10_000
