"""What checkpoints and kept tokens are bound to: every picture, wherever it lies."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextscale.training import digest
from nextscale.training.data import ImageSource, open_images
from nextscale.training.digest import pictures_digest

COUNT = 30


def write(folder: Path, size: int) -> Path:
    for number in range(COUNT):
        place = folder / ("a" if number < COUNT // 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (number, 0, 0)).save(place / f"{number:02d}.bmp")
    return folder


def paths(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.bmp"))


def touched(path: Path, work: Callable[[bytes], bytes]) -> None:
    """Change a file's bytes and leave its times as they were."""
    stat = path.stat()
    path.write_bytes(work(path.read_bytes()))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("size", [8, 16])
def test_every_picture_counts(tmp_path: Path, size: int) -> None:
    """Of pictures in memory (8 pixels) and of files (16, which are made smaller when they are asked for)."""
    folder = write(tmp_path / "data", size)
    opened = open_images(folder, size=8)
    assert (opened.cache is not None) == (size == 8)
    seen = {pictures_digest(opened)}
    assert pictures_digest(open_images(folder, size=8)) in seen
    for path in paths(folder):  # the last byte of each in turn
        touched(path, lambda whole: whole[:-1] + bytes([whole[-1] ^ 128]))
        seen.add(pictures_digest(open_images(folder, size=8)))
    assert len(seen) == 1 + COUNT


@pytest.mark.parametrize("size", [8, 16])
def test_labels_classes_names_order_and_size_count(tmp_path: Path, size: int) -> None:
    folder = write(tmp_path / "data", size)
    pictures = open_images(folder, size=8)
    other = [
        replace(pictures, labels=pictures.labels.flip(0)),
        replace(pictures, class_names=("a", "c")),
        pictures.subset(torch.arange(COUNT - 1)),
        pictures.subset(torch.arange(COUNT).flip(0)),
        pictures.subset(torch.arange(COUNT).roll(1)),
        open_images(folder, size=(8, 6)),
        open_images(folder, size=(6, 8)),
    ]
    found = [pictures_digest(p) for p in [pictures, *other]]
    assert len(set(found)) == len(found)
    assert pictures_digest(pictures.subset(torch.arange(COUNT))) == pictures_digest(
        pictures.subset(torch.arange(COUNT)).subset(torch.arange(COUNT))
    )
    assert pictures_digest(open_images(folder, size=(8, 8))) == found[0]  # the same in other words


def test_a_moved_or_copied_folder_is_the_same(tmp_path: Path) -> None:
    first, second = write(tmp_path / "data", 16), write(tmp_path / "elsewhere" / "again", 16)
    for path in paths(second):
        os.utime(path, ns=(1, 1))
    one, two = open_images(first, size=8), open_images(second, size=8)
    assert pictures_digest(one) == pictures_digest(two)
    assert pictures_digest(one, times=True) == pictures_digest(two, times=True)  # every byte was read
    paths(second)[3].rename(second / "a" / "x.bmp")
    assert pictures_digest(open_images(second, size=8)) != pictures_digest(one)


def test_of_many_bytes_names_sizes_ends_and_times_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(digest, "END_BYTES", 16)
    folder = write(tmp_path / "data", 16)

    def now(times: bool = False) -> str:
        return pictures_digest(open_images(folder, size=8), times=times)

    first, kept = now(), now(times=True)
    path = paths(folder)[17]
    os.utime(path, ns=(5, 5))
    assert now() == first and now(times=True) != kept  # kept tokens are made anew, a run goes on
    touched(path, lambda whole: whole[:-1] + b"x")
    assert now() != first
    second = now()
    touched(path, lambda whole: whole + b"x")
    assert now() != second
    monkeypatch.setattr(digest, "ENDS", COUNT - 1)  # of more files, none is opened
    third = now()
    touched(path, lambda whole: whole[:-1] + b"y")
    assert now() == third
    touched(path, lambda whole: whole + b"x")
    assert now() != third


def test_pictures_from_nowhere_are_read(tmp_path: Path) -> None:
    def source(values: list[int]) -> ImageSource:
        return ImageSource(
            lambda row: Image.new("RGB", (4, 4), (values[row], 0, 0)), torch.zeros(3).long(), (), 8
        )

    assert pictures_digest(source([1, 2, 3])) == pictures_digest(source([1, 2, 3]))
    assert pictures_digest(source([1, 2, 3])) != pictures_digest(source([1, 2, 4]))


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_every_picture_in_an_archive_counts(tmp_path: Path, kind: str) -> None:
    def archive(name: str, changed: int | None = None) -> Path:
        files = [png(number if number != changed else 200) for number in range(5)]
        path = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            pyarrow = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pyarrow.table({"image": files, "label": [0, 1, 0, 1, 0]}), path)
            return path
        with tarfile.open(path, "w") as tar:
            for number, content in enumerate(files):
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    def png(value: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (value, 0, 0)).save(file, "png")
        return file.getvalue()

    found = [
        pictures_digest(open_images(archive(f"{n}", n), size=8, labels=kind == "parquet")) for n in range(5)
    ]
    assert len(set(found)) == 5
    same = {
        pictures_digest(open_images(archive(f"again{n}"), size=8, labels=kind == "parquet")) for n in (0, 1)
    }
    assert len(same) == 1 and not same & set(found)
