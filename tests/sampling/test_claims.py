"""One owner at a time, however many ask; gone owners are found without comparing clocks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextscale.sampling.claims import Claims, worker_name

Fork = Callable[[Callable[[], None]], Any]


def foreign(folder: Path, number: int, stamp: int = 5) -> Path:
    """A claim of a process on another machine."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{number:06d}.0"
    path.write_text(json.dumps({"worker": "elsewhere", "machine": "another kernel"}))
    os.utime(path, ns=(stamp, stamp))
    return path


def test_a_piece_has_one_owner(tmp_path: Path):
    one, two = Claims(tmp_path / "claims"), Claims(tmp_path / "claims")
    claim = one.take(3)
    assert claim is not None
    assert two.take(3) is None and one.take(3) is None
    assert two.take(4) is not None
    claim.release()
    again = two.take(3)
    assert again is not None
    two.clear(3)
    assert not list((tmp_path / "claims").glob("000003.*"))


def test_many_processes_get_each_piece_once(tmp_path: Path, fork: Fork):
    """Twenty pieces, four processes that all ask for all of them at once."""

    def grab() -> None:
        claims, mine = Claims(tmp_path / "claims"), []
        for number in range(20):
            claim = claims.take(number)
            if claim is not None:
                mine.append(claim)
        (tmp_path / claims.worker).write_text(" ".join(str(c.number) for c in mine))
        while len(list(tmp_path.glob(f"{claims.worker.split('-')[0]}*"))) < 4:
            time.sleep(0.01)  # owners that end free what they have

    processes = [fork(grab) for _ in range(4)]
    assert [p.wait() for p in processes] == [0] * 4
    taken = [int(n) for path in tmp_path.iterdir() if path.is_file() for n in path.read_text().split()]
    assert sorted(taken) == list(range(20))


def test_an_owner_on_this_machine_that_died_is_replaced_at_once(tmp_path: Path, fork: Fork):
    def die() -> None:
        claims = Claims(tmp_path)
        held = claims.take(1)  # noqa: F841 - held until the end
        os.kill(os.getpid(), 9)

    assert fork(die).wait() == -9
    claim = Claims(tmp_path, patience=1000).take(1)
    assert claim is not None and claim.generation == 1


def test_an_owner_elsewhere_is_given_time_by_our_clock_alone(tmp_path: Path):
    for number, stamp in enumerate((0, time.time_ns(), 2 * time.time_ns())):
        foreign(tmp_path, number, stamp)
        claims = Claims(tmp_path, patience=0.05)
        assert claims.take(number) is None, "the age of a time stamp says nothing"
        time.sleep(0.08)
        claim = claims.take(number)
        assert claim is not None and claim.generation == 1


def test_an_owner_elsewhere_that_beats_keeps_its_claim(tmp_path: Path):
    path, claims = foreign(tmp_path, 0), Claims(tmp_path, patience=0.2)
    for beat in range(8):
        assert claims.take(0) is None
        os.utime(path, ns=(1000 - beat, 1000 - beat))  # also backwards: a change is a beat
        time.sleep(0.05)
    claims.slow = 0.3
    assert claims.take(0) is not None, "beating, and yet much too slow"


def test_beats_change_the_time_stamp(tmp_path: Path):
    claims = Claims(tmp_path)
    claim = claims.take(0)
    assert claim is not None
    seen = set()
    with claims.beating(claim, every=0.01):
        for _ in range(10):
            seen.add(claim.path.stat().st_mtime_ns)
            time.sleep(0.02)
    assert len(seen) > 3
    claim.path.unlink()
    with claims.beating(claim, every=0.01):  # somebody tidied up: no harm
        time.sleep(0.03)
    claim.release()


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path: Path):
    for name in ("notes.txt", "000001.x", "-1.0", "000001.0.bak"):
        (tmp_path / name).write_text("")
    assert Claims(tmp_path).take(1) is not None
    (tmp_path / "000002.0").write_bytes(b"\xff not JSON")
    assert Claims(tmp_path, patience=1000).take(2) is None


def test_names_are_unlike_each_other_and_safe():
    assert worker_name() != worker_name()
    assert set(worker_name()) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
