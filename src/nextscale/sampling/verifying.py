"""Looking through all files of a run: what is whole, what is missing, what was damaged later."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.errors import DataError
from nextscale.sampling.digests import logged_digests, path_digest
from nextscale.sampling.plan import JOINED, RunPlan, read_manifest
from nextscale.sampling.reading import checked_items
from nextscale.weights.digest import text_digest

Advance = Callable[[int], None]


@dataclass(frozen=True)
class FileState:
    """A file or folder of a run. problem: why it is not whole, in words; empty if it is."""

    path: Path
    pictures: int
    problem: str = ""
    is_missing: bool = False


def run_of(folder: Path) -> RunPlan:
    """The run in a folder. Raises DataError if there is none, InvalidArgumentError for a damaged manifest."""
    plan = read_manifest(folder) if folder.is_dir() else None
    if plan is None:
        raise DataError(f"{str(folder)!r} holds no run; name the folder of --out")
    return plan


def check_files(folder: Path, plan: RunPlan, advance: Advance = lambda pictures: None) -> Iterator[FileState]:
    """Read every picture of a run, file by file; ``advance`` hears how many were read.

    Every picture must be there once, in its place, whole, of the run's size, with its seed and what it shows;
    and every file must have the digest in the run's logs, as long as those are there.
    """
    shown, digests = _Shown(plan), logged_digests(folder, plan)
    for path, wanted in _files(folder, plan):
        if not path.exists():
            yield FileState(path, len(wanted), "missing", is_missing=True)
            advance(len(wanted))
            continue
        read, subjects = 0, []
        try:
            for item in checked_items(plan, path, wanted):
                subjects.append((item.index, item.subject))
                read += 1
                advance(1)
            # First, so that what a changed file says is not held against the others.
            if path.name in digests and path_digest(path) not in digests[path.name]:
                raise DataError(f"{str(path)!r} was changed: it is not what the run has written")
            shown.add(path, subjects)
        except DataError as error:
            yield FileState(path, len(wanted), str(error))
            advance(len(wanted) - read)
        else:
            yield FileState(path, len(wanted))


def _files(folder: Path, plan: RunPlan) -> Iterator[tuple[Path, range]]:
    """The files of a run and the pictures that each holds; of an npz, its parts while it is not joined."""
    parts = [folder / plan.name(shard) for shard in range(plan.shards)]
    if plan.format == "npz" and not any(part.exists() for part in parts):
        yield folder / JOINED, range(plan.count)
        return
    for shard, part in enumerate(parts):
        yield part, plan.span(shard)


class _Shown:
    """Compare what the pictures show with what the run was begun with, of which there is a digest."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.cycle: dict[int, Any] = {}
        self.is_checked = False  # the whole cycle, by its digest
        # An npz holds no prompts.
        self.is_known = not (plan.format == "npz" and plan.key == "prompts") and bool(plan.subjects_digest)

    def add(self, path: Path, subjects: Sequence[tuple[int, Any]]) -> None:
        """Take what a file's pictures show. Raises DataError if that is not what the run asks for."""
        if not self.is_known:
            return
        found: dict[int, Any] = {}
        for index, subject in subjects:
            place = index % self.plan.subjects
            if found.setdefault(place, self.cycle.get(place, subject)) != subject:
                raise DataError(f"{str(path)!r}: picture {index} shows something else than the run")
        self.cycle.update(found)
        if len(self.cycle) == self.plan.subjects and not self.is_checked:
            self.is_checked = True
            listed = [self.cycle[i] for i in range(self.plan.subjects)]
            if text_digest(json.dumps(listed)) != self.plan.subjects_digest:
                raise DataError(f"{str(path)!r}, or a file before it, shows something else than the run")
