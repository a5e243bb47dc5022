"""Shards are what other programs expect, and the same bytes whenever they are written."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from nextscale.errors import DataError
from nextscale.evaluation.images import NpzImages
from nextscale.sampling.drawing import RunPictures
from nextscale.sampling.plan import RunPlan
from nextscale.sampling.reading import read_run, read_shard, verify
from nextscale.sampling.worker import Worker
from nextscale.sampling.writers import Item, open_shard
from nextscale.training.data import open_images

MakeWorker = Callable[..., Worker]


def items(plan: RunPlan, shard: int) -> list[Item]:
    chance = np.random.default_rng(shard)
    sizes = (*plan.size, 3)
    return [
        Item(i, plan.seed + i, i % 3 - 1, chance.integers(0, 256, sizes, dtype=np.uint8))
        for i in plan.span(shard)
    ]


def write(plan: RunPlan, shard: int, path: Path) -> Path:
    writer = open_shard(plan, shard, path)
    for item in items(plan, shard):
        writer.add(item)
    writer.finish()
    return path


@pytest.mark.parametrize("image_format", ["png", "webp"])
@pytest.mark.parametrize("format", ["tar", "parquet", "folder", "npz"])
def test_what_is_written_is_read_back_to_the_pixel(
    plan: RunPlan, tmp_path: Path, format: str, image_format: str
):
    plan = replace(plan, format=format, image_format=image_format, count=250, shard_size=240)
    for shard in range(2):
        path = write(plan, shard, tmp_path / str(shard))
        found = list(read_shard(plan, path, plan.span(shard)))
        assert [(i.index, i.seed, i.subject) for i in found] == [
            (i.index, i.seed, i.subject) for i in items(plan, shard)
        ]
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(found, items(plan, shard), strict=True))


@pytest.mark.parametrize("format", ["tar", "parquet", "npz"])
def test_the_same_pictures_are_the_same_bytes(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
):
    plan = replace(plan, format=format)
    one = write(plan, 1, tmp_path / "one").read_bytes()
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setenv("USER", "somebody else")
    assert write(plan, 1, tmp_path / "two").read_bytes() == one


def test_a_tar_is_a_webdataset(plan: RunPlan, tmp_path: Path):
    """Members of a sample follow each other and share everything before the first dot."""
    path = write(plan, 1, tmp_path / "a.tar")
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert names[:3] == ["000000005.png", "000000005.json", "000000005.cls"]
        assert json.load(tar.extractfile(names[1])) == {"index": 5, "seed": 10, "label": 1}
        assert tar.extractfile(names[2]).read() == b"1"
        assert {(m.mtime, m.uid, m.uname, m.mode) for m in tar} == {(0, 0, "", 0o644)}
    plan = replace(plan, key="prompts")
    writer = open_shard(plan, 0, tmp_path / "b.tar")
    writer.add(replace(items(plan, 0)[0], subject="ein Fuchs, größer"))
    writer.finish()
    with tarfile.open(tmp_path / "b.tar") as tar:
        assert tar.extractfile("000000000.txt").read().decode() == "ein Fuchs, größer"


def test_parquet_has_the_layout_of_the_hub(plan: RunPlan, tmp_path: Path, worker: MakeWorker):
    folder = tmp_path / "run"
    folder.mkdir()
    worker(folder, format="parquet", count=12).run()
    table = parquet.read_table(folder / "train-000001-of-000003.parquet")
    assert table.column_names == ["image", "label", "index", "seed"]
    row = table.slice(0, 1).to_pylist()[0]
    assert row["image"]["path"] == "000000005.png" and row["image"]["bytes"].startswith(b"\x89PNG")
    known = json.loads(table.schema.metadata[b"huggingface"])
    assert known["info"]["features"]["image"] == {"_type": "Image"}


def test_what_a_run_wrote_can_be_trained_on(tmp_path: Path, worker: MakeWorker, pictures: RunPictures):
    folder = tmp_path / "run"
    folder.mkdir()
    classes = replace(pictures, subjects=[0, 1, 2])
    worker(folder, format="parquet", count=12, subjects=3, pictures=classes).run()
    assert len(open_images(folder, size=8)) == 12


def test_npz_is_one_adm_batch(tmp_path: Path, worker: MakeWorker):
    worker(tmp_path, format="npz").run()
    images = NpzImages(tmp_path / "samples.npz")
    assert len(images) == 24 and images.size == (8, 8)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].dtype == np.uint8 and file["arr_1"].tolist()[:6] == [0, 1, 2, 0, -1, 0]
    assert not list(tmp_path.glob("shard-*"))
    found = [item.pixels for item in read_run(tmp_path)]
    assert np.array_equal(np.stack(found), images.read(0, 24).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("format", ["tar", "parquet", "folder", "npz"])
def test_an_abandoned_shard_writes_nothing_more(plan: RunPlan, tmp_path: Path, format: str):
    writer = open_shard(replace(plan, format=format), 0, tmp_path / "partial")
    writer.add(items(plan, 0)[0])
    writer.abandon()
    del writer


def test_verify_names_what_is_wrong(tmp_path: Path, worker: MakeWorker):
    with pytest.raises(DataError, match="holds no run"):
        verify(tmp_path)
    worker(tmp_path).run()
    assert verify(tmp_path) == 24
    first, second = tmp_path / "shard-000000.tar", tmp_path / "shard-000001.tar"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match="has picture 5 where 0 belongs"):
        verify(tmp_path)
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"damaged|ends within|lacks picture"):
        verify(tmp_path)
    first.unlink()
    with pytest.raises(DataError, match="is missing; give the command of the run again"):
        verify(tmp_path)
    worker(tmp_path).run()
    assert verify(tmp_path) == 24
