"""``nextscale compare``: blocks that share their seeds."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from nextscale.cli.sheets import Block, comparison


def test_blocks_share_their_seeds(nextscale, model: Path, tmp_path: Path):
    arms = ("--ssg", "0.3,0", "--ssg", "0.6")
    options = ("--count", 2, "--seed", 3, "--output", "c.png", "--separate", "single")
    done = nextscale("compare", "cat", "truck", "--model", model, *arms, *options)
    assert done.stdout.startswith("c.png: no SSG, SSG 0.3, SSG 0.6; 4 pictures each, seeds 3 to 6\n")
    assert done.stderr == "" and "\x1b" not in done.stdout
    with Image.open(tmp_path / "c.png") as image:
        stored = json.loads(image.info["nextscale"])
    assert [arm["beta"] for arm in stored["arms"]] == [0, 0.3, 0.6]
    assert len(list(tmp_path.glob("single/*.png"))) == 12

    # The block at strength 0 is what generate makes without SSG from the same seeds, pixel by pixel.
    labels, seeds = ("cat", "cat", "truck", "truck"), "3,4,5,6"
    nextscale("generate", *labels, "--model", model, "--seed", seeds, "--separate", "plain")
    plain, off = (sorted(tmp_path.glob(p)) for p in ("plain/*.png", "single/*-no-ssg.png"))
    assert len(plain) == len(off) == 4
    assert [Image.open(p).tobytes() for p in plain] == [Image.open(p).tobytes() for p in off]
    guided = sorted(tmp_path.glob("single/*-ssg-0.6.png"))
    assert [Image.open(p).tobytes() for p in guided] != [Image.open(p).tobytes() for p in off]

    # And the sheet can be made again, by the command that made it.
    nextscale("compare", "--from", "c.png", "--output", "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    wrong = nextscale("generate", "--from", "c.png", code=2)
    assert "use nextscale compare --from c.png" in wrong.stderr


def test_pictures_stand_unchanged_on_the_sheet():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    images = [Image.new("RGB", (32, 32), colour) for colour in colours]
    rows = ["ship", "a name so long that it has to be broken into lines"]
    blocks = [Block("no SSG", "", images), Block("SSG 0.3", "dct prior", images[::-1])]
    sheet, at = comparison(blocks, rows, columns=2, zoom=3, caption=["one", "two"])
    assert sheet.size[0] == at.width
    for number, block in enumerate(blocks):
        for index, image in enumerate(block.images):
            x, y = at.place(number, index)
            tile = sheet.crop((x, y, x + 96, y + 96))
            assert tile.getcolors() == [(96 * 96, image.getpixel((0, 0)))]
    margin = sheet.crop((0, 0, sheet.width, 8))
    assert margin.getcolors() == [(sheet.width * 8, (255, 255, 255))]
