"""How pictures get in on the command line: --reference, --resize, --samples, --check, --skip-broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale.cli import main as cli


def run(*arguments: str | Path | int) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(a) for a in arguments])
    return left.value.code  # type: ignore[return-value]


def pictures(folder: str, seeds: range, *, times: int = 1, suffix: str = ".png", **options: Any) -> None:
    """Smooth colours at 32 pixels, each pixel so many times a side."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((32, 32), Image.Resampling.BILINEAR)
        image = image.resize((32 * times, 32 * times), Image.Resampling.NEAREST)
        image.save(Path(folder, f"{seed:03d}{suffix}"), **options)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scores(name: str = "evaluation.json") -> dict[str, float]:
    return json.loads(Path(name).read_text())["scores"]


def test_a_reference_counts_all_its_pictures_and_says_what_it_passed_over(capsys: pytest.CaptureFixture[str]):
    pictures("samples", range(40))
    pictures("real", range(10))
    pictures("real/a", range(10, 25))
    pictures("real/b/deep", range(25, 40), suffix=".tiff")
    Path("real/a/x.heic").write_text("x")
    Path("real/a/._010.png").write_text("x")
    assert run("evaluate", "--samples", "samples", "--reference", "real") == 0
    captured = capsys.readouterr()
    assert scores()["fd"] < 1e-3 and "against real (40)" in captured.out
    assert "note: real: passed over 1 file: 1 .heic\n" in captured.err
    assert "40 pictures instead of 10,000: distances grow" in captured.out


def test_a_reference_of_another_size(capsys: pytest.CaptureFixture[str]):
    pictures("samples", range(30))
    pictures("doubled", range(30), times=2)
    what = ("evaluate", "--samples", "samples", "--reference", "doubled")
    assert run(*what) == 2
    error = capsys.readouterr().err
    assert "000.png has 64x64 pixels, where 32x32 are wanted" in error and "--resize adm" in error
    assert error.count("\n") == 1
    assert run(*what, "--resize", "adm") == 0
    result = json.loads(Path("evaluation.json").read_text())
    assert result["scores"]["fd"] < 1e-3 and result["protocol"]["reference"]["resize"] == "adm"
    assert "against doubled (30, resized by the rule adm)" in capsys.readouterr().out
    assert "resized by the rule adm" in Path("evaluation.md").read_text()
    assert run(*what, "--resize", "lanczos", "--output", "other.json") == 0
    assert json.loads(Path("other.json").read_text())["ruler_hash"] != result["ruler_hash"]
    for arguments, message in (
        (("--resize", "nearest"), "unknown rule to resize 'nearest'; known: adm"),
        (("--resize", "adm", "--reference", "none"), "--resize is about a reference, and there is none"),
        (("--resize", "adm", "--reference", "cifar10-test"), "holds no pictures that could be resized"),
    ):
        assert run(*what, *arguments) == 2
        assert message in capsys.readouterr().err


def test_an_npz_of_another_size(capsys: pytest.CaptureFixture[str]):
    pictures("samples", range(30))
    small = [np.asarray(Image.open(p)) for p in sorted(Path("samples").iterdir())]
    np.savez("real.npz", np.stack(small).repeat(2, 1).repeat(2, 2))
    what = ("evaluate", "--samples", "samples", "--reference", "real.npz")
    assert run(*what) == 2
    error = capsys.readouterr().err
    assert "real.npz has pictures of 64x64 pixels, and those to be measured have 32x32" in error
    assert "--resize adm" in error
    assert run(*what, "--resize", "adm") == 0 and scores()["fd"] < 1e-3


def test_one_part_of_a_reference(capsys: pytest.CaptureFixture[str]):
    pictures("samples", range(20))
    pictures("real/Test", range(20))
    assert run("evaluate", "--samples", "samples", "--reference", "real", "--output", "a.json") == 0
    pictures("real/TRAIN/cat", range(50, 70))
    assert run("evaluate", "--samples", "samples", "--reference", "real") == 2
    assert "real has the parts TRAIN, Test; say which with --split" in capsys.readouterr().err
    what = ("evaluate", "--samples", "samples", "--reference", "real", "--split", "test")
    assert run(*what, "--output", "b.json") == 0
    assert scores("a.json") == scores("b.json") and scores("a.json")["fd"] < 1e-3


@pytest.mark.parametrize("format", ["npz", "tar", "folder", "parquet"])
def test_a_run_as_samples_and_as_reference(format: str, model: Path, capsys: pytest.CaptureFixture[str]):
    drawing = ("generate", "--model", model, "--count", 20, "--out", "run", "--format", format)
    assert run(*drawing, "--device", "cpu", "--shard-size", 8) == 0
    assert run("evaluate", "--samples", "run", "--reference", "run") == 0
    found = scores()
    assert found["fd"] < 1e-3 and 0 <= found["accuracy"] <= 1
    assert "recognised" in capsys.readouterr().out


def test_samples_that_cannot_be(capsys: pytest.CaptureFixture[str]):
    pictures("mixed", range(2))
    pictures("mixed", range(2, 3), times=2)
    for path, message in (
        ("nothing", "cannot read 'nothing': no such file or folder"),
        ("mixed", "generated pictures must all have one size: mixed/002.png has 64x64"),
    ):
        assert run("evaluate", "--samples", path, "--reference", "none") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not Path("evaluation.work").exists()


SMALL = ("--recipe", "tiny", "--images", 8, "--batch-size", 4, "--device", "cpu")


def test_broken_pictures_end_a_training_before_it_begins(capsys: pytest.CaptureFixture[str]):
    for name in ("a", "b"):
        pictures(f"data/{name}", range(12), times=2)
    broken = Path("data/b/003.png")
    broken.write_bytes(broken.read_bytes()[:-30])
    train = ("train", "tokenizer", "data", "-o", "out", *SMALL)
    assert run(*train) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 1 of 24 pictures in data cannot be read: ") and "b/003.png" in error
    assert error.endswith("(--skip-broken)\n") and error.count("\n") == 1 and not Path("out").exists()
    assert run(*train, "--check", "some") == 2
    assert "--check is headers or full, got 'some'" in capsys.readouterr().err
    assert run(*train, "--skip-broken", "--check", "full") == 0
    assert "note: skipped 1 of 24 pictures in data that cannot be read" in capsys.readouterr().err


def test_data_without_what_training_needs(capsys: pytest.CaptureFixture[str]):
    pictures("data/test/a", range(4))
    pictures("empty/a", range(4))
    Path("empty/b").mkdir()
    for data, message in (
        ("data", "has test, and no part to train on"),
        ("empty", "no pictures in b; every class needs some"),
    ):
        assert run("train", "classifier", data, "-o", "out", *SMALL) == 2
        assert message in capsys.readouterr().err
    assert not Path("out").exists()
