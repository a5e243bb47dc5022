"""``nextscale train``, of every kind: what happens to the work when something goes wrong."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale.cli import main as cli

KINDS = ("tokenizer", "bits", "transformer", "prompts", "classifier")
SMALL = ("--images", 16, "--batch-size", 8, "--device", "cpu")


def write_pictures(folder: Path, classes: int = 2, shift: int = 0) -> Path:
    for label in range(classes):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for number in range(6):
            ramp = np.linspace(0, 255, 32)
            pixels = np.stack([ramp[:, None] + 0 * ramp, ramp[None] * (label / 2) + 0 * ramp[:, None]], -1)
            pixels = np.concatenate([pixels, np.full((32, 32, 1), 20 * number + shift)], -1)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def command(kind: str, root: Path, *options: object, data: str = "data") -> list[str]:
    """The command that trains a kind, in a folder of its own."""
    what, *more = {
        "tokenizer": ("tokenizer", "--recipe", "tiny"),
        "bits": ("tokenizer", "--recipe", "tiny-bits"),
        "transformer": ("transformer", "--recipe", "tiny", "--tokenizer", root / "tokenizer"),
        "prompts": ("transformer", "--recipe", "tiny-bits", "--tokenizer", root / "bits"),
        "classifier": ("classifier", "--recipe", "tiny"),
    }[kind]
    return [str(a) for a in ("train", what, root / data, "-o", root / kind, *more, *SMALL, *options)]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    return left.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a run of every kind."""
    root = tmp_path_factory.mktemp("trained")
    write_pictures(root / "data")
    write_pictures(root / "other", shift=1)
    for kind in KINDS:
        assert run(command(kind, root)) == 0
    return root


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def damages(whole: bytes) -> dict[str, tuple[bytes, str]]:
    """What becomes of a checkpoint, and what is said of it."""
    at = len(whole) // 2
    holds = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), holds)
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "png")
    old = io.BytesIO()
    torch.save({"step": 1}, old, _use_new_zipfile_serialization=False)
    tensors, numbers = io.BytesIO(), io.BytesIO()
    torch.save({"tokens": torch.zeros(2)}, tensors)
    torch.save([1, 2], numbers)
    return {
        "empty": (b"", "it is empty"),
        "one byte": (whole[:1], "it is another kind of file"),
        "cut at the beginning": (whole[:100], "it ends too early"),
        "cut in the middle": (whole[:at], "it ends too early"),
        "cut at the end": (whole[:-1], "it ends too early"),
        "zeros": (bytes(len(whole)), "it is another kind of file"),
        "zeros in the middle": (whole[:at] + bytes(64) + whole[at + 64 :], "is not as it was written"),
        "zeros at the end": (whole[:at] + bytes(len(whole) - at), "it ends too early"),
        "one bit": (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], "is not as it was written"),
        "a page": (b"<!doctype html><html>404</html>", "it is another kind of file"),
        "a picture": (image.getvalue(), "it is another kind of file"),
        "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "it is another kind of file"),
        "an old kind": (old.getvalue(), "it is another kind of file"),
        "a module": (holds.getvalue(), "it holds more than tensors and numbers"),
        "tokens": (tensors.getvalue(), "it has no step"),
        "numbers": (numbers.getvalue(), "it holds a list"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_told_in_one_line(
    copied: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = copied / kind / "checkpoint.pt"
    whole = path.read_bytes()
    log = (copied / kind / "log.jsonl").read_bytes()
    for what, (damaged, reason) in damages(whole).items():
        path.write_bytes(damaged)
        capfd.readouterr()
        assert run(command(kind, copied)) == 2, what
        said = capfd.readouterr().err
        assert len(said.splitlines()) == 1, (what, said)
        assert re.search(
            rf"checkpoint.pt' is damaged \(.*{reason}.*\); delete it, or start afresh with --no-resume", said
        ), (what, said)
        assert path.read_bytes() == damaged and (copied / kind / "log.jsonl").read_bytes() == log, what


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_not_gone_on_with_something_else(
    copied: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: object, named: str, kind: str = kind, data: str = "data") -> None:
        before = {p: p.read_bytes() for p in (copied / kind).rglob("*") if p.is_file()}
        capfd.readouterr()
        assert run(command(kind, copied, *options, data=data)) == 2
        said = capfd.readouterr().err
        assert len(said.splitlines()) == 1 and re.search(named, said), said
        assert "another --output folder, or start afresh with --no-resume" in said, said
        assert {p: p.read_bytes() for p in (copied / kind).rglob("*") if p.is_file()} == before

    refused(data="other", named=r"made with DATA of 11 pictures and the digest \w{16}, now it is of 11 pictu")
    refused("--held-out", copied / "other", named=r"DATA of 11 pictures .*, now it is of 12 pictures")
    refused("--seed", 1, named=r"made with --seed 0, now it is 1")
    refused("--batch-size", 4, named=r"made with --batch-size 8, now it is 4")
    if kind in ("tokenizer", "bits"):
        refused("--size", 16, named=r"made with --size 32x32, now it is 16x16")
        refused("--size", "32x16", named=r"made with --size 32x32, now it is 32x16")
        refused("--scales", "1,2,8", named=r"made with --scales 1x1 2x2 .* 8x8, now it is 1x1 2x2 8x8")
    if kind in ("transformer", "prompts"):
        refused("--scales", "1,2,8", named=r"made with --scales 1x1 2x2 .* 8x8, now it is 1x1 2x2 8x8")
        refused("--size", 16, named=r"made with --size 32x32, now it is 16x16")
        refused("--initial", copied / kind, named=r"made with --initial not given, now it is of the digest")
    for other in set(KINDS) - {kind}:
        (copied / kind / "checkpoint.pt").write_bytes((copied / other / "checkpoint.pt").read_bytes())
        said = "nextscale train" if command(kind, copied)[1] != command(other, copied)[1] else "--recipe"
        refused(named=f"was made with {said} ")


def test_a_transformer_is_not_gone_on_with_another_tokenizer(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for kind, trains in (("transformer", "tokenizer"), ("prompts", "bits")):
        assert run([*command(trains, copied, "--seed", 1), "--no-resume"]) == 0
        capfd.readouterr()
        assert run(command(kind, copied)) == 2
        assert "made with --tokenizer of the digest" in capfd.readouterr().err


def test_the_same_size_may_be_said_in_other_words(copied: Path) -> None:
    for words in (("--size", 32), ("--size", "32x32"), ("--scales", "1,2,3,4,6,8")):
        for kind in ("tokenizer", "bits", "transformer", "prompts"):
            assert run(command(kind, copied, *words)) == 0, (kind, words)
    shutil.copytree(copied / "data", copied / "elsewhere")
    for kind in KINDS:
        assert run(command(kind, copied, data="elsewhere")) == 0, kind


def test_a_folder_in_the_checkpoints_place_is_told_of(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for kind in KINDS:
        (copied / kind / "checkpoint.pt").unlink()
        (copied / kind / "checkpoint.pt").mkdir()
        for options in ((), ("--no-resume",)):
            capfd.readouterr()
            assert run(command(kind, copied, *options)) == 2
            said = capfd.readouterr().err
            assert "checkpoint.pt' is a folder" in said and "another --output folder" in said, said


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint(
    trained: Path, copied: Path, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the start, and on the way: nothing can be drawn by numbers that are none."""
    high = ("--images", 96, "--lr", "1e30")
    for output, kept in ((tmp_path / "new", False), (copied / kind, True)):
        capfd.readouterr()
        assert run(command(kind, trained, *high, "--output", output)) == 2
        told = capfd.readouterr().err.splitlines()
        *progress, said = [line for line in told if not line.startswith(("step ", "encoding", "held out"))]
        assert not progress and said.startswith("error: ") and "--lr 1e+30 is probably too high" in said
        assert ("the checkpoint of step 2 can be taken on with a lower --lr" in said) == kept, said
        path = output / "checkpoint.pt"
        assert path.exists() == kept and not list(output.glob("*.partial"))
        if kept:
            assert path.read_bytes() == (trained / kind / "checkpoint.pt").read_bytes()
            assert run(command(kind, trained, "--images", 24, "--lr", "1e-4", "--output", output)) == 0
            assert torch.load(path, weights_only=True)["step"] == 3
