"""``nextscale sweep`` as people run it: tables and plots, killed and continued, what is wrong with a file."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextscale.cli import main as cli
from nextscale.evaluation.images import CalledImages, write_npz

SWEEP = """
images = 20
seeds = 2
reference = "real.npz"

[axes]
temperature = [0.8, 1.2]
ssg = ["off", { beta = 2.0, schedule = "linear" }]

[[cell]]
name = "guided memory"
beta = 0.5
remember = "guided"
"""


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """The folder that commands run in, with a sweep file and a reference."""
    pixels = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    write_npz(tmp_path / "real.npz", CalledImages(lambda rows: pixels[rows].to(torch.uint8), 40, (32, 32)))
    (tmp_path / "s.toml").write_text(f"model = '{model}'\n{SWEEP}")
    return tmp_path


def read(path: Path) -> list[dict[str, str]]:
    """A table, but for what depends on the time it took."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_killed_sweep_goes_on(folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    code, out, err = run(capsys, "s.toml", "--output", "whole")
    assert code == 0 and "10 of 10: guided memory, from seed 1000000" in err
    lines = out.splitlines()
    assert lines[0] == "s.toml: 5 cells, 2 sets of 20 pictures each; 200 pictures to draw"
    head = ("mean over the sets", "FD", "precision", "recall", "recognised", "minus SSG off")
    assert " ".join(lines[1].split()) == " ".join(head)
    assert lines[2].startswith("temperature 0.8, SSG off  ") and lines[3].rstrip().endswith(")")
    files = "sweep.csv, means.csv, sweep.parquet, heat-map-fd.svg, fd-precision-recall.svg"
    assert lines[-1] == f"whole: {files}; single results are in results, features in work"
    for name in ("heat-map-fd", "fd-precision-recall"):
        assert Image.open(folder / "whole" / f"{name}.png").width > 300
        assert (folder / "whole" / f"{name}.svg").read_text().startswith("<?xml")

    command = [sys.executable, "-m", "nextscale.cli.main", "sweep", "s.toml", "--output", "killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 100
    while len(list(folder.glob("killed/results/*.json"))) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait(timeout=60) == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in folder.glob("killed/results/*.json")}
    assert 3 <= len(before) < 10

    assert run(capsys, "s.toml", "--output", "killed")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was finished is not done again
    for table in ("sweep.csv", "means.csv"):
        assert read(folder / "killed" / table) == read(folder / "whole" / table)

    options = ("--output", "killed", "--heat-map", "temperature,ssg", "--figure", "recall", "--format", "pdf")
    code, out, _ = run(capsys, "s.toml", *options)
    assert code == 0 and "; 0 pictures to draw" in out and "heat-map-recall.pdf" in out.splitlines()[-1]
    assert {p.suffix for p in (folder / "killed").glob("heat-map-recall.*")} == {".pdf", ".png"}
    code, _, err = run(capsys, "s.toml", "--output", "killed", "--figure", "fid")
    assert code == 2 and "'fid' was not measured; there are fd, precision" in err


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", *arguments])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


def test_a_dry_run_lists_the_cells(folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    code, out, _ = run(capsys, "s.toml", "--dry-run", "--images", "50", "--sets", "1")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "s.toml: 5 cells, 1 set of 50 pictures each; 250 pictures to draw"
    assert lines[1] == "  temperature 0.8, SSG off" and lines[-1] == "  guided memory"
    assert sorted(p.name for p in folder.iterdir()) == ["real.npz", "s.toml"]


def test_without_a_reference_there_are_tables(folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    text = (folder / "s.toml").read_text().split("[axes]")[0]
    (folder / "few.toml").write_text(f"{text}\n[axes]\nbeta = [0, 0.5]\n")
    code, out, err = run(capsys, "few.toml", "--reference", "none", "--sets", "1", "--images", "4")
    assert code == 0 and "no plots: distances, precision and recall need a reference" in err
    assert out.splitlines()[-1].startswith("few: sweep.csv, means.csv, sweep.parquet; single")
    assert [row["beta"] for row in read(folder / "few" / "sweep.csv")] == ["0.0", "0.5"]


BAD = [
    (("no.toml",), "no such sweep file: 'no.toml'"),
    (("s.toml", "--images", "0"), "--images must be at least 1, got 0"),
    (("s.toml", "--heat-map", "beta"), "--heat-map takes two axes with a comma, got 'beta'"),
    (("s.toml", "--heat-map", "beta,ssg"), "'beta' is no axis of this sweep; it has temperature, ssg"),
    (("s.toml", "--format", "gif"), "plots are written as svg or pdf, got 'gif'"),
    (("s.toml", "--output", "real.npz"), "'real.npz' is a file; results need a folder"),
    (("s.toml", "--output", "no/such"), "does not exist; make it first"),
    (("s.toml", "--features", "pixls"), "unknown feature space 'pixls'"),
    (("s.toml", "--model", "nowhere"), "no model 'nowhere'"),
    (("bad.toml",), "bad.toml: unknown entry 'imges'; known: preset"),
    (("odd.toml",), "top-p 3: top_p must be between 0 and 1"),
    (("broken.toml",), "broken.toml is not TOML"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments, expected, folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(folder)
    head = (folder / "s.toml").read_text().split("[axes]")[0]
    (folder / "bad.toml").write_text("imges = 3")
    (folder / "odd.toml").write_text(f"{head}[axes]\ntop_p = [3]")
    (folder / "broken.toml").write_text("[axes")
    before = sorted(folder.rglob("*"))
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and sorted(folder.rglob("*")) == before
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err
