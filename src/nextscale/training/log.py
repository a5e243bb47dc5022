"""The log of a training run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nextscale.errors import warn

LOG = "log.jsonl"


class Log:
    """A JSONL file; lines past the step that is resumed from are dropped, so none appears twice.

    step: the one resumed from. writes: whether there is a file; of several processes one alone has it.

    A record that cannot be written, because the disk is full say, waits for the next one; a training does not
    end for its log.
    """

    def __init__(self, path: Path, step: int, writes: bool = True) -> None:
        self.file: IO[bytes] | None = None
        self.path, self.waiting, self.complained = path, b"", False
        self.measured: set[int] = set()  # steps with figures on held-out data
        if not writes:
            return
        kept = [record for record in records(path) if record["step"] <= step] if step else []
        self.measured = {record["step"] for record in kept if "eval" in record}
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(b"".join(map(_line, kept)))
        os.replace(partial, path)
        self.file = path.open("ab", buffering=0)  # what could not be written stays with us

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add a record, which is returned. Numbers that are none are written as null."""
        if self.file is not None:
            self.waiting += _line(record)
            self._empty()
        return record

    def _empty(self) -> None:
        try:
            while self.waiting and self.file is not None:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
        except OSError as error:
            if not self.complained:
                warn(f"cannot write {str(self.path)!r}: {error.strerror}; the training goes on")
            self.complained = True

    def close(self) -> None:
        """Close the file, if there is one."""
        if self.file is not None:
            self._empty()
            self.file.close()


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(_plain(record), allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log. A killed run may have left a part of the last line; others are never damaged by
    us, and where one is, it is left out with a warning."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    damaged = 0
    for line in lines[:-1]:
        try:
            record = json.loads(line)
            fits = isinstance(record, dict) and type(record.get("step")) is int
        except (ValueError, RecursionError):
            fits = False
        if fits:
            yield record
        else:
            damaged += 1
    if damaged:
        warn(f"{damaged} of {len(lines) - 1} lines of {str(path)!r} are damaged and left out")
