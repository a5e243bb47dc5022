"""Features on disk, in files of a fixed number of pictures, so that a long run can be stopped at any time.

A file appears when it is whole, and several processes may fill one folder. Pictures are made in the same
batches whether or not a run was interrupted, so an interrupted one ends with the same files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nextscale.errors import DataError, warn
from nextscale.evaluation.features import FeatureSpace
from nextscale.evaluation.images import Advance, Images, unheard
from nextscale.generation.request import as_batch_size
from nextscale.sampling.claims import Claims
from nextscale.sampling.drawing import halved
from nextscale.usual import with_usual_defaults
from nextscale.weights.saving import save_tensors

SHARD = 200  # pictures per file
PIXELS = "images"
CLAIMS = ".claims"  # a folder among the files, in which processes say what they work on
POLL = 0.5  # seconds between looks at what others do


class Shards:
    """The features of ``count`` pictures in a folder; see :meth:`fill`.

    The same folder serves any count: more pictures add files, fewer use the first ones.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        """How many pictures are done, of those wanted."""
        return sum(self._done(i) for i in range(self._files))

    @property
    def left(self) -> int:
        """How many pictures :meth:`fill` will ask for: all those of files that are not whole."""
        return sum(self._wanted(i) for i in range(self._files) if self._done(i) != self._wanted(i))

    @with_usual_defaults
    def fill(
        self,
        images: Images,
        space: FeatureSpace,
        *,
        batch_size: int = SHARD,
        keep_images: bool = False,
        advance: Advance = unheard,
    ) -> None:
        """Compute what is missing, together with whoever does the same in this folder, and wait for the rest.

        ``advance`` hears of every batch how many pictures it was, and of the files that others made.
        batch_size: pictures asked for at once. keep_images: store the pixels as well.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        claims, told = Claims(self.folder / CLAIMS), set[int]()
        missing = [i for i in range(self._files) if self._is_missing(i, keep_images)]
        while missing:
            worked = False
            for index in missing:
                with claims.hold(index) as ours:
                    if ours and self._is_missing(index, keep_images):
                        self._compute(index, images, space, batch_size, keep_images, advance)
                        told.add(index)
                        worked = True
            there = [i for i in missing if not self._is_missing(i, keep_images)]
            for index in there:
                if index not in told:
                    advance(self._wanted(index))
            missing = [i for i in missing if i not in there]
            if missing and not worked:
                time.sleep(POLL)
        with contextlib.suppress(OSError):  # others may still be at work, on more pictures
            claims.folder.rmdir()

    def _is_missing(self, index: int, keep_images: bool) -> bool:
        if self._done(index) != self._wanted(index):
            return True
        return keep_images and not self._has(index, PIXELS)

    def _compute(
        self,
        index: int,
        images: Images,
        space: FeatureSpace,
        batch_size: int,
        keep_images: bool,
        advance: Advance,
    ) -> None:
        parts: list[dict[str, Tensor]] = []
        seconds = {"images": 0.0, "features": 0.0}
        first, wanted, size = index * SHARD, self._wanted(index), as_batch_size(batch_size)
        done = 0
        while done < wanted:
            stop = min(done + size, wanted)
            start = time.perf_counter()
            try:
                pixels = images.read(first + done, first + stop)
                drawn = time.perf_counter()
                rows = space(pixels)
            except (RuntimeError, MemoryError) as error:
                size = halved(error, stop - done, None, warn)
                continue
            parts.append({**rows, **({PIXELS: pixels} if keep_images else {})})
            seconds["images"] += drawn - start
            seconds["features"] += time.perf_counter() - drawn
            done = stop
            advance(len(pixels))
        tensors = {key: torch.cat([p[key] for p in parts]).contiguous() for key in parts[0]}
        save_tensors(tensors, self._path(index), {k: repr(v) for k, v in seconds.items()})

    def has(self, key: str) -> bool:
        """Whether every file holds this tensor."""
        return all(self._has(i, key) for i in range(self._files))

    def parts(self, key: str, least: int = 4096) -> Iterator[Tensor]:
        """One tensor's rows in order, at least ``least`` at a time but for the last."""
        waiting: list[Tensor] = []
        for index in range(self._files):
            waiting.append(self.rows(key, index * SHARD, index * SHARD + self._wanted(index)))
            if sum(map(len, waiting)) >= least or index == self._files - 1:
                yield torch.cat(waiting)
                waiting = []

    def tensor(self, key: str) -> Tensor:
        """All rows of one tensor."""
        return torch.cat(list(self.parts(key)))

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        """Some rows of one tensor. Raises DataError if a file is missing or damaged."""
        found = []
        for index in range(start // SHARD, -(-stop // SHARD)):
            first = index * SHARD
            try:
                with safe_open(self._path(index), framework="pt") as file:
                    kept = file.get_slice(key)
                    found.append(kept[max(start - first, 0) : min(stop - first, SHARD)])
            except (SafetensorError, OSError) as error:
                raise DataError(
                    f"{str(self._path(index))!r} cannot be read ({error}); delete it and run again"
                ) from None
        return torch.cat(found)

    def seconds(self) -> dict[str, float]:
        """What the pictures and their features took, over all runs that contributed."""
        total = {"images": 0.0, "features": 0.0}
        for index in range(self._files):
            with safe_open(self._path(index), framework="pt") as file:
                metadata = file.metadata()
                share = self._wanted(index) / file.get_slice("features").get_shape()[0]
            for key in total:
                total[key] += share * float(metadata[key])
        return total

    @property
    def _files(self) -> int:
        return -(-self.count // SHARD)

    def _wanted(self, index: int) -> int:
        return min(SHARD, self.count - index * SHARD)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index * SHARD:08d}-{SHARD}.safetensors"

    def _done(self, index: int) -> int:
        try:
            with safe_open(self._path(index), framework="pt") as file:
                return min(file.get_slice("features").get_shape()[0], self._wanted(index))
        except (SafetensorError, OSError):  # not there, or not readable: it is made again
            return 0

    def _has(self, index: int, key: str) -> bool:
        with safe_open(self._path(index), framework="pt") as file:
            return key in file.keys()  # noqa: SIM118 - not a dict


class ShardImages:
    """The pictures that were kept in shards."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.size: tuple[int, int] = tuple(shards.rows(PIXELS, 0, 1).shape[2:])  # type: ignore[assignment]

    def __len__(self) -> int:
        return self.shards.count

    def read(self, start: int, stop: int) -> Tensor:
        return self.shards.rows(PIXELS, start, stop)
