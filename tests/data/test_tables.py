"""Parquet files and their labels, tar archives, the hub's folders."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.data.conftest import png
from tests.data.test_folders import classes, values

from nextscale.data.classes import check_every_class
from nextscale.data.opening import open_pictures, parts_of
from nextscale.errors import DataError, NextscaleWarning

Table = Callable[..., Path]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("image", ["img", "image", "Image", "jpg", "photo"])
def test_columns_of_pictures(binary: bool, image: str, table: Table):
    found = open_pictures(table("a.parquet", [5, 6], [1, 0], image=image, binary=binary))
    assert (values(found), found.labels.tolist(), found.class_names) == ([5, 6], [1, 0], ())


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", "b"], ["b", "a", "b"]),
        (pa.array(["b", "a", "b"], pa.large_string()), ["b", "a", "b"]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        ([["b"], ["a"], ["b"]], ["b", "a", "b"]),
        (pa.array([["b"], ["a"], ["b"]], pa.large_list(pa.string())), ["b", "a", "b"]),
        (["10", "9", "10"], ["10", "9", "10"]),
    ],
    ids=["text", "large", "dictionary", "list", "large list", "digits"],
)
def test_labels_that_are_names(labels: Any, expected: list[str], table: Table):
    found = open_pictures(table("a.parquet", [1, 2, 3], labels))
    assert classes(found) == expected and found.class_names == tuple(sorted(set(expected)))


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 1],
        pa.array([1, 0, 1], pa.uint8()),
        pa.array([1, 0, 1], pa.int32()).dictionary_encode(),
        [[1], [0], [1]],
        [True, False, True],
    ],
    ids=["int", "uint8", "dictionary", "list", "bool"],
)
@pytest.mark.parametrize("names", [(), ("no", "yes")])
def test_labels_that_are_numbers(labels: Any, names: tuple[str, ...], table: Table):
    found = open_pictures(table("a.parquet", [1, 2, 3], labels, names=names))
    assert found.labels.tolist() == [1, 0, 1] and found.labels.dtype == torch.int64
    assert found.class_names == names


def test_the_names_of_a_list_of_classes(table: Table, tmp_path: Path):
    path = table("a.parquet", [1, 2], [[1], [0]])
    for about in ('{"feature": {"names": ["no", "yes"]}, "_type": "List"}', '[{"names": ["no", "yes"]}]'):
        meta = {b"huggingface": b'{"info": {"features": {"label": %s}}}' % about.encode()}
        pq.write_table(pq.read_table(path).replace_schema_metadata(meta), tmp_path / "b.parquet")
        assert open_pictures(tmp_path / "b.parquet").class_names == ("no", "yes")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.7], "labels of the kind double"),
        ([0.0, 1.0], "labels of the kind double"),
        (pa.array([0, 1], pa.float32()), "labels of the kind float"),
        ([Decimal("0"), Decimal("1")], "labels of the kind decimal"),
        ([[0.5], [1.0]], "labels of the kind list.*double"),
        ([0, None], "without a picture or label"),
        ([0, -1], "labels below 0"),
        ([-100, 1], "labels below 0"),
        ([[0, 1], [1]], "row 0 has 2 labels"),
        ([[0], []], "row 1 has 0 labels"),
        ([0, 1 << 40], "no number of a class"),
        ([{"a": 1}, {"a": 2}], "row 0 has the label"),
        ([b"a", b"b"], "row 0 has the label b'a'"),
    ],
)
def test_labels_that_are_none(labels: Any, message: str, table: Table):
    path = table("a.parquet", [1, 2], labels)
    with pytest.raises(DataError, match=rf"a\.parquet.*{message}"):
        open_pictures(path)
    assert values(open_pictures(path, labels="none")) == [1, 2]  # who needs none does not look at them


def test_labels_beyond_their_names(table: Table):
    with pytest.raises(DataError, match="has the label 2, and names only 2 classes, 0 to 1"):
        open_pictures(table("a.parquet", [1, 2], [0, 2], names=("no", "yes")))


def test_a_million_classes_are_none():
    with pytest.raises(
        DataError, match=r"labels up to 1,000,000 and no picture of 999,999 of 1,000,001 classes: 1, 2, 3 and"
    ):
        check_every_class(torch.tensor([0, 1_000_000]), (), "d")
    with pytest.raises(DataError, match="no picture of 1 of 3 classes: b;"):
        check_every_class(torch.tensor([0, 2]), ("a", "b", "c"), "d")
    with pytest.raises(DataError, match="no picture of 1 of 3 classes: 0;"):
        check_every_class(torch.tensor([1, 2]), (), "d")
    with pytest.raises(DataError, match="no picture of 1 of 3 classes: c;"):
        check_every_class(torch.tensor([0, 1, 1]), ("a", "b", "c"), "d")
    check_every_class(torch.tensor([2, 0, 1]), ("a", "b", "c"), "d")


def test_without_labels(table: Table, tmp_path: Path):
    assert not open_pictures(table("a.parquet", [1, 2])).labelled
    pq.write_table(
        pa.table({"image": [{"bytes": png(1), "path": None}], "species": ["owl"]}), tmp_path / "b.parquet"
    )
    with pytest.warns(NextscaleWarning, match=r"no column of labels \(label, .*\), only image, species"):
        assert not open_pictures(tmp_path / "b.parquet").labelled
    assert not open_pictures(tmp_path / "b.parquet", labels="none").labelled


def test_a_known_column_of_classes_may_have_any_name(table: Table):
    found = open_pictures(table("a.parquet", [1, 2], [1, 0], label="species", names=("owl", "jay")))
    assert classes(found) == ["jay", "owl"]


def test_cells_without_a_picture_are_named(table: Table, tmp_path: Path):
    path = table("a.parquet", [1, 2], [0, 1])
    whole = pq.read_table(path)
    cells = [{"bytes": png(1), "path": None}, {"bytes": None, "path": "2.png"}]
    pq.write_table(whole.set_column(0, "image", pa.array(cells)), path)
    with pytest.raises(
        DataError, match=r"a\.parquet row 1 holds no encoded picture, but no bytes, and the path"
    ):
        open_pictures(path).read(1)
    (tmp_path / "2.png").write_bytes(png(9))  # data sets of image folders keep their files so
    assert values(open_pictures(path)) == [1, 9]
    pq.write_table(whole.set_column(0, "image", pa.array([[1, 2], [3]])), path)
    with pytest.raises(DataError, match="row 0 holds no encoded picture, but list"):
        open_pictures(path).read(0)
    pq.write_table(whole.set_column(0, "image", pa.array([cells[0], None])), path)
    with pytest.raises(DataError, match="without a picture or label, row 1 first"):
        open_pictures(path)
    pq.write_table(whole.slice(0, 0), path)
    with pytest.raises(DataError, match="has no rows"):
        open_pictures(path)


def test_files_that_do_not_fit_each_other_are_named(table: Table, tmp_path: Path):
    table("d/a.parquet", [1], [0])
    table("d/b.parquet", [1], ["x"])
    with pytest.raises(DataError, match=r"cannot read 'b\.parquet' as parquet"):
        open_pictures(tmp_path / "d")
    (tmp_path / "d" / "b.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"cannot read 'b\.parquet' as parquet"):
        open_pictures(tmp_path / "d")


# ---------------------------------------------------------------------------- folders of the hub


def test_a_snapshot_of_the_hub(table: Table, tmp_path: Path):
    table("repo/data/train-00000-of-00002.parquet", [1], [0])
    table("repo/data/train-00001-of-00002.parquet", [2], [1])
    table("repo/data/test-00000-of-00001.parquet", [3], [0])
    (tmp_path / "repo" / "README.md").write_text("# Data")
    (tmp_path / "repo" / ".gitattributes").write_text("x")
    for root in (tmp_path / "repo", tmp_path / "repo" / "data"):
        assert parts_of(root) == ["train", "test"]
        assert values(open_pictures(root, split="train")) == [1, 2]
        assert values(open_pictures(root, split="test")) == [3]
        with pytest.raises(DataError, match="has the parts train, test"):
            open_pictures(root)


def test_the_cache_of_the_hub_with_its_links(table: Table, tmp_path: Path):
    blob = table("models/datasets--x--y/blobs/0a1b2c", [1, 2], ["owl", "jay"])
    cache = tmp_path / "models" / "datasets--x--y"
    snapshot = cache / "snapshots" / "abc"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train-00000-of-00001.parquet").symlink_to(blob)
    (cache / "refs").mkdir()
    for root in (snapshot, cache):
        assert classes(open_pictures(root, split="train")) == ["owl", "jay"]
    assert values(open_pictures(blob)) == [1, 2]  # its name says nothing, its bytes do
    (cache / "snapshots" / "old").mkdir()
    with pytest.raises(DataError, match="has 2 snapshots"):
        open_pictures(cache)
    (cache / "refs" / "main").write_text("abc")
    assert values(open_pictures(cache)) == [1, 2]


def test_other_layouts_of_parquet(table: Table, tmp_path: Path):
    for part, value in (("train", 1), ("test", 2)):
        table(f"convert/default/{part}/0000.parquet", [value])
        table(f"configured/plain_text/{part}-00000-of-00001.parquet", [value])
        table(f"plain/{part}.parquet", [value])
        table(f"upper/{part.upper()}_0.PARQUET", [value])
    for name in ("convert", "configured", "plain", "upper"):
        assert parts_of(tmp_path / name) == ["train", "test"], name
        assert values(open_pictures(tmp_path / name, split="Test", labels="none")) == [2], name
    table("nameless/0.parquet", [1])
    table("nameless/1.parquet", [2])
    table("nameless/metadata.parquet", [7])
    assert parts_of(tmp_path / "nameless") == []
    assert values(open_pictures(tmp_path / "nameless")) == [1, 2]
    table("plain/extra.parquet", [3])
    with pytest.warns(NextscaleWarning, match=r"passed over extra\.parquet, beside the parts"):
        assert values(open_pictures(tmp_path / "plain", split="train")) == [1]
    with pytest.warns(NextscaleWarning):
        assert values(open_pictures(tmp_path / "plain", split="extra")) == [3]


# ---------------------------------------------------------------------------- archives and other files


def archive(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_web_dataset(tmp_path: Path):
    path = archive(
        tmp_path / "a.tar",
        {
            "./000.png": png(1),
            "./000.cls": b"1\n",
            "./000.json": b'{"label": 7}',
            "001.PNG": png(2),
            "001.json": b'{"label": 0}',
            "001.txt": b"words",
            "._001.png": b"junk",
            "__MACOSX/001.png": b"junk",
            ".DS_Store": b"junk",
        },
    )
    found = open_pictures(path)
    assert (values(found), found.labels.tolist(), found.class_names) == ([1, 2], [1, 0], ())
    assert not open_pictures(path, labels="none").labelled
    names = archive(tmp_path / "b.tar", {"0.png": png(1), "0.cls": b"owl", "1.jpg": png(2), "1.cls": b"jay"})
    assert classes(open_pictures(names)) == ["owl", "jay"]
    some = archive(tmp_path / "c.tar", {"0.png": png(1), "0.cls": b"1", "1.png": png(2)})
    with pytest.raises(DataError, match=r"c\.tar has rows without a picture or label, row 1"):
        open_pictures(some)
    assert open_pictures(some, labels="numbers").labels.tolist() == [1, -1]


def test_pictures_that_share_a_beginning_all_count(tmp_path: Path):
    path = archive(tmp_path / "a.tar", {"x.1.png": png(1), "x.2.png": png(2), "cat/0.png": png(3)})
    assert values(open_pictures(path)) == [1, 2, 3]
    with pytest.warns(NextscaleWarning, match=r"passed over 1 file: 1 \.heic"):
        open_pictures(archive(tmp_path / "b.tar", {"0.png": png(1), "1.heic": b"x"}))


def test_archives_in_parts(tmp_path: Path):
    archive(tmp_path / "d" / "train-0.tar", {"0.png": png(1)})
    archive(tmp_path / "d" / "train-1.tar", {"1.png": png(2)})
    archive(tmp_path / "d" / "val-0.tar", {"2.png": png(3)})
    assert parts_of(tmp_path / "d") == ["train", "validation"]
    assert values(open_pictures(tmp_path / "d", split="train")) == [1, 2]
    assert values(open_pictures(tmp_path / "d", split="val")) == [3]


def test_archives_that_cannot_be_read(tmp_path: Path):
    whole = archive(tmp_path / "a.tar", {"0.png": png(1), "1.png": png(2) * 40}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    with pytest.raises(DataError, match=r"cut\.tar"):
        open_pictures(tmp_path / "cut.tar")
    packed = archive(tmp_path / "b.tar.gz", {"0.png": png(1)}, "w:gz")
    with pytest.raises(DataError, match=r"b\.tar\.gz' is compressed: unpack it"):
        open_pictures(packed)
    packed.rename(tmp_path / "gz.tar")
    with pytest.raises(DataError, match="a compressed one has to be unpacked first"):
        open_pictures(tmp_path / "gz.tar")
    with pytest.raises(DataError, match=r"found no pictures in c\.tar"):
        open_pictures(archive(tmp_path / "c.tar", {"a.txt": b"x"}))


def test_other_files_are_refused_by_name(tmp_path: Path):
    for name, message in (
        ("a.npz", "is an .npz, which is read where pictures are measured alone"),
        ("a.zip", "is compressed: unpack it"),
        ("a.png", "as pictures; give a folder"),
        ("a.csv", "as pictures; give a folder"),
    ):
        (tmp_path / name).write_bytes(png(1) if name == "a.png" else b"x,y")
        with pytest.raises(DataError, match=message):
            open_pictures(tmp_path / name)
    with pytest.raises(DataError, match="no such file or folder"):
        open_pictures(tmp_path / "nothing")
