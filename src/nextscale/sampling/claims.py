"""Who works on which piece: claims as files in a folder that all processes share.

A claim is a file ``NUMBER.GENERATION``, made with ``O_EXCL``, so that one process alone can make it. Its
owner
beats: it changes the file's time stamp. Who finds a claim whose owner is gone makes the next generation,
which again one process alone can do. Two processes may still work on the same piece, when one was slow and
not gone; that costs time and nothing else, because pieces are the same whoever makes them and appear at once
when whole.

No clock is compared with another. A beat sets the time stamp to a count, and another process only looks
whether it changes while its own clock runs on.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has none; beats alone tell there
    fcntl = None  # type: ignore[assignment]

PATIENCE = 120.0
"""Seconds without a beat after which the owner of a claim on another machine counts as gone. Network file
systems show a changed time stamp up to a minute late."""

_NAME = re.compile(r"(\d+)\.(\d+)")


def worker_name() -> str:
    """A name that no other process has, for claims, logs and unfinished files; safe in a file name."""
    host = re.sub(r"[^A-Za-z0-9-]+", "-", platform.node()) or "host"
    return f"{host[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def machine() -> str:
    """Equal for processes under one kernel, also in different containers; another one elsewhere."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # no Linux, so no containers of it either: a name is enough
        return f"{platform.system()} {platform.node()}"


@dataclass
class Claim:
    """A piece that is ours, until :meth:`release`."""

    path: Path
    number: int
    generation: int
    file: IO[bytes]

    def release(self) -> None:
        """Give it up, done or not."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.file.close()


@dataclass
class _Seen:
    """What was seen of another's claim: its beat, since when, and since when the claim at all."""

    beat: int
    changed: float
    first: float


@dataclass
class Claims:
    """The claims of a folder, as one process sees and makes them.

    folder: is made if it is missing. patience: see :data:`PATIENCE`. slow: seconds after which a claim is
    taken over though its owner beats, because it is much slower than others; ``None`` is never.
    """

    folder: Path
    worker: str = field(default_factory=worker_name)
    patience: float = PATIENCE
    slow: float | None = None
    _seen: dict[tuple[int, int], _Seen] = field(default_factory=dict)

    def take(self, number: int) -> Claim | None:
        """Claim a piece that nobody has, or whose owner is gone or slow; ``None`` if it is taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        generations = [g for n, g in self._existing() if n == number]
        latest = max(generations, default=-1)
        if latest >= 0 and not self._is_gone(number, latest):
            return None
        return self._make(number, latest + 1)

    @contextlib.contextmanager
    def hold(self, number: int) -> Iterator[bool]:
        """Whether a piece is ours; then it is, beating, until the block ends, and its claims go with it."""
        claim = self.take(number)
        if claim is None:
            yield False
            return
        try:
            with self.beating(claim):
                yield True
        finally:
            claim.release()
            self.clear(number)

    def clear(self, number: int) -> None:
        """Remove every claim on a piece that is done."""
        for n, generation in self._existing():
            if n == number:
                with contextlib.suppress(OSError):
                    self._path(n, generation).unlink()

    @contextlib.contextmanager
    def beating(self, claim: Claim, every: float | None = None) -> Iterator[None]:
        """Beat in the background, so that long steps of the work do not look like the end of it."""
        ended, interval = threading.Event(), self.patience / 10 if every is None else every

        def beat() -> None:
            count = 1
            while not ended.wait(interval):
                count += 1
                # A time stamp takes no space on a full disk. The claim may be gone, if the piece is finished.
                with contextlib.suppress(OSError):
                    os.utime(claim.path, ns=(count * 10**9, count * 10**9))

        thread = threading.Thread(target=beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _existing(self) -> list[tuple[int, int]]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return [(int(m[1]), int(m[2])) for name in names if (m := _NAME.fullmatch(name))]

    def _path(self, number: int, generation: int) -> Path:
        return self.folder / f"{number:06d}.{generation}"

    def _make(self, number: int, generation: int) -> Claim | None:
        path = self._path(number, generation)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileExistsError:
            return None
        file = os.fdopen(descriptor, "r+b", buffering=0)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: beats alone tell
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # on a full disk it stays empty, and beats alone tell
            file.write(json.dumps({"worker": self.worker, "machine": machine()}).encode())
        return Claim(path, number, generation, file)

    def _is_gone(self, number: int, generation: int) -> bool:
        path = self._path(number, generation)
        try:
            beat = path.stat().st_mtime_ns
        except FileNotFoundError:  # released just now
            return True
        if _lock_is_free(path):
            return True
        now, key = time.monotonic(), (number, generation)
        seen = self._seen.setdefault(key, _Seen(beat, now, now))
        if beat != seen.beat:
            seen.beat, seen.changed = beat, now
        late = self.slow is not None and now - seen.first > self.slow
        return late or now - seen.changed > self.patience


def _lock_is_free(path: Path) -> bool:
    """Whether the owner is a process of this machine that has ended: the kernel frees its lock at once.

    Locks of other machines are not relied on, as some network file systems keep them to themselves.
    """
    if fcntl is None:
        return False
    try:
        with path.open("rb") as file:
            owner: Any = json.loads(file.read(4096) or b"null")
            if not isinstance(owner, dict) or owner.get("machine") != machine():
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except (OSError, ValueError):
        return False
