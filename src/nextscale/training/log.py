"""The log of a training run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LOG = "log.jsonl"


class Log:
    """A JSONL file; lines past the step that is resumed from are dropped, so none appears twice.

    step: the one resumed from. writes: whether there is a file; of several processes one alone has it.
    """

    def __init__(self, path: Path, step: int, writes: bool = True) -> None:
        self.file: IO[str] | None = None
        if not writes:
            return
        kept = [line for line in lines(path) if json.loads(line)["step"] <= step] if step else []
        path.write_text("".join(kept))
        self.file = path.open("a")

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add a record, which is returned."""
        if self.file is not None:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        return record

    def close(self) -> None:
        """Close the file, if there is one."""
        if self.file is not None:
            self.file.close()


def lines(path: Path) -> Iterator[str]:
    """The whole lines of a log; a killed run may have left a part of one."""
    if path.exists():
        with path.open() as file:
            yield from (line for line in file if line.endswith("}\n"))
