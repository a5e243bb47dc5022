from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nextscale.errors import DataError
from nextscale.training.data import ImageSource, batches, open_images, open_splits, to_float

NAMES = ("blue", "green", "red")


def write_parquet(path: Path, rows: int, *, image: str = "img", label: str = "label", start: int = 0) -> None:
    encoded = []
    for i in range(rows):
        buffer = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), start + i, np.uint8)).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({image: encoded, label: [i % 2 for i in range(rows)]})
    features = {label: {"names": ["even", "odd"], "_type": "ClassLabel"}}
    meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(meta), path)


def test_a_folder_of_class_folders(pictures: ImageSource) -> None:
    assert len(pictures) == 60
    assert pictures.class_names == NAMES
    assert pictures.labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    batch = pictures.batch([0, 25, 59])
    assert batch.shape == (3, 3, 32, 32)
    assert batch.dtype == torch.uint8
    expected = torch.from_numpy(np.array(pictures.read(25))).permute(2, 0, 1)
    assert torch.equal(batch[1], expected)


def test_parquet_in_the_hubs_layout(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000.parquet", 5)
    write_parquet(tmp_path / "train-00001.parquet", 3, start=100)
    write_parquet(tmp_path / "test-00000.parquet", 2, start=200)
    train = open_images(tmp_path, size=32, split="train")
    assert len(train) == 8
    assert train.class_names == ("even", "odd")
    assert train.batch([6]).unique().tolist() == [101]
    assert open_images(tmp_path, size=32, split="test").batch([0]).unique().tolist() == [200]
    assert len(open_images(tmp_path / "train-00000.parquet", size=32)) == 5


def test_pictures_of_another_size_are_resized_and_cropped(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 96)[None, :, None], (64, 96, 3)).astype(np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(ramp).save(tmp_path / "a" / "wide.png")
    source = open_images(tmp_path, size=32)
    assert source.cache is None
    centre = source.batch([0])
    assert centre.shape == (1, 3, 32, 32)
    assert abs(float(centre.float().mean()) - 127) < 4
    random = [source.batch([0], torch.Generator().manual_seed(s)).float().mean() for s in range(6)]
    assert max(random) - min(random) > 5


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no pictures"):
        open_images(tmp_path, size=32)
    with pytest.raises(DataError, match="no such file or folder"):
        open_images(tmp_path / "nowhere", size=32)
    write_parquet(tmp_path / "odd.parquet", 2, image="photo")
    with pytest.raises(DataError, match=r"photo, label; expected one of img, image"):
        open_images(tmp_path / "odd.parquet", size=32)
    (tmp_path / "text.parquet").write_text("no parquet at all")
    with pytest.raises(DataError, match="as parquet"):
        open_images(tmp_path / "text.parquet", size=32)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "broken.png").write_text("no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        open_images(tmp_path / "c", size=32)


def test_subsets_keep_pictures_and_labels_together(pictures: ImageSource) -> None:
    part = pictures.subset(torch.tensor([45, 3]))
    assert part.labels.tolist() == [2, 0]
    assert torch.equal(part.batch([0]), pictures.batch([45]))
    assert np.array_equal(np.array(part.read(1)), np.array(pictures.read(3)))


def test_float_range() -> None:
    values = to_float(torch.tensor([0, 255], dtype=torch.uint8))
    assert values.tolist() == [-1.0, 1.0]


def test_batches_cover_each_epoch_and_can_be_continued() -> None:
    whole = [b for b, _ in zip(batches(10, 3, seed=5), range(9), strict=False)]
    assert all(len(b) == 3 for b in whole)
    for epoch in range(3):
        seen = torch.cat(whole[3 * epoch : 3 * epoch + 3]).tolist()
        assert len(set(seen)) == 9
    assert not torch.equal(torch.cat(whole[:3]), torch.cat(whole[3:6]))
    for start in (1, 3, 5):
        resumed = [b for b, _ in zip(batches(10, 3, seed=5, start=start), range(3), strict=False)]
        assert all(torch.equal(a, b) for a, b in zip(whole[start:], resumed, strict=False))
    with pytest.raises(DataError, match="fewer than one batch"):
        next(batches(2, 3, seed=0))


def colour(folder: Path, value: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(folder / f"{value}.png")


def test_parts_share_the_class_numbers_of_the_training_pictures(tmp_path: Path) -> None:
    for value, folder in enumerate(("train/cat", "train/dog", "val/dog")):
        colour(tmp_path / folder, value)
    training, held = open_splits(tmp_path, size=32)
    assert training.class_names == held.class_names == ("cat", "dog")
    assert held.labels.tolist() == [1]
    assert held.batch([0]).unique().tolist() == [2]
    colour(tmp_path / "val" / "fox", 3)
    with pytest.raises(DataError, match="classes that the training pictures lack: fox"):
        open_splits(tmp_path, size=32)


def test_without_a_held_out_part_some_pictures_are_kept_back(picture_folder: Path, tmp_path: Path) -> None:
    training, held = open_splits(picture_folder, size=32)
    assert (len(training), len(held)) == (57, 3)
    both = torch.cat([training.batch(range(57)), held.batch(range(3))]).flatten(1)
    assert len(both.unique(dim=0)) == 60
    write_parquet(tmp_path / "train-0.parquet", 4)
    write_parquet(tmp_path / "validation-0.parquet", 2, start=9)
    training, held = open_splits(tmp_path, size=32)
    assert (len(training), len(held)) == (4, 2)
    assert len(open_splits(tmp_path / "train-0.parquet", size=32, held_out=picture_folder / "red")[1]) == 20


def test_rows_without_picture_or_label_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "whole.parquet", 3)
    table = pq.read_table(tmp_path / "whole.parquet")
    for labels, message in (([0, None, 1], "without a picture or label"), ([0, -1, 1], "labels below 0")):
        changed = table.set_column(1, "label", pa.array(labels, pa.int64()))
        pq.write_table(changed, tmp_path / "changed.parquet")
        with pytest.raises(DataError, match=message):
            open_images(tmp_path / "changed.parquet", size=32)
