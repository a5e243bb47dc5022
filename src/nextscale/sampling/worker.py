"""A process of a sampling run: takes shards that are free, draws them, names each when it is whole.

Nothing is agreed upon between processes but through the folder, so any number of them may come and go.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nextscale.errors import NextscaleError
from nextscale.sampling.claims import PATIENCE, Claim, Claims, worker_name
from nextscale.sampling.digests import path_digest
from nextscale.sampling.drawing import RunPictures, halved, settle_batch, settle_group, to_uint8
from nextscale.sampling.npz import join
from nextscale.sampling.plan import (
    JOINED,
    LOGS,
    WORK,
    RunPlan,
    check_same,
    read_manifest,
    write_manifest,
)
from nextscale.sampling.writers import Item, ShardWriter, open_shard, sync_folder
from nextscale.usual import with_usual_defaults

POLL = 0.5  # seconds between looks at what others do, when nothing is free
COUNT = 1.0  # seconds for which what others have done is not looked up again
JOIN = 999_999_999  # the claim of the last step, which makes one npz of all shards
SLOWER = 3  # times as long as our slowest shard: then a shard that another works on is drawn here as well


@dataclass(frozen=True)
class Progress:
    """How far a run is. done: pictures in whole shards of all processes, and in ours that is being drawn.

    rate: pictures per second of all processes since this one began; 0 before it is known.
    """

    done: int
    total: int
    rate: float

    @property
    def seconds_left(self) -> float | None:
        """At this rate; ``None`` before it is known."""
        return (self.total - self.done) / self.rate if self.rate else None


Report = Callable[[Progress], None]


@with_usual_defaults
def begin(
    folder: Path, plan: RunPlan, pictures: RunPictures, batch: int, note: Callable[[str], None]
) -> RunPlan:
    """Begin a run in a folder, or find that it has begun.

    Returns the plan with its arithmetic, as all processes have it.
    Raises InvalidArgumentError, naming what differs, if the folder holds another run.
    """
    stored = read_manifest(folder)
    if stored is None:
        return write_manifest(folder, settle_group(plan, pictures, batch, note))
    check_same(folder, stored, plan)
    return stored


@dataclass
class Worker:
    """One process at work on a run.

    folder, plan: the run. pictures: what draws it. batch: pictures drawn at once, if they fit.
    rank, workers: which process of how many; decides where it starts to look, and nothing else.
    report: hears of progress. note: hears of what is done otherwise than asked for.
    stopping: asked between batches; once it says so, the run ends with KeyboardInterrupt.
    patience: see :data:`~nextscale.sampling.claims.PATIENCE`. poll: see :data:`POLL`.
    """

    folder: Path
    plan: RunPlan
    pictures: RunPictures
    batch: int
    rank: int = 0
    workers: int = 1
    report: Report = lambda progress: None
    note: Callable[[str], None] = lambda text: None
    stopping: Callable[[], bool] = lambda: False
    patience: float = PATIENCE
    poll: float = POLL
    shape: int = 0
    _slowest: float = 0.0
    _counted: tuple[float, int] = (0.0, 0)  # when pictures were last counted, and how many there were

    @with_usual_defaults
    def run(self) -> None:
        """Work until every shard is there.

        Raises SamplingError at logits that are no numbers, OSError where the disk is full, KeyboardInterrupt
        when asked to stop. Whatever happens, whole shards stay and nothing else is visible.
        """
        self.name = worker_name()
        self.claims = Claims(self.folder / WORK, self.name, self.patience)
        self._began, self._first = time.monotonic(), self.done_pictures()
        if self._first == self.plan.count and self.is_complete():
            self._tidy()
            return
        with self._logged():
            self.shape = settle_batch(self.plan, self.pictures, self.batch, self._say)
            self._log("begin", batch=self.shape, device=str(self.pictures.pipe.device), pid=os.getpid())
            self._report(0)
            while self._missing():
                if not self._work_on_one():
                    time.sleep(self.poll)
                self._report(0)
                self._check_stopping()
            if self.plan.format == "npz":
                self._join()
            self._log("end")
        self._tidy()

    # ------------------------------------------------------------------ what is there

    def published(self) -> set[int]:
        """The shards that are whole."""
        names = set(os.listdir(self.folder))
        # Asked after the listing: shards go only when they are joined.
        if (self.folder / JOINED).exists():
            return set(range(self.plan.shards))
        return {i for i in range(self.plan.shards) if self.plan.name(i) in names}

    def done_pictures(self) -> int:
        """Pictures in whole shards."""
        return sum(len(self.plan.span(i)) for i in self.published())

    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        joined = self.plan.format != "npz" or (self.folder / JOINED).exists()
        return joined and len(self.published()) == self.plan.shards

    def _missing(self) -> list[int]:
        """Shards to be made, in the order in which this process looks at them."""
        there, total = self.published(), self.plan.shards
        start = self.rank * total // max(self.workers, 1)
        return [i % total for i in range(start, start + total) if i % total not in there]

    # ------------------------------------------------------------------ one shard

    def _work_on_one(self) -> bool:
        """Draw the first shard that is free; False if others work on all that are left."""
        # Somebody who is that late is not waited for: the run should not hang on its slowest process.
        self.claims.slow = max(self.patience, SLOWER * self._slowest) if self._slowest else None
        for shard in self._missing():
            claim = self.claims.take(shard)
            if claim is None:
                continue
            try:
                if not self._is_published(shard):
                    self._make(shard, claim)
                    return True
            finally:
                claim.release()
            self.claims.clear(shard)
        return False

    def _is_published(self, shard: int) -> bool:
        return (self.folder / self.plan.name(shard)).exists() or (self.folder / JOINED).exists()

    def _make(self, shard: int, claim: Claim) -> None:
        if claim.generation:
            self._log("taken over", shard=shard, generation=claim.generation)
        partial = self.folder / WORK / f"{shard:06d}-{self.name}.partial"
        start = time.monotonic()
        try:
            with self.claims.beating(claim):
                if self._write(shard, partial):
                    digest = path_digest(partial)
                    if self._publish(partial, self.plan.name(shard)):
                        self._log_shard(shard, time.monotonic() - start, digest)
            self.claims.clear(shard)
        except FileNotFoundError:  # the run is complete, and somebody tidied up around us
            if not self._is_published(shard):
                raise
        finally:
            _remove(partial)

    def _log_shard(self, shard: int, seconds: float, digest: str) -> None:
        self._slowest = max(self._slowest, seconds)
        span, memory = self.plan.span(shard), resident_bytes()
        facts = {"first": span.start, "pictures": len(span), "seconds": seconds, "memory": memory}
        self._log("shard", shard=shard, **facts, sha256=digest)

    def _write(self, shard: int, partial: Path) -> bool:
        """Draw a shard into a file that has not its name; False if another process published it meanwhile."""
        span = self.plan.span(shard)
        writer = open_shard(self.plan, shard, partial)
        try:
            for first, images in self._batches(span):
                for i, pixels in enumerate(images, first):
                    subject = self.pictures.subject(i)
                    writer.add(Item(i, self.plan.seed + i, subject, pixels))
                done = first + len(images) - span.start
                self._report(done)
                if done < len(span):
                    self._check_stopping()
                if self._is_published(shard):
                    writer.abandon()
                    return False
            writer.finish()
        except BaseException:
            _abandon(writer)
            raise
        return True

    def _batches(self, span: range) -> Iterator[tuple[int, Any]]:
        """Pictures of a shard in order: the index of the first, and uint8 ``(n, H, W, 3)``."""
        first = span.start
        while first < span.stop:
            # A few pictures at the end of a shard cost less as groups than as a batch filled up with copies.
            shape = self.shape if span.stop - first > self.shape // 2 else self.plan.group
            wanted = range(first, min(first + shape, span.stop))
            start = time.monotonic()
            try:
                images = to_uint8(self.pictures.draw(wanted, shape))
            except (RuntimeError, MemoryError) as error:
                smaller = halved(error, shape, self.pictures.pipe.device, self._say)
                self.shape = settle_batch(self.plan, self.pictures, smaller, self._say)
                continue
            self._log("drawn", first=first, pictures=len(wanted), seconds=time.monotonic() - start)
            yield first, images
            first = wanted.stop

    def _publish(self, partial: Path, name: str) -> bool:
        """Give a whole shard its name; False if another process was quicker."""
        target = self.folder / name
        try:
            os.replace(partial, target)
        except FileNotFoundError:  # the run is complete, and somebody tidied up
            return False
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and target.is_dir():
                return False
            raise
        sync_folder(self.folder)
        return True

    # ------------------------------------------------------------------ the end

    def _join(self) -> None:
        """One npz of all shards, made by the first process that gets to it; then the shards go."""
        while not (self.folder / JOINED).exists():
            claim = self.claims.take(JOIN)
            if claim is None:
                self._check_stopping()
                time.sleep(self.poll)
                continue
            partial = self.folder / WORK / f"joined-{self.name}.partial"
            try:
                with self.claims.beating(claim):
                    parts = [self.folder / self.plan.name(i) for i in range(self.plan.shards)]
                    classes = self.plan.key == "labels"
                    join(parts, partial, self.plan.count, self.plan.size, classes)
                    digest = path_digest(partial)
                    self._publish(partial, JOINED)
                    self._log("joined", pictures=self.plan.count, sha256=digest)
            except FileNotFoundError:
                if not (self.folder / JOINED).exists():
                    raise
            finally:
                _remove(partial)
                claim.release()

    def _tidy(self) -> None:
        """Remove what was needed while the run went on."""
        if (self.folder / JOINED).exists():
            for shard in range(self.plan.shards):
                _remove(self.folder / self.plan.name(shard))
        shutil.rmtree(self.folder / WORK, ignore_errors=True)

    def _check_stopping(self) -> None:
        if self.stopping():
            self._log("stopped")
            raise KeyboardInterrupt

    # ------------------------------------------------------------------ telling

    def _report(self, ours: int) -> None:
        now = time.monotonic()
        if ours == 0 or now - self._counted[0] > COUNT:
            self._counted = now, self.done_pictures()
        done, seconds = self._counted[1] + ours, now - self._began
        rate = (done - self._first) / seconds if seconds > 0 else 0.0
        self.report(Progress(min(done, self.plan.count), self.plan.count, rate))

    def _say(self, text: str) -> None:
        self._log("note", text=text)
        self.note(text)

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        folder = self.folder / LOGS
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise self._explained(error) from None
        with (folder / f"{self.name}.jsonl").open("a", encoding="utf-8") as self._file:
            try:
                yield
            except NextscaleError as error:
                self._log("failed", error=str(error))
                raise
            except OSError as error:
                explained = self._explained(error)
                self._log("failed", error=str(explained))
                raise explained from None

    def _log(self, event: str, **facts: Any) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, "worker": self.name, "rank": self.rank, **facts})
        with contextlib.suppress(OSError):  # a full disk stops the run where shards are written, not here
            self._file.write(line + "\n")
            self._file.flush()

    def _explained(self, error: OSError) -> OSError:
        """What a full disk means for a run; other errors as they are."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        what = "a file became larger than allowed" if error.errno == errno.EFBIG else "the disk is full"
        return OSError(
            f"{what}: {str(self.folder)!r} has {len(self.published())} of {self.plan.shards} shards, all "
            f"whole, and no part of another; make room and give the same command to go on"
        )


def resident_bytes() -> int | None:
    """Memory that this process holds now; ``None`` where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _abandon(writer: ShardWriter) -> None:
    with contextlib.suppress(OSError, ValueError):
        writer.abandon()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
