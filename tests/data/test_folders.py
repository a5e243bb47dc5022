"""Which files of a folder are pictures, and of which classes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nextscale.data.opening import find_part, open_pictures, parts_of
from nextscale.data.pictures import Pictures
from nextscale.errors import DataError, NextscaleWarning

Put = Callable[..., Path]


def values(pictures: Pictures) -> list[int]:
    """The grey of every picture, in order."""
    return [pictures.read(row).getpixel((0, 0))[0] for row in range(len(pictures))]  # type: ignore[index]


def classes(pictures: Pictures) -> list[str]:
    return [pictures.class_names[label] for label in pictures.labels]


def test_class_folders_number_by_name(put: Put, tmp_path: Path):
    for place, value in (("b/2.png", 3), ("a/deep/er/1.png", 1), ("b/10.png", 2)):
        put(place, value)
    found = open_pictures(tmp_path)
    assert (values(found), classes(found), found.labelled) == ([1, 2, 3], ["a", "b", "b"], True)
    flat = open_pictures(tmp_path / "b")
    assert (values(flat), flat.labels.tolist(), flat.labelled) == ([2, 3], [0, 0], False)


def test_pictures_at_the_top_and_in_folders_all_count(put: Put, tmp_path: Path):
    for place, value in (("x.png", 3), ("a/1.png", 1), ("b/c/2.png", 2), ("0.png", 0)):
        put(place, value)
    found = open_pictures(tmp_path, labels="none")
    assert sorted(values(found)) == [0, 1, 2, 3] and not found.labelled
    with pytest.raises(DataError, match=r"has 2 pictures \(0.png first\) beside the folders a, b"):
        open_pictures(tmp_path)


@pytest.mark.parametrize("labels", ["classes", "none"])
def test_what_programs_leave_behind_is_skipped_everywhere(labels: str, put: Put, tmp_path: Path):
    put("a/1.png", 1)
    put("b/2.png", 2)
    for place in (
        *("._x.png", ".DS_Store", "a/._1.png", "__MACOSX/a/._1.png", "__MACOSX/real.png", "a/__MACOSX/2.png"),
        *(".ipynb_checkpoints/x-checkpoint.png", "b/.ipynb_checkpoints/y.png", "Thumbs.db", "a/desktop.ini"),
        *(".hidden/h.png", "b/.h.png", "@eaDir/t.jpg", ".cache/huggingface/z.png"),
    ):
        path = put(place, 99)
        path.write_bytes(b"Mac OS X")
    found = open_pictures(tmp_path, labels=labels)  # type: ignore[arg-type]
    assert values(found) == [1, 2]
    assert found.class_names == (("a", "b") if labels == "classes" else ())


def test_a_folder_in_a_hidden_place_is_read(put: Put, tmp_path: Path):
    put(".cache/data/a/1.png", 1)
    put(".cache/data/b/2.png", 2)
    assert classes(open_pictures(tmp_path / ".cache" / "data")) == ["a", "b"]


def test_what_is_passed_over_is_counted_and_said(put: Put, tmp_path: Path):
    put("a/1.png")
    put("b/UPPER.PNG")
    put("b/noname")
    for place in (
        "a/1.heic",
        "a/2.heic",
        "a/3.HEIC",
        "b/4.heic",
        "b/5.heic",
        "notes.txt",
        "a/b.txt",
        "README",
    ):
        (tmp_path / place).write_text("x")
    with pytest.warns(NextscaleWarning, match=r"passed over 8 files: 5 \.heic, 2 \.txt, 1 without a suffix$"):
        found = open_pictures(tmp_path)
    assert classes(found) == ["a", "b", "b"]


def test_a_class_without_pictures_is_an_error(put: Put, tmp_path: Path):
    put("a/1.png", 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.heic").write_text("x")
    with pytest.raises(
        DataError, match=r"no pictures in b; passed over 1 file: 1 \.heic; every class needs some"
    ):
        open_pictures(tmp_path)
    with pytest.warns(NextscaleWarning, match="no pictures in b"):
        found = open_pictures(tmp_path, labels="none")
    assert values(found) == [1] and found.empty == ("b",)


def test_a_sub_folder_without_pictures_is_no_class_of_pictures_at_the_top(put: Put, tmp_path: Path):
    put("1.png", 1)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.json").write_text("{}")
    with pytest.warns(NextscaleWarning, match=r"1 \.json; no pictures in annotations"):
        found = open_pictures(tmp_path)
    assert values(found) == [1] and not found.labelled


def test_without_any_pictures(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="found no pictures"):
        open_pictures(tmp_path)
    (tmp_path / "a" / "x.heic").write_text("x")
    with pytest.raises(
        DataError, match=r"found no pictures in .*; passed over 1 file: 1 \.heic; expected one"
    ):
        open_pictures(tmp_path)


def test_linked_folders_and_files_are_followed_but_not_in_circles(put: Put, tmp_path: Path):
    put("store/cats/1.png", 1)
    put("store/2.png", 2)
    root = tmp_path / "data"
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(tmp_path / "store" / "cats", target_is_directory=True)
    (root / "dog" / "d.png").symlink_to(tmp_path / "store" / "2.png")
    assert classes(open_pictures(root)) == ["cat", "dog"]
    (root / "dog" / "up").symlink_to(root, target_is_directory=True)
    (root / "dog" / "self").symlink_to(root / "dog", target_is_directory=True)
    (root / "dog" / "round").symlink_to(root / "dog" / "round")
    with pytest.warns(NextscaleWarning, match="2 linked to a folder above, 1 without a suffix"):
        assert values(open_pictures(root)) == [1, 2]
    linked = tmp_path / "linked"
    linked.symlink_to(root, target_is_directory=True)
    with pytest.warns(NextscaleWarning):
        assert values(open_pictures(linked)) == [1, 2]


def test_a_link_to_nowhere_is_a_broken_picture(put: Put, tmp_path: Path):
    put("a/1.png", 1)
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "gone.png")
    found = open_pictures(tmp_path / "a")
    assert list(found.broken(full=False)) == [1]
    assert "2.png: No such file" in found.broken(full=False)[1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_picture(put: Put, tmp_path: Path):
    put("1.png", 1)
    os.mkfifo(tmp_path / "2.png")
    with pytest.warns(NextscaleWarning, match="passed over 1 file"):
        assert values(open_pictures(tmp_path)) == [1]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is readable for root")
def test_an_unreadable_folder_is_named(put: Put, tmp_path: Path):
    put("a/1.png")
    (tmp_path / "b").mkdir(mode=0)
    with pytest.raises(DataError, match=r"cannot read the folder .*b"):
        open_pictures(tmp_path)


def test_one_class_that_looks_like_several_is_said(put: Put, tmp_path: Path):
    put("images/cat/1.png")
    put("images/dog/1.png")
    with pytest.warns(NextscaleWarning, match="of one class, images; if cat, dog are the classes, name"):
        assert classes(open_pictures(tmp_path)) == ["images", "images"]


# ---------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("Train", "Test"), ["Train", "Test"]),
        (("TRAIN", "VAL"), ["TRAIN", "VAL"]),
        (("training", "validation", "test"), ["training", "test", "validation"]),
        (("valid", "train"), ["train", "valid"]),
        (("test",), ["test"]),
        (("Val",), ["Val"]),
        (("trains", "testament"), []),
    ],
)
def test_parts_in_any_case(folders: tuple[str, ...], parts: list[str], put: Put, tmp_path: Path):
    for i, name in enumerate(folders):
        put(f"{name}/cat/{i}.png", i)
    assert parts_of(tmp_path) == parts
    for name in parts:
        for asked in (name, name.lower(), name.upper()):
            found = open_pictures(tmp_path, split=asked)
            assert values(found) == [folders.index(name)] and found.class_names == ("cat",)
    if len(parts) > 1:
        with pytest.raises(DataError, match=f"has the parts {', '.join(parts)}; say which"):
            open_pictures(tmp_path)
    elif parts:
        assert open_pictures(tmp_path).class_names == ("cat",)


def test_other_words_for_a_part():
    assert find_part(["Training", "Valid"], "train") == "Training"
    assert find_part(["Training", "Valid"], "val") == "Valid"
    assert find_part(["train", "Train"], "Train") == "Train"
    assert find_part(["train"], "test") is None
    assert find_part(["cat"], "dog") is None


def test_any_folder_can_be_asked_for_as_a_part(put: Put, tmp_path: Path):
    put("unlabeled/1.png", 1)
    put("train/cat/2.png", 2)
    with pytest.warns(NextscaleWarning, match="passed over unlabeled, beside the parts train"):
        assert values(open_pictures(tmp_path, split="Unlabeled")) == [1]
    with (
        pytest.raises(DataError, match="has the parts train, and none that is called 'test'"),
        pytest.warns(NextscaleWarning),
    ):
        open_pictures(tmp_path, split="test")


def test_pictures_beside_parts_are_said(put: Put, tmp_path: Path):
    for place in ("logo.png", "train/cat/1.png", "extra/2.png"):
        put(place)
    (tmp_path / "empty").mkdir()
    with pytest.warns(NextscaleWarning, match=r"passed over logo\.png, extra, beside the parts train"):
        assert len(open_pictures(tmp_path)) == 1


def test_a_test_folder_beside_others_is_a_question(put: Put, tmp_path: Path):
    put("test/1.png", 1)
    put("cat/2.png", 2)
    for labels in ("classes", "none"):
        with pytest.raises(DataError, match="has test beside the folders cat"):
            open_pictures(tmp_path, labels=labels)  # type: ignore[arg-type]
    with pytest.warns(NextscaleWarning, match="passed over cat, beside the parts test"):
        assert values(open_pictures(tmp_path, split="test", labels="none")) == [1]


def test_the_one_folder_of_an_archive_is_passed_through(put: Put, tmp_path: Path):
    put("tiny-imagenet/train/cat/1.png", 1)
    put("tiny-imagenet/val/cat/2.png", 2)
    assert parts_of(tmp_path) == ["train", "val"]
    assert values(open_pictures(tmp_path, split="val")) == [2]


# ---------------------------------------------------------------------------- metadata.jsonl


def list_pictures(folder: Path, facts: list[dict[str, object]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts) + "\n")


def test_metadata_says_what_the_pictures_are(put: Put, tmp_path: Path):
    for i in range(3):
        put(f"deep/{i}.png", i)
    facts = [{"file_name": f"deep/{i}.png", "label": label} for i, label in ((2, "b"), (0, "a"))]
    list_pictures(tmp_path, facts)
    with pytest.warns(NextscaleWarning, match=r"passed over 1 file: 1 \.png, which metadata\.jsonl does not"):
        found = open_pictures(tmp_path)
    assert (values(found), classes(found)) == ([2, 0], ["b", "a"])
    put("deep/1.png").unlink()
    list_pictures(tmp_path, [{"file_name": f"deep/{i}.png", "text": "x\u2028y"} for i in (0, 2)])
    assert not open_pictures(tmp_path).labelled
    for wrong, message in (
        ("[]", "line 1: no file_name"),
        ("{", "line 1: no JSON"),
        ("", "lists no pictures"),
    ):
        (tmp_path / "metadata.jsonl").write_text(wrong)
        with pytest.raises(DataError, match=message):
            open_pictures(tmp_path)


def test_shards_with_metadata_are_no_classes(put: Put, tmp_path: Path):
    for shard in range(2):
        put(f"shard-00000{shard}/0.png", shard)
        list_pictures(tmp_path / f"shard-00000{shard}", [{"file_name": "0.png", "label": 1 - shard}])
    found = open_pictures(tmp_path)
    assert (values(found), found.labels.tolist(), found.class_names) == ([0, 1], [1, 0], ())
    assert torch.equal(open_pictures(tmp_path, labels="numbers").labels, found.labels)
