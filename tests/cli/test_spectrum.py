"""``nextscale spectrum`` as people run it: files, resuming, prompts, and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.cli import main as cli

PLOTS = ("latent", "amplitude", "blur", "residual", "saturation")


def real_pictures(folder: Path, count: int) -> Path:
    """Smooth pictures of 32 x 32 pixels."""
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_numbers_tables_and_plots(nextscale, model: Path, tmp_path: Path):
    options = ("--model", model, "--images", 12, "--batch-size", 6, "--ssg", "off,0.6", "--replicates", 50)
    done = nextscale("spectrum", *options, "--norm", "forward", "--output", "out")
    assert "pictures beside real ones" in done.stdout and "zero is inside" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("out: spectrum.json, latent.csv") and last.endswith("saturation.svg")
    for name in PLOTS:
        assert (tmp_path / "out" / f"{name}.svg").exists() and (tmp_path / "out" / f"{name}.png").exists()
    result = json.loads((tmp_path / "out" / "spectrum.json").read_text())
    assert list(result["arms"]) == ["no SSG", "SSG 0.6"]
    assert result["arms"]["no SSG"]["prior"]["norm"] == "forward"
    assert result["reference"]["name"] == "cifar10-test.npz" and result["amplitude"]["reference"]
    assert result["features"]["name"] == "cifar10-classifier" and result["blur"]["figure"] == "fd"
    assert result["subjects"] == list(range(10)) and result["seed"] == 0
    with (tmp_path / "out" / "latent.csv").open() as file:
        assert {row["arm"] for row in csv.DictReader(file)} == set(result["arms"])

    # The same command draws nothing anew and makes the same file.
    before = (tmp_path / "out" / "spectrum.json").read_text()
    again = nextscale("spectrum", *options, "--norm", "forward", "--output", "out")
    assert "going on: 24 of 24 pictures are done" in again.stderr
    assert (tmp_path / "out" / "spectrum.json").read_text() == before


@pytest.mark.slow
def test_pictures_of_ones_own(nextscale, model: Path, tmp_path: Path):
    real_pictures(tmp_path / "real", 20)
    options = ("--model", model, "--images", 8, "--ssg", "off", "--replicates", 20, "--transform", "dct")
    done = nextscale("spectrum", "cat", "dog", *options, "--reference", "real", "--matched-control")
    assert done.stdout.splitlines()[-1].startswith("spectrum: ")
    result = json.loads((tmp_path / "spectrum" / "spectrum.json").read_text())
    assert (result["transform"], result["window"]) == ("dct", "none")
    assert list(result["arms"]) == ["no SSG"] and result["subjects"] == [3, 5]
    assert result["reference"]["images"] == 20
    assert set(result["blur"]["arms"]["no SSG"]) == {"unblurred", "blurred"}


@pytest.mark.slow
def test_prompts(nextscale, text_model: Path, tmp_path: Path):
    prompts = ("--prompt", "a fox", "--prompt", "a bird")
    options = ("--images", 4, "--ssg", 0.5, "--replicates", 20, "--output", "out")
    done = nextscale("spectrum", "--model", text_model, *prompts, *options)
    result = json.loads((tmp_path / "out" / "spectrum.json").read_text())
    assert result["subjects"] == ["a fox", "a bird"] and result["size"] == [32, 32]
    assert result["reference"] is None and "without ratios to real pictures" in done.stdout
    energy = result["residual"]["arms"]["SSG 0.5"]["energy"]["value"]
    assert len(energy) == 3 and min(energy) > 0


BAD = [
    (("--images", "1"), "at least 2 pictures of something"),
    (("--images", "0"), "--images must be at least 1"),
    (("--replicates", "0"), "--replicates must be at least 1"),
    (("--ssg", "x"), "--ssg takes a number"),
    (("--transform", "dft"), "unknown transform 'dft'; known: fft, dct"),
    (("--window", "kaiser"), "unknown window 'kaiser'"),
    (("--transform", "dct", "--window", "hann"), "the cosine transform needs no window"),
    (("--output", "no/such"), "the folder"),
    (("--output", "file"), "'file' is a file; results need a folder"),
    (("--features", "vgg"), "unknown feature space 'vgg'"),
    (("--reference", "no.npz"), "cannot read 'no.npz'"),
    (
        ("--reference", "small.npz", "--features", "none"),
        "has pictures of 8x8 pixels, and those to be measured have 32x32",
    ),
    (("--matched-control",), "the reference cifar10-test.npz holds none; give one with pictures"),
    (("--matched-control", "--reference", "none"), "the reference none holds none"),
    (("griffin",), "griffin"),
    (("--prompt", "a fox"), "draws classes, not prompts"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_bad_input_is_one_line_and_draws_nothing(
    arguments, expected, model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    np.savez("small.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(SystemExit) as left:
        cli.main(["spectrum", *arguments, "--model", str(model)])
    captured = capsys.readouterr()
    assert (left.value.code, captured.out) == (2, "")
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and expected in captured.err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_help_is_light():
    code = (
        "import sys\nfrom nextscale.cli.main import main\n"
        "try:\n    main(['spectrum', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "\nExamples:\n  nextscale spectrum" in done.stdout
