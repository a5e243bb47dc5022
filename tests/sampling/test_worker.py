"""Runs that are cut up, killed, starved and shared end with the same bytes as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextscale.errors import InvalidArgumentError, SamplingError
from nextscale.sampling.claims import Claims
from nextscale.sampling.drawing import RunPictures, settle_group
from nextscale.sampling.plan import LOGS, WORK, RunPlan, read_manifest, write_manifest
from nextscale.sampling.reading import read_shard, verify
from nextscale.sampling.worker import Progress, Worker

MakeWorker = Callable[..., Worker]
Contents = Callable[[Path], dict[str, bytes]]
Fork = Callable[[Callable[[], None]], Any]


def events(folder: Path, name: str = "") -> list[dict[str, Any]]:
    lines = [line for path in (folder / LOGS).glob("*.jsonl") for line in path.read_text().splitlines()]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # a killed process may leave half a line
            continue
    return [event for event in found if name in ("", event["event"])]


@pytest.fixture(scope="module")
def alone(
    contents: Contents, plan: RunPlan, pictures: RunPictures, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What one process makes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    Worker(folder, write_manifest(folder, plan), pictures, 4).run()
    assert verify(folder) == plan.count
    return contents(folder)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 16, 100])
def test_the_batch_changes_no_byte(
    contents: Contents, tmp_path: Path, worker: MakeWorker, alone: dict[str, bytes], batch: int
):
    worker(tmp_path, batch).run()
    assert contents(tmp_path) == alone
    assert not (tmp_path / WORK).exists()


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_processes_changes_no_byte(
    contents: Contents, fork: Fork, tmp_path: Path, worker: MakeWorker, alone: dict[str, bytes], count: int
):
    workers = [
        worker(tmp_path, batch, rank=rank, workers=count) for rank, batch in enumerate((1, 4, 8)[:count])
    ]
    assert [p.wait() for p in [fork(w.run) for w in workers]] == [0] * count
    assert contents(tmp_path) == alone
    assert sum(e["pictures"] for e in events(tmp_path, "shard")) == 24  # none was drawn twice


def test_pictures_are_those_of_single_calls(tmp_path: Path, worker: MakeWorker, plan: RunPlan, pipe: Any):
    worker(tmp_path).run()
    shown = [
        item for i in range(plan.shards) for item in read_shard(plan, tmp_path / plan.name(i), plan.span(i))
    ]
    assert [item.index for item in shown] == list(range(24))
    assert [item.subject for item in shown][:6] == [0, 1, 2, 0, -1, 0]
    single = pipe([2], seed=5 + 7).images[0]
    assert (
        abs(torch.from_numpy(shown[7].pixels.copy()).int() - torch.tensor(np.asarray(single)).int()).max()
        <= 1
    )


def test_kills_at_random_moments(
    contents: Contents, fork: Fork, tmp_path: Path, worker: MakeWorker, plan: RunPlan
):
    """20 kills among 1 to 3 processes: whatever is visible is whole, and little is drawn twice."""
    count, chance, kills, runs = 60, random.Random(0), 0, 0
    (tmp_path / "alone").mkdir()
    worker(tmp_path / "alone", count=count).run()
    expected = contents(tmp_path / "alone")
    while kills < 20:
        folder, runs, here = tmp_path / str(runs), runs + 1, 0
        folder.mkdir()
        while len(contents(folder)) < len(expected):
            number = chance.randint(1, 3)
            workers = [worker(folder, 2, count=count, rank=i, workers=number) for i in range(number)]
            processes = [fork(w.run) for w in workers]
            time.sleep(chance.uniform(0.02, 0.3))
            for process in processes if chance.random() < 0.7 else processes[:1]:
                process.kill()
            here += sum(process.wait() == -signal.SIGKILL for process in processes)
            found = contents(folder)
            assert all(found[name] == expected[name] for name in found), "something half-written is visible"
        worker(folder, 2, count=count).run()
        assert contents(folder) == expected
        assert verify(folder) == count
        drawn = sum(e["pictures"] for e in events(folder, "drawn"))
        assert drawn <= count + here * plan.shard_size
        kills += here
    print(f"{kills} kills in {runs} runs")


def test_a_worker_that_dies_is_replaced_by_those_that_live(
    contents: Contents, fork: Fork, tmp_path: Path, worker: MakeWorker, alone: dict[str, bytes]
):
    def die() -> None:
        dying = worker(tmp_path, 2)
        dying.report = lambda progress: os.kill(os.getpid(), 9) if progress.done > 6 else None
        dying.run()

    first = fork(die)
    second = fork(worker(tmp_path, 2, rank=1, workers=2).run)
    assert (first.wait(), second.wait()) == (-9, 0)
    assert contents(tmp_path) == alone


def test_a_worker_of_another_machine_is_waited_for_and_then_replaced(
    contents: Contents, tmp_path: Path, worker: MakeWorker, alone: dict[str, bytes]
):
    ours = worker(tmp_path, patience=0.3)
    for shard, stamp in ((0, 0), (3, 10**18), (4, 4 * 10**18)):  # clocks that are decades off
        claim = tmp_path / WORK / f"{shard:06d}.0"
        claim.write_text(json.dumps({"worker": "other", "machine": "another"}))
        os.utime(claim, ns=(stamp, stamp))
    ours.run()
    assert contents(tmp_path) == alone
    assert sorted(e["shard"] for e in events(tmp_path, "taken over")) == [0, 3, 4]


def test_a_slow_worker_does_not_hold_the_rest_back(
    contents: Contents, tmp_path: Path, worker: MakeWorker, alone: dict[str, bytes]
):
    """It beats all the time, and yet its shard is there long before it is done with it."""
    ours = worker(tmp_path, patience=0.2)
    slow = Claims(tmp_path / WORK, patience=0.2)
    claim = slow.take(2)
    assert claim is not None
    with slow.beating(claim):
        ours.run()
    claim.release()
    assert contents(tmp_path) == alone


def test_stopping_keeps_what_is_whole_and_leaves_nothing_else(
    contents: Contents, tmp_path: Path, worker: MakeWorker, alone: dict[str, bytes]
):
    ours = worker(tmp_path, 2)
    seen: list[Progress] = []
    ours.report, ours.stopping = seen.append, lambda: bool(seen) and seen[-1].done >= 12
    with pytest.raises(KeyboardInterrupt):
        ours.run()
    assert len(ours.published()) == 2
    assert os.listdir(tmp_path / WORK) == []
    assert events(tmp_path, "stopped")
    worker(tmp_path, 4).run()
    assert contents(tmp_path) == alone


def test_progress_counts_what_all_have_done(tmp_path: Path, worker: MakeWorker):
    seen: list[Progress] = []
    worker(tmp_path, 2, report=seen.append).run()
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total == 24
    assert seen[-1].rate > 0 and seen[-1].seconds_left == 0


# ---------------------------------------------------------------------------- disks


@contextmanager
def small_disk(folder: Path, pages: int) -> Iterator[Callable[[str], int]]:
    """A file system of so many pages, and what makes it larger; skips where mounting one is not allowed."""
    folder.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size={pages * 4}k tmpfs {folder} 2>/dev/null") != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield lambda size: os.system(f"mount -o remount,size={size} {folder}")
    finally:
        os.system(f"umount {folder}")


@pytest.mark.parametrize("format", ["tar", "parquet", "folder", "npz"])
def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(
    contents: Contents, tmp_path: Path, worker: MakeWorker, format: str
):
    whole, disk, run = (
        tmp_path / "whole",
        tmp_path / "disk",
        {"format": format, "count": 200, "shard_size": 20},
    )
    whole.mkdir()
    worker(whole, **run).run()
    expected = contents(whole)
    with small_disk(disk, sum(-(-len(content) // 4096) for content in expected.values()) // 2 + 3) as enlarge:
        folder = disk / "run"
        folder.mkdir()
        with pytest.raises(OSError, match=r"the disk is full.*all whole.*give the same command"):
            worker(folder, **run).run()
        found = contents(folder)
        assert len(found) > 2
        assert format == "npz" or all(found[name] == expected[name] for name in found)
        assert not list((folder / WORK).glob("*.partial"))
        enlarge("8m")
        worker(folder, **run).run()
        assert contents(folder) == expected


def test_a_limit_on_files_stops_the_run_the_same_way(
    contents: Contents, fork: Fork, tmp_path: Path, worker: MakeWorker, alone: dict[str, bytes]
):
    """Without root too: the system refuses bytes beyond a limit, as it does on a full disk."""

    def limited() -> None:
        ours = worker(tmp_path, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            ours.run()
        except OSError as error:
            os._exit(7 if "has 0 of 5 shards, all whole" in str(error) else 1)

    assert fork(limited).wait() == 7
    assert list(contents(tmp_path)) == ["manifest.json"]
    assert not list((tmp_path / WORK).glob("*.partial"))
    worker(tmp_path, 2).run()
    assert contents(tmp_path) == alone


# ---------------------------------------------------------------------------- numbers and memory


def test_logits_that_are_no_numbers_stop_the_run(
    contents: Contents,
    tmp_path: Path,
    worker: MakeWorker,
    pipe: Any,
    pictures: RunPictures,
    alone: dict[str, bytes],
):
    class Poisoned:
        """The pipeline, but for NaN in what the transformer says of one picture at the second step."""

        def __init__(self) -> None:
            self.device = pipe.device

        def __call__(self, labels: Any, *, seed: Any, **more: Any) -> Any:
            def spoil(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
                if logits.shape[1] == 4 and 5 + 13 in seed:
                    logits = logits.clone()
                    logits[list(seed).index(5 + 13), 0, 0] = float("nan")
                return logits

            hook = pipe.transformer.head.register_forward_hook(spoil)
            try:
                return pipe(labels, seed=seed, **more)
            finally:
                hook.remove()

    ours = worker(tmp_path, 2, pictures=replace(pictures, pipe=Poisoned()))
    with pytest.raises(SamplingError, match=r"NaN or infinite at step 2 \(2 x 2\) of picture 13"):
        ours.run()
    assert ours.published() == {0, 1}
    assert os.listdir(tmp_path / WORK) == []
    assert "picture 13" in events(tmp_path, "failed")[0]["error"]
    worker(tmp_path, 2).run()
    assert contents(tmp_path) == alone


def test_a_batch_that_does_not_fit_is_halved(
    contents: Contents, tmp_path: Path, worker: MakeWorker, pictures: RunPictures, alone: dict[str, bytes]
):
    class Hungry:
        """The pipeline, but with more than 3 pictures it asks torch for more memory than there is."""

        def __init__(self) -> None:
            self.device = pictures.pipe.device

        def __call__(self, labels: Any, **more: Any) -> Any:
            if len(labels) > 3:
                torch.empty(2**59)
            return pictures.pipe(labels, **more)

    notes: list[str] = []
    ours = worker(tmp_path, 5, pictures=replace(pictures, pipe=Hungry()), note=notes.append)
    ours.run()
    assert notes == ["5 pictures at once do not fit into the memory of cpu; drawing 2 at once"]
    assert contents(tmp_path) == alone


def test_memory_that_shrinks_halves_the_batch_in_the_middle_of_a_shard(
    contents: Contents, tmp_path: Path, worker: MakeWorker, plan: RunPlan, apart: RunPictures
):
    drawn: list[int] = []

    class Shrinking:
        def __init__(self) -> None:
            self.device = apart.pipe.device

        def __call__(self, labels: Any, *, seed: Any, **more: Any) -> Any:
            drawn.append(len(labels))
            if 5 + 11 in seed and len(labels) > 2:
                torch.empty(2**59)
            return apart.pipe(labels, seed=seed, **more)

    notes: list[str] = []
    arithmetic = settle_group(plan, apart, 2, notes.append).arithmetic
    for name, pictures in (("whole", apart), ("shrunk", replace(apart, pipe=Shrinking()))):
        folder = tmp_path / name
        worker(folder, 4, pictures=pictures, arithmetic=arithmetic, note=notes.append).run()
    assert notes == ["4 pictures at once do not fit into the memory of cpu; drawing 2 at once"]
    assert contents(tmp_path / "shrunk") == contents(tmp_path / "whole")
    assert {4, 2} <= set(drawn)


def test_another_arithmetic_is_refused(contents: Contents, tmp_path: Path, worker: MakeWorker, plan: RunPlan):
    with pytest.raises(InvalidArgumentError, match="computes other last bits"):
        worker(tmp_path, arithmetic=("0" * 64, "1" * 64)).run()
    stored = read_manifest(tmp_path)
    assert stored is not None and stored.arithmetic == ("0" * 64, "1" * 64)
    assert list(contents(tmp_path)) == ["manifest.json"]


def test_a_signal_after_the_last_batch_of_a_shard_does_not_cost_the_shard(tmp_path: Path, worker: MakeWorker):
    ours = worker(tmp_path, 4)
    seen: list[Progress] = []
    ours.report, ours.stopping = seen.append, lambda: bool(seen) and seen[-1].done == 5
    with pytest.raises(KeyboardInterrupt):
        ours.run()
    assert ours.published() == {0}


def test_whoever_is_late_finds_the_run_complete(
    contents: Contents, tmp_path: Path, worker: MakeWorker, alone: dict[str, bytes]
):
    """Its shard is published and everything it wrote is gone before it is done: no harm."""
    for format in ("tar", "folder"):
        folder = tmp_path / format
        folder.mkdir()
        late, quick = (worker(folder, 2, format=format, patience=0.0) for _ in range(2))

        def overtake(progress: Progress, late: Worker = late, quick: Worker = quick) -> None:
            if progress.done > 0:  # its first batch is drawn, and its shard is not whole
                late.report = lambda progress: None
                quick.run()

        late.report = overtake
        late.run()
        assert len(late.published()) == 5
        assert format == "folder" or contents(folder) == alone
        assert not (folder / WORK).exists()
