"""Pictures that cannot be read: found before training, skipped if asked for, and never the loss of a run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.test_trainer import SETTINGS, make_task, quiet
from torch import Tensor

from nextscale.errors import DataError, InvalidArgumentError, NextscaleWarning
from nextscale.training.data import (
    BrokenPicturesError,
    ImageSource,
    check_classes,
    open_images,
    open_splits,
)
from nextscale.training.recipes import train_classifier, train_tokenizer, train_transformer
from nextscale.training.trainer import train


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two classes of six pictures at 64 pixels, too large to be kept decoded; grey 10 to 15 and 20 to 25."""
    for label, name in enumerate(("a", "b"), 1):
        (tmp_path / "large" / name).mkdir(parents=True)
        for i in range(6):
            picture = Image.fromarray(np.full((64, 64, 3), 10 * label + i, np.uint8))
            picture.save(tmp_path / "large" / name / f"{i}.png")
    return tmp_path / "large"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def spoil(path: Path) -> None:
    """Damage that no header shows: the end is there, the middle is not."""
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 0xFF
    path.write_bytes(content)


def means(images: Tensor) -> list[int]:
    return images.float().mean((1, 2, 3)).round().int().tolist()


def test_a_cut_off_picture_is_found_before_training(large: Path):
    cut(large / "a" / "2.png")
    (large / "b" / "0.png").write_bytes(b"")
    assert len(open_images(large, size=32)) == 12  # nobody looked
    for check in ("headers", "full"):
        with pytest.raises(BrokenPicturesError, match=r"2 of 12 pictures .*2\.png: .*0\.png: it is empty"):
            open_images(large, size=32, check=check)  # type: ignore[arg-type]
        with pytest.warns(NextscaleWarning, match=r"skipped 2 of 12 pictures in .*2\.png.*0\.png"):
            found = open_images(large, size=32, check=check, skip_broken=True)  # type: ignore[arg-type]
        assert found.labels.tolist() == [0] * 5 + [1] * 5
        assert means(found.batch(range(10))) == [10, 11, 13, 14, 15, 21, 22, 23, 24, 25]
    with pytest.raises(InvalidArgumentError, match="unknown check 'some'; known: headers, full"):
        open_images(large, size=32, check="some")  # type: ignore[arg-type]


def test_many_broken_pictures_are_counted(large: Path):
    for path in large.rglob("*.png"):
        cut(path)
    with pytest.raises(BrokenPicturesError, match=r"12 of 12 pictures .*; and 9 more"):
        open_images(large, size=32, check="headers")
    with pytest.raises(DataError, match="so none is left"):
        open_images(large, size=32, check="headers", skip_broken=True)


def test_a_class_that_is_broken_altogether_is_an_error(large: Path):
    for path in (large / "b").iterdir():
        cut(path)
    with pytest.warns(NextscaleWarning, match="skipped 6 of 12"):
        training, held = open_splits(large, size=32, check="headers", skip_broken=True)
    with pytest.raises(DataError, match="no picture of 1 of 2 classes: b"):
        check_classes(training, held)


@pytest.fixture
def spoilt(large: Path) -> Path:
    for name in ("a/3.png", "b/5.png"):
        spoil(large / name)
        with pytest.raises(DataError, match="cannot read the picture"):
            open_images((large / name).parent, size=32).batch(range(6))
    return large


def test_every_pixel_is_read_if_asked_for(spoilt: Path):
    open_images(spoilt, size=32, check="headers")
    with pytest.raises(BrokenPicturesError, match="2 of 12"):
        open_images(spoilt, size=32, check="full")


def test_another_of_its_class_stands_in_for_what_turns_out_broken(spoilt: Path):
    found = open_images(spoilt, size=32, check="headers", skip_broken=True)
    with pytest.warns(NextscaleWarning, match=r"skipped a broken picture, and another of its class .*3\.png"):
        assert means(found.batch([2, 3, 4])) == [12, 14, 14]
    with pytest.warns(NextscaleWarning, match=r"5\.png"):
        assert means(found.batch([11])) == [20]  # of its own class, from the beginning again
    with pytest.warns(NextscaleWarning):
        assert means(found.subset(torch.tensor([11, 8])).batch([0])) == [22]


def test_what_was_learnt_before_a_broken_picture_is_kept(pictures: ImageSource, tmp_path: Path):
    def read(row: int) -> Image.Image:
        if row == 37:
            raise DataError("cannot read the picture 37.png: it is cut off")
        return pictures.read(row)

    breaking = replace(pictures, cache=None, read=read)
    task = make_task(breaking)
    with pytest.raises(DataError, match=r"37\.png"):
        train(task, SETTINGS, tmp_path / "run", report=quiet)
    done = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < done < SETTINGS.total_steps
    whole = make_task(replace(pictures, cache=None))
    resumed = train(whole, SETTINGS, tmp_path / "run", report=quiet)
    again = make_task(replace(pictures, cache=None))
    straight = train(again, SETTINGS, tmp_path / "straight", report=quiet)
    for a, b in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)


SMALL: dict[str, Any] = {"recipe": "tiny", "images": 8, "batch_size": 4, "device": "cpu", "report": quiet}


def test_recipes_look_before_they_train(large: Path, tmp_path: Path):
    cut(large / "a" / "1.png")
    for run in (train_tokenizer, train_classifier):
        with pytest.raises(BrokenPicturesError, match=r"1 of 12 .*1\.png"):
            run(large, tmp_path / "out", **SMALL)
        assert not (tmp_path / "out").exists()
        with pytest.warns(NextscaleWarning, match="skipped 1 of 12"):
            run(large, tmp_path / run.__name__, skip_broken=True, **SMALL)


def test_a_transformer_reads_every_pixel_before(spoilt: Path, picture_folder: Path, tmp_path: Path):
    train_tokenizer(picture_folder, tmp_path / "t", **SMALL)
    with pytest.raises(BrokenPicturesError, match="2 of 12"):
        train_transformer(spoilt, tmp_path / "m", tokenizer=tmp_path / "t", **SMALL)
    assert not list(tmp_path.glob("m/*.pt"))


# ---------------------------------------------------------------------------- parts and classes


@pytest.mark.parametrize(
    ("train_name", "test_name"), [("Train", "Test"), ("TRAINING", "VAL"), ("train", "valid")]
)
def test_parts_in_any_case(train_name: str, test_name: str, large: Path, tmp_path: Path):
    root = tmp_path / "parts"
    shutil.copytree(large, root / train_name)
    shutil.copytree(large, root / test_name)
    (root / test_name / "a" / "0.png").unlink()
    training, held = open_splits(root, size=32)
    assert (len(training), len(held)) == (12, 11)
    again = open_splits(root, size=32, held_out=root)
    assert (len(again[0]), len(again[1])) == (12, 11)


def test_a_test_part_alone_is_not_trained_on(large: Path, tmp_path: Path):
    shutil.copytree(large, tmp_path / "parts" / "test")
    with pytest.raises(DataError, match=r"has test, and no part to train on; .* as in '.*parts/test'"):
        open_splits(tmp_path / "parts", size=32)
    assert len(open_splits(large, size=32, held_out=tmp_path / "parts")[1]) == 12


def test_pictures_without_a_class_serve_a_tokenizer_alone(large: Path, tmp_path: Path):
    shutil.copy(large / "a" / "0.png", large / "top.png")
    training, held = open_splits(large, size=32, labels=False)
    assert len(training) + len(held) == 13
    train_tokenizer(large, tmp_path / "t", **SMALL)
    with pytest.raises(DataError, match=r"1 picture .* beside the folders a, b"):
        train_classifier(large, tmp_path / "c", **SMALL)


def test_a_class_without_pictures_ends_every_training(large: Path, tmp_path: Path):
    (large / "c").mkdir()
    with pytest.raises(DataError, match="no pictures in c; every class needs some"):
        train_classifier(large, tmp_path / "out", **SMALL)
    with (
        pytest.raises(DataError, match="no pictures in c; every class needs some"),
        pytest.warns(NextscaleWarning, match="no pictures in c"),
    ):
        train_tokenizer(large, tmp_path / "out", **SMALL)


def test_held_out_pictures_are_of_the_same_classes(large: Path):
    training, _ = open_splits(large, size=32)
    for held, message in (
        (open_images(large / "a", size=32), "the held-out pictures in .* have no classes, and those in"),
        (
            replace(training, labels=torch.tensor([0, 2])),
            "have the label 2, and the training pictures have 2",
        ),
    ):
        with pytest.raises(DataError, match=message):
            check_classes(training, held)
    with pytest.raises(DataError, match="no picture of 1,998 of 2,000 classes: 1, 2, 3 and 1,995 more"):
        check_classes(replace(training, labels=torch.tensor([0, 1999]), class_names=()), training)
    check_classes(training, training)
    flat = open_images(large / "a", size=32)
    check_classes(flat, flat)  # one class, unconditional
