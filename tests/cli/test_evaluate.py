"""``nextscale evaluate`` as people run it: figures in files, killed and continued, samples, presets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale.cli import main as cli
from nextscale.evaluation.features import SPACES, open_space
from nextscale.evaluation.inception import Inception
from nextscale.evaluation.protocol import PRESETS, Protocol
from nextscale.evaluation.provenance import file_digest
from nextscale.evaluation.runner import PipelineImages, run
from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.training.transformer import init_transformer


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def small_reference(folder: Path, count: int, side: int) -> Path:
    """Class folders of PNG files."""
    for i in range(count):
        place = folder / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR).save(place / f"{i}.png")
    return folder


@pytest.mark.slow
def test_a_killed_run_goes_on(nextscale, model: Path, tmp_path: Path):
    arguments = ["evaluate", "--model", str(model), "--images", "250", "--reference", "none"]
    command = [sys.executable, "-m", "nextscale.cli.main", *arguments, "--output", "killed.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 100
    while not list(tmp_path.glob("evaluation.work/*/00000000-*.safetensors")) and time.monotonic() < limit:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "killed.json").exists()

    resumed = nextscale(*arguments, "--output", "killed.json")
    assert "going on: 200 of 250 pictures are done" in resumed.stderr
    result = read(tmp_path / "killed.json")
    # What the result says of itself is enough to measure it again, from the first picture on.
    protocol, pipe = Protocol.from_dict(result["protocol"]), VARPipeline.from_pretrained(model, device="cpu")
    space = open_space("cifar10-classifier", device="cpu")
    whole = run(protocol, PipelineImages(pipe, protocol), space, None, tmp_path / "again", batch_size=100)
    assert whole.figures.scores == result["scores"] and whole.protocol.hash == result["protocol_hash"]


def test_figures_against_a_folder(nextscale, model: Path, tmp_path: Path):
    small_reference(tmp_path / "real", 30, 32)
    options = ("--model", model, "--images", 40, "--reference", "real")
    done = nextscale("evaluate", *options, "--ssg", 0.5, "--temperature", 0.9, "--save-images", "s.npz")
    result = read(tmp_path / "evaluation.json")
    from_neighbours = {"precision", "recall", "density", "coverage"}
    assert set(result["scores"]) == {"fd", "kd", "classifier_score", "accuracy"} | from_neighbours
    protocol = result["protocol"]
    assert protocol["sampling"]["ssg"]["beta"] == 0.5 and protocol["sampling"]["temperature"] == 0.9
    assert protocol["reference"]["images"] == 30 and protocol["images"] == 40
    assert result["protocol_hash"][:12] in done.stdout and "SSG 0.5" in done.stdout
    assert "40 pictures instead of 10,000" in done.stdout and "paper" not in done.stdout
    assert done.stdout.endswith("evaluation.json, evaluation.md; features are kept in evaluation.work\n")
    assert (tmp_path / "evaluation.md").read_text().startswith("# ")

    # The pictures it has written are samples that measure the same.
    samples = ("--samples", "s.npz", "--reference", "real")
    nextscale("evaluate", *samples, "--output", "again.json")
    again = read(tmp_path / "again.json")
    assert again["protocol"]["sampling"] is None and "accuracy" not in again["scores"]
    assert all(again["scores"][k] == pytest.approx(result["scores"][k], rel=1e-5) for k in again["scores"])
    with np.load(tmp_path / "s.npz") as file:
        assert file["arr_0"].shape == (40, 32, 32, 3)


@pytest.mark.slow
def test_published_figures_stand_in_a_column_of_their_own(nextscale, tmp_path: Path):
    torch.manual_seed(0)
    shared = {"vocab_size": 1000, "z_channels": 4, "patch_nums": (1, 2, 16)}
    sizes = {"num_classes": 1000, "depth": 16, "embed_dim": 8, "num_heads": 1}
    transformer = VARTransformer(VARTransformerConfig(**shared, **sizes))
    init_transformer(transformer)
    blocks = {"ch": 2, "ch_mult": (1, 1, 1, 1, 1), "num_res_blocks": 1, "norm_groups": 2}
    tokenizer = VARTokenizer(VARTokenizerConfig(**shared, **blocks))
    VARPipeline(transformer, tokenizer, name="tiny").save_pretrained(tmp_path / "model")
    torch.save(Inception().state_dict(), tmp_path / "inception.pth")
    weights = (
        "--feature-weights",
        "inception.pth",
        "--feature-sha256",
        file_digest(tmp_path / "inception.pth"),
    )

    options = ("--preset", "imagenet256-adm", "--model", "model", "--images", 2, "--reference", "none")
    done = nextscale("evaluate", *options, *weights, "--ssg", 0.6)
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["measured", "paper"]
    assert [line.split()[-1] for line in lines if line.startswith(("Inception Score", "FID", "recall"))] == [
        "285.30",
        "3.27",
        "0.500",
    ]
    assert any(line.startswith("paper: reported for SSG on VAR d16") for line in lines)
    result = read(tmp_path / "evaluation.json")
    assert result["paper"]["figures"]["fid"] == 3.27 and list(result["scores"]) == ["inception_score"]
    sampling = result["protocol"]["sampling"]
    assert (sampling["guidance_scale"]["scale"], sampling["top_k"], sampling["top_p"]) == (1.5, 900, 0.96)


BAD = [
    (("--preset", "mnist"), "unknown preset 'mnist'; known: cifar10"),
    (("--images", "0"), "--images must be at least 1"),
    (("--images", "1"), "at least 2 pictures are needed"),
    (("--output", "a.txt"), "give a name that ends in .json"),
    (("--output", "no/such.json"), "the folder 'no' does not exist"),
    (("--save-images", "a.png"), "give a name that ends in .npz"),
    (("--preset", "imagenet256-adm"), "is for 1000 classes at 256x256 pixels, and"),
    (("--features", "vgg"), "unknown feature space 'vgg'"),
    (("--features", "pixels"), "its statistics are of cifar10-classifier, not of pixels as it is used here"),
    (("--features", "inception", "--feature-weights", "no.pth"), "no such weight file: 'no.pth'"),
    (("--reference", "no.npz"), "cannot read 'no.npz'"),
    (("--reference", "no/such"), "no such file or folder: 'no/such'"),
    (("--reference", "two"), "two has the parts train, test; say which with --split"),
    (("--rounding", "up"), "unknown rounding 'up'"),
    (("--ssg", "x"), "--ssg takes a number"),
    (("--prior", "dct"), "--prior shapes SSG, which is off"),
    (("--samples", "s.npz", "--ssg", "1"), "--ssg is about drawing pictures"),
    (("--samples", "s.npz", "--top-k", "1"), "--top-k is about drawing pictures"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments, expected, model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        Path("two", part).mkdir(parents=True)
    named = () if "--samples" in arguments else ("--model", str(model))
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", *arguments, *named])
    captured = capsys.readouterr()
    assert (left.value.code, captured.out) == (2, "")
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and expected in captured.err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_help_is_light():
    code = (
        "import sys\nfrom nextscale.cli.main import main\n"
        "try:\n    main(['evaluate', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'PIL', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_choices_in_the_help_are_those_of_the_library(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert [name for name in (*SPACES, *PRESETS) if name not in text] == []
    assert "\nExamples:\n  nextscale evaluate" in text
