"""``nextscale tune`` as people run it: the default it writes, and where it writes none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale import ScaledSpatialGuidance, VARPipeline
from nextscale.cli import main as cli
from nextscale.cli.models import ModelChoice
from nextscale.cli.tune import _own_folder
from nextscale.evaluation.images import CalledImages, write_npz
from nextscale.evaluation.protocol import to_uint8
from nextscale.training.transformer import init_transformer
from nextscale.weights.layout import locate

STRONG = ScaledSpatialGuidance(20.0, schedule="constant", norm="forward")
FAST = ("--reference", "real.npz", "--beta", "0.5,20", "--schedule", "constant", "--norm", "forward")


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that is sure of its tokens, and a reference that it drew with strong guidance."""
    folder = tmp_path_factory.mktemp("made")
    pipe = VARPipeline.from_pretrained(model, device="cpu")
    torch.manual_seed(0)
    init_transformer(pipe.transformer, gate=1.0, modulation=1.0, head=15.0)
    pipe.save_pretrained(folder / "model")
    labels = [i % 10 for i in range(300)]
    drawn = pipe(labels, seed=90_000_000, ssg=STRONG, batch_size=100, output_type="pt").images
    pixels = to_uint8(drawn)
    write_npz(folder / "real.npz", CalledImages(lambda rows: pixels[rows], 300, (32, 32)))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that commands run in and may change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def default_of(folder: Path) -> Any:
    return json.loads((folder / "model" / "config.json").read_text())["defaults"].get("ssg")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["tune", *arguments])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


@pytest.mark.slow
def test_a_gain_becomes_the_default(folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    weights = {p: p.read_bytes() for p in folder.glob("model/*/*")}
    code, out, _ = run(capsys, "--model", "model", *FAST, "--budget", "2400", "--replicates", "20")
    assert code == 0, out
    lines = out.splitlines()
    assert lines[0] == "3 candidates, 2 rounds, then 3 fresh sets of 200: at most 2,200 pictures"
    assert lines[1].split()[:2] == ["FD", "200"] and "SSG 20 constant, forward norm" in out
    assert "lower, better in all 3 seed sets; KD agrees" in out
    assert lines[-2] == "model: SSG without arguments is now SSG 20, forward norm"
    assert lines[-1] == "tuning.json; features are kept in tuning.work"
    report = json.loads((folder / "tuning.json").read_text())
    assert report["default"] == STRONG.to_dict() and report["written_to"] == "model"
    assert report["comparison"]["gain_shown"] is True and report["pictures"]["search"] <= 1200

    # The pipeline, and every command, uses it where SSG is asked for without saying how.
    pipe = VARPipeline.from_pretrained("model", device="cpu")
    assert pipe([3], seed=0, ssg=ScaledSpatialGuidance()).settings["ssg"] == STRONG.to_dict()
    assert {p: p.read_bytes() for p in folder.glob("model/*/*")} == weights

    # From the features that are there, the same again; the report goes to a file of its own.
    code, out, _ = run(
        capsys, "--model", "model", *FAST, "--budget", "2400", "--replicates", "20", "--dry-run"
    )
    assert code == 0 and "as this model's default, that would be: SSG 20, forward norm; nothing was" in out
    again = json.loads((folder / "tuning-2.json").read_text())
    assert {k: again[k] for k in ("rounds", "comparison")} == {k: report[k] for k in ("rounds", "comparison")}


def test_without_evidence_the_default_changes_nothing(
    folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(folder)
    code, out, err = run(capsys, "--model", "model", *FAST, "--budget", "300", "--output", "report.json")
    assert code == 0 and "sets of 20 pictures give no interval in 192 dimensions" in err
    assert "model: SSG without arguments is now off (strength 0)" in out
    assert default_of(folder) == {
        k: v for k, v in ScaledSpatialGuidance(0.0).to_dict().items() if k != "method"
    }
    pipe = VARPipeline.from_pretrained("model", device="cpu")
    off, default = (pipe([3], seed=0, ssg=s, output_type="pt") for s in (None, ScaledSpatialGuidance()))
    assert torch.equal(off.images, default.images) and default.settings["ssg"]["beta"] == 0.0


def test_the_embedded_model_is_not_changed(folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    config = locate("cifar10") / "config.json"
    before = config.read_bytes()
    options = ("--budget", "120", "--beta", "0.5", "--schedule", "constant")
    code, out, err = run(capsys, "--model", str(config.parent), *options)
    assert code == 0 and "is not a model folder of yours, so nothing will be written to it" in err
    assert "nothing was written to the model" in out and config.read_bytes() == before
    assert json.loads((folder / "tuning.json").read_text())["written_to"] is None


def test_whose_default_is_written(folder: Path):
    assert _own_folder(ModelChoice(model=str(folder / "model"))) == folder / "model"
    official = ModelChoice(model=str(folder / "model"), tokenizer="vae.pth")
    for other in (ModelChoice(), ModelChoice(model="owner/name"), ModelChoice(model=str(folder)), official):
        assert _own_folder(other) is None


def test_interrupted_it_goes_on(folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    code = (
        "import os, signal, sys, time\n"
        "from nextscale.cli import main\n"
        "from nextscale.evaluation import tuning\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def compare(*_, **__):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "tuning.compare = compare\n"
        "main.main(['tune', *sys.argv[1:]])\n"
    )
    arguments = ["--model", "model", *FAST, "--budget", "400"]
    stopped = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.splitlines()[-2:] == [
        "stopped; the same command goes on, with what is in tuning.work",
        "interrupted",
    ]
    assert default_of(folder) is None and not (folder / "tuning.json").exists()
    written = {p: p.stat().st_mtime_ns for p in folder.glob("tuning.work/*/*")}
    assert written
    monkeypatch.chdir(folder)
    assert run(capsys, *arguments)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in folder.glob("tuning.work/*/*")} == written
    assert default_of(folder) is not None


BAD = [
    (("--budget", "0"), "--budget must be at least 1, got 0"),
    (("--budget", "50"), "50 pictures are too few for 9 candidates and 10 classes; give at least 720"),
    (("--preset", "mnist"), "unknown preset 'mnist'; known: cifar10"),
    (("--beta", "x"), "--beta takes a number, or several separated by commas; got 'x'"),
    (("--beta", "0,1"), "--beta: 0 is no guidance, which always takes part"),
    (("--schedule", "steep"), "unknown schedule 'steep'; choose one of constant"),
    (("--norm", "odd"), "unknown norm 'odd'"),
    (("--replicates", "3"), "--replicates must be at least 10, got 3"),
    (("--reference", "none"), "tuning compares with real pictures; name some with --reference"),
    (("--sampler", "multinomial"), "candidates are compared by paired pictures"),
    (("--output", "a.txt"), "give the name of a file that ends in .json, got 'a.txt'"),
    (("--output", "no/such.json"), "the folder 'no' does not exist"),
    (("--top-k", "-3"), "--top-k must be a whole number"),
    (("--model", "nowhere"), "no model 'nowhere'"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments, expected, model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    named = () if "--model" in arguments else ("--model", str(model))
    code, out, err = run(capsys, *arguments, *named)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and expected in err
    assert list(tmp_path.iterdir()) == []
