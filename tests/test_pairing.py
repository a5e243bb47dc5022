"""The page about pairs is what its data file makes of it, and the measurement runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "pairing.py"


def test_the_table_comes_from_the_data():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from pairing import table
    finally:
        sys.path.pop(0)
    figures = json.loads((ROOT / "docs" / "results" / "pairing.json").read_text())
    page = (ROOT / "docs" / "pairing.md").read_text()
    assert f"<!-- table -->\n{table(figures)}\n<!-- end -->" in page
    words = page.replace("\n", " ")
    assert f"({figures['images']} pictures)" in words
    assert f"all pixels of {figures['whole']} pictures" in words


def test_a_small_measurement_shows_that_the_race_keeps_pairs_closer(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end -->\nafter\n")
    options = ["--images", "4", "--whole", "4", "--ssg", "0.3", "--json", tmp_path / "f.json", "--page", page]
    done = subprocess.run(
        [sys.executable, SCRIPT, *options, "--picture", tmp_path / "p.png"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    for row in figures["steps"]["0.3"]:
        assert row["sorted"] < row["race"] < row["overlap"] + 0.1
    assert page.read_text() == f"before\n<!-- table -->\n{done.stdout.strip()}\n<!-- end -->\nafter\n"
    assert (tmp_path / "p.png").stat().st_size > 10_000
