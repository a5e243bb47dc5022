"""``nextscale generate`` as users run it: in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo


def settings(path: Path) -> dict:
    with Image.open(path) as image:
        return json.loads(image.info["nextscale"])


def same_pixels(a: Path, b: Path) -> bool:
    with Image.open(a) as first, Image.open(b) as second:
        return first.size == second.size and not ImageChops.difference(first, second).getbbox()


def test_writes_a_picture_that_can_be_made_again(nextscale, model: Path, tmp_path: Path):
    options = ("--count", 3, "--seed", 5, "--ssg", 0.6, "--batch-size", 4)
    done = nextscale("generate", "horse", "ship", "--model", model, *options, "--separate", "single")
    assert done.stdout.startswith("nextscale.png: 6 pictures of horse, ship; seeds 5 to 10\n")
    assert done.stderr == "" and "\x1b" not in done.stdout
    grid = tmp_path / "nextscale.png"
    with Image.open(grid) as image:
        assert image.size == (3 * 128 + 2 * 4, 2 * 128 + 4)  # a row per label, enlarged four times
    stored = settings(grid)
    assert stored["labels"] == [7, 7, 7, 8, 8, 8]
    assert stored["seeds"] == [5, 6, 7, 8, 9, 10]
    assert stored["ssg"]["beta"] == 0.6 and stored["layout"] == {"columns": 3, "zoom": 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nextscale.png", "single"]  # no partial files
    singles = sorted(tmp_path.glob("single/*.png"))
    assert [p.name for p in singles][:4] == [
        "0000-horse-seed5.png",
        "0001-horse-seed6.png",
        "0002-horse-seed7.png",
        "0003-ship-seed8.png",
    ]

    # The default name does not overwrite the first picture; its bytes are the same, text included.
    nextscale("generate", "--from", grid)
    assert (tmp_path / "nextscale-2.png").read_bytes() == grid.read_bytes()

    # A single file makes that picture alone again, from its own settings.
    nextscale("generate", "--from", singles[4], "--output", "one.png")
    assert (tmp_path / "one.png").read_bytes() == singles[4].read_bytes()
    assert settings(tmp_path / "one.png")["labels"] == [8]

    # What is given overrides what is stored; labels and seeds stay.
    nextscale("generate", "--from", grid, "--ssg", "off", "--guidance-scale", 0, "--output", "off.png")
    other = settings(tmp_path / "off.png")
    assert other["ssg"] is None and other["guidance_scale"]["scale"] == 0
    assert other["seeds"] == stored["seeds"] and other["layout"] == stored["layout"]
    assert not same_pixels(tmp_path / "off.png", grid)


def test_a_picture_of_an_earlier_version_says_that_it_cannot_be_made_again(
    nextscale, model: Path, tmp_path: Path
):
    nextscale("generate", "horse", "--model", model, "--seed", 5, "--output", "now.png")
    for silent in (("info", "now.png"), ("generate", "--from", "now.png", "--output", "again.png")):
        assert nextscale(*silent).stderr == ""
    stored = settings(tmp_path / "now.png")
    del stored["sampler_version"]  # which the first version did not write
    text = PngInfo()
    text.add_text("nextscale", json.dumps(stored))
    with Image.open(tmp_path / "now.png") as image:
        image.save(tmp_path / "old.png", pnginfo=text)
    for said in (("info", "old.png"), ("generate", "--from", "old.png", "--output", "other.png")):
        lines = nextscale(*said).stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith(
            "note: old.png: its random numbers were drawn in another"
        )
    assert settings(tmp_path / "other.png")["sampler_version"] == 2


def test_all_classes_and_the_multinomial_sampler(nextscale, model: Path, tmp_path: Path):
    options = ("--sampler", "multinomial", "--seed", 1, "--batch-size", 4, "--zoom", 1, "--temperature", 1.2)
    nextscale("generate", "--model", model, *options, "--separate", "single", "-o", "all.png")
    stored = settings(tmp_path / "all.png")
    assert stored["labels"] == list(range(10)) and stored["layout"] == {"columns": 5, "zoom": 1}
    # Draws depend on the batch here; a single file knows the one it was made in.
    ninth = next(tmp_path.glob("single/0009-*.png"))
    nextscale("generate", "--from", ninth, "-o", "ninth.png")
    assert (tmp_path / "ninth.png").read_bytes() == ninth.read_bytes()
