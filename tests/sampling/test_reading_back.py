"""Finished runs as data: to train on, as references, as samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nextscale.data.opening import is_run, open_pictures, parts_of
from nextscale.errors import DataError
from nextscale.evaluation.samples import open_samples
from nextscale.sampling.drawing import RunPictures
from nextscale.sampling.reading import read_run
from nextscale.sampling.worker import Worker

FORMATS = ["tar", "parquet", "folder"]
MakeWorker = Callable[..., Worker]


def drawn(folder: Path) -> tuple[list[np.ndarray], list[int]]:
    items = list(read_run(folder))
    return [item.pixels for item in items], [int(item.subject) for item in items]


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_is_its_pictures_and_their_classes(
    format: str, tmp_path: Path, worker: MakeWorker, pictures: RunPictures
):
    classes = replace(pictures, subjects=[0, 1, 2])
    worker(tmp_path, format=format, count=12, subjects=3, pictures=classes).run()
    assert is_run(tmp_path) and parts_of(tmp_path) == []
    found, (pixels, labels) = open_pictures(tmp_path), drawn(tmp_path)
    assert len(found) == 12 and found.labels.tolist() == labels == [0, 1, 2] * 4 and not found.class_names
    assert all(np.array_equal(np.asarray(found.read(i)), pixels[i]) for i in range(12))
    samples = open_samples(tmp_path)
    assert samples.size == (8, 8) and samples.labels is not None and samples.labels.tolist() == labels
    assert np.array_equal(samples.read(0, 12).permute(0, 2, 3, 1).numpy(), np.stack(pixels))


@pytest.mark.parametrize("format", FORMATS)
def test_pictures_of_no_class_are_none_to_train_on(format: str, tmp_path: Path, worker: MakeWorker):
    worker(tmp_path, format=format).run()
    _, labels = drawn(tmp_path)
    assert -1 in labels
    with pytest.raises(DataError, match="labels below 0"):
        open_pictures(tmp_path)
    assert len(open_pictures(tmp_path, labels="none")) == 24
    samples = open_samples(tmp_path)
    assert samples.labels is not None and samples.labels.tolist() == labels


def test_the_npz_of_a_run_is_measured(tmp_path: Path, worker: MakeWorker):
    worker(tmp_path, format="npz").run()
    samples, (pixels, labels) = open_samples(tmp_path), drawn(tmp_path)
    assert samples.labels is not None and samples.labels.tolist() == labels
    assert np.array_equal(samples.read(0, 24).permute(0, 2, 3, 1).numpy(), np.stack(pixels))
    assert samples.sha256 == open_samples(tmp_path / "samples.npz").sha256
    with pytest.raises(DataError, match=r"is one \.npz, which is read where pictures are measured alone"):
        open_pictures(tmp_path)
    (tmp_path / "samples.npz").unlink()
    with pytest.raises(DataError, match=r"samples\.npz.* is missing"):
        open_samples(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_an_unfinished_run_is_refused(format: str, tmp_path: Path, worker: MakeWorker):
    working = worker(tmp_path, format=format)
    working.run()
    last = tmp_path / working.plan.name(working.plan.shards - 1)
    last.rename(tmp_path / "away")
    with pytest.raises(DataError, match="is missing; give the command of the run again"):
        open_pictures(tmp_path, labels="none")
    with pytest.raises(DataError, match="is missing"):
        open_samples(tmp_path)
    if format == "folder":
        (tmp_path / "away").rename(last)
        listed = (last / "metadata.jsonl").read_text().splitlines()
        (last / "metadata.jsonl").write_text("\n".join(listed[:-1]))
        with (
            pytest.raises(DataError, match="has 23 of 24 pictures; it is damaged"),
            pytest.warns(match="does not list"),
        ):
            open_pictures(tmp_path, labels="none")


def test_the_manifest_of_another_program_makes_no_run(tmp_path: Path):
    for content in ("{}", "[]", "no JSON", json.dumps({"name": "app", "manifest": 3})):
        (tmp_path / "manifest.json").write_text(content)
        assert not is_run(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"manifest": 1, "hash": "0", "shard_size": 3}))
    assert is_run(tmp_path)
    with pytest.raises(DataError, match="it is damaged"):
        open_pictures(tmp_path)


def test_labels_belong_to_the_digest_of_samples(tmp_path: Path, worker: MakeWorker, pictures: RunPictures):
    worker(
        tmp_path / "a", format="folder", count=3, subjects=3, pictures=replace(pictures, subjects=[0, 1, 2])
    ).run()
    before = open_samples(tmp_path / "a")
    path = tmp_path / "a" / "shard-000000" / "metadata.jsonl"
    path.write_text(path.read_text().replace('"label": 2', '"label": 1'))
    after = open_samples(tmp_path / "a")
    assert before.sha256 != after.sha256 and torch.equal(before.read(0, 3), after.read(0, 3))
