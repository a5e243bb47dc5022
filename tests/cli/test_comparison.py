"""``nextscale compare --images``: differences with intervals, resuming, which options are whose."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nextscale.cli import main as cli


@pytest.mark.slow
def test_differences_with_intervals(nextscale, model: Path, tmp_path: Path):
    options = ("--model", model, "--images", 40, "--seed-sets", 2, "--replicates", 50)
    sizes = ("--reference", "none", "--batch-size", 40)
    done = nextscale("compare", *options, *sizes, "--ssg", 0.6, "--temperature", 0.9)
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert result["images"] == 40 and result["seeds"] == [0, 1_000_000] and result["replicates"] == 50
    assert list(result["arms"]) == ["no SSG", "SSG 0.6"]
    found = result["differences"]["SSG 0.6"]
    assert set(found) == {"classifier_score", "accuracy"}
    accuracy = found["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"] and len(accuracy["per_set"]) == 2
    assert result["protocol"]["sampling"]["temperature"] == 0.9
    assert accuracy["contains_zero"] == (accuracy["low"] <= 0 <= accuracy["high"])
    assert done.stdout.splitlines()[1].split()[:5] == ["no", "SSG", "SSG", "0.6", "difference"]
    assert f"recognised: {accuracy['verdict']}" in done.stdout
    assert "## SSG 0.6 minus no SSG" in (tmp_path / "comparison.md").read_text()

    # evaluate with the same settings finds the pictures of the first set done, and the same figure.
    one = nextscale("evaluate", "--model", model, "--images", 40, *sizes, "--temperature", 0.9)
    assert "going on: 40 of 40 pictures are done" in one.stderr
    score = json.loads((tmp_path / "evaluation.json").read_text())["scores"]["accuracy"]
    assert math.isclose(result["arms"]["no SSG"]["scores_per_set"]["accuracy"][0], score)

    # A third set draws only what is new.
    more = nextscale("compare", *options[:2], "--images", 40, *sizes, "--ssg", 0.6, "--temperature", 0.9)
    assert "going on: 160 of 240 pictures are done" in more.stderr
    three = json.loads((tmp_path / "comparison-2.json").read_text())
    assert three["differences"]["SSG 0.6"]["accuracy"]["per_set"][:2] == accuracy["per_set"]


BAD = [
    (("--images", "20", "--count", "3"), "--count belongs to sheets of pictures; with --images"),
    (("--images", "20", "cat"), "LABELS belongs to sheets of pictures"),
    (("--images", "20", "--prompt", "a fox"), "--prompt belongs to sheets of pictures"),
    (("--images", "20", "--zoom", "2"), "--zoom belongs to sheets of pictures"),
    (("--images", "20", "--separate", "d"), "--separate belongs to sheets of pictures"),
    (("--images", "20", "--from", "c.png"), "--from belongs to sheets of pictures"),
    (("--seed-sets", "3"), "--seed-sets belongs to measuring; add --images 1000"),
    (("--reference", "none"), "--reference belongs to measuring"),
    (("--features", "pixels"), "--features belongs to measuring"),
    (("--preset", "custom"), "--preset belongs to measuring"),
    (("--work", "w"), "--work belongs to measuring"),
    (("--replicates", "9"), "--replicates belongs to measuring"),
    (("--images", "20", "--output", "c.png"), "give a name that ends in .json"),
    (("--images", "20", "--output", "no/c.json"), "the folder 'no' does not exist"),
    (("--images", "0"), "--images must be at least 1"),
    (("--images", "1"), "at least 2 pictures are needed"),
    (("--images", "20", "--seed-sets", "0"), "--seed-sets must be at least 1"),
    (("--images", "20", "--replicates", "0"), "--replicates must be at least 1"),
    (("--images", "20", "--seed", "1,2"), "--seed takes one number with --images"),
    (("--images", "20", "--ssg", "off"), "there is nothing to compare with no SSG"),
    (("--images", "20", "--ssg", "x"), "--ssg takes a number"),
    (("--images", "20", "--preset", "mnist"), "unknown preset 'mnist'"),
    (("--images", "20", "--preset", "imagenet256-adm"), "is for 1000 classes at 256x256 pixels"),
    (("--images", "20", "--negative-prompt", "x"), "this model takes no negative prompt"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments, expected, model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["compare", *arguments, "--model", str(model)])
    captured = capsys.readouterr()
    assert (left.value.code, captured.out) == (2, "")
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and expected in captured.err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
