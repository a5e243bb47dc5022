"""The order of things in a run: bytes on the disk before their names, whose shard first, whose rate."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nextscale.sampling.drawing import RunPictures, settle_batch
from nextscale.sampling.plan import MANIFEST, RunPlan
from nextscale.sampling.worker import Progress, Worker

MakeWorker = Callable[..., Worker]


class Watched:
    """What becomes of files: which state of them was put on the disk, and when they got their names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on_disk: dict[int, int] = {}  # by inode, the size that was put there
        self.named: list[Path] = []
        self.folders: list[tuple[int, int]] = []  # by inode; names given before
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)
        for name in ("replace", "link", "rename"):
            monkeypatch.setattr(os, name, self.naming(getattr(os, name)))

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        found = os.fstat(descriptor)
        self.on_disk[found.st_ino] = found.st_size
        self.folders.append((found.st_ino, len(self.named)))

    def naming(self, rename: Callable[..., None]) -> Callable[..., None]:
        def watched(source: Any, target: Any, **more: Any) -> None:
            path = Path(source)
            if path.suffix == ".partial" or path.name.startswith("manifest-"):
                files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
                for file in files:
                    found = file.stat()
                    assert self.on_disk.get(found.st_ino) == found.st_size, f"{file.name} is not on the disk"
                if path.is_dir():
                    assert path.stat().st_ino in self.on_disk, f"the names in {path.name} are not on the disk"
                self.named.append(Path(target))
            rename(source, target, **more)

        return watched


@pytest.mark.parametrize("kind", ["tar", "parquet", "folder", "npz"])
def test_bytes_are_on_the_disk_before_their_name(
    kind: str, tmp_path: Path, worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
):
    watched = Watched(monkeypatch)
    worker(tmp_path, format=kind).run()
    names = [path.name for path in watched.named]
    assert names[0] == MANIFEST and len(names) >= 1 + 5
    # The name itself is on the disk before the next shard gets one.
    inode = tmp_path.stat().st_ino
    synced = {count for found, count in watched.folders if found == inode}
    assert set(range(2, len(names) + 1)) <= synced


class Drifting:
    """The pipeline, but in batches of more than two the rows from ``first`` on are computed otherwise."""

    def __init__(self, pipe: Any, first: int) -> None:
        self.pipe, self.first, self.device = pipe, first, pipe.device

    def __call__(self, labels: Any, *, on_step: Any, **more: Any) -> Any:
        def drift(info: Any) -> None:
            if len(labels) > 2:
                guided = info.guided.clone()
                guided[self.first :] += 1e-3
                info = replace(info, guided=guided)
            on_step(info)

        return self.pipe(labels, on_step=drift, **more)


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_a_larger_batch_is_compared_in_every_row(plan: RunPlan, pictures: RunPictures, first: int):
    notes: list[str] = []
    drifting = replace(pictures, pipe=Drifting(pictures.pipe, first))
    assert settle_batch(plan, drifting, 4, notes.append) == 2
    assert notes == ["batches of 4 round differently here; drawing fewer at once"]


@pytest.mark.parametrize(
    ("workers", "rank", "first"), [(1, 0, 0), (2, 0, 0), (2, 1, 2), (5, 3, 3), (3, 2, 3)]
)
def test_where_a_process_begins(tmp_path: Path, worker: MakeWorker, workers: int, rank: int, first: int):
    """Processes of a launch begin apart, so that they seldom want the same shard."""
    ours = worker(tmp_path, rank=rank, workers=workers)
    ours.stopping = lambda: bool(ours.published())
    with pytest.raises(KeyboardInterrupt):
        ours.run()
    assert ours.published() == {first}


def test_the_rate_is_of_what_this_run_draws(tmp_path: Path, worker: MakeWorker):
    first = worker(tmp_path)
    first.stopping = lambda: len(first.published()) >= 3
    with pytest.raises(KeyboardInterrupt):
        first.run()
    seen: list[Progress] = []
    worker(tmp_path, report=seen.append).run()
    assert (seen[0].done, seen[0].rate, seen[0].seconds_left) == (15, 0, None)
    assert seen[-1].rate > 0
