"""Pictures in tar archives, as WebDataset and ``nextscale generate --format tar`` write them.

``000017.png`` and what else begins with ``000017.`` belong together: ``.cls`` holds the class, or ``.json``
with a ``label`` does. Pictures are read where they lie in the archive.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nextscale.data.classes import Wanted, with_labels
from nextscale.data.folders import EXPECTED, Passed, is_junk
from nextscale.data.pictures import Pictures
from nextscale.errors import DataError, warn
from nextscale.pixels import suffixes

MOST_TEXT = 1 << 20  # bytes of a label


@dataclass(frozen=True)
class _Member:
    """A picture in an archive."""

    archive: Path
    name: str
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"

    def read(self) -> bytes:
        try:
            with self.archive.open("rb") as file:
                file.seek(self.start)
                content = file.read(self.length)
        except OSError as error:
            raise DataError(f"cannot read {self}: {error.strerror}") from None
        if len(content) != self.length:
            raise DataError(f"{self} is cut off")
        return content


def open_archives(files: Sequence[Path], *, labels: Wanted) -> Pictures:
    """Open tar archives as one set of pictures, in their order.

    Raises DataError for what is no tar, is compressed or cut off, or holds no pictures.
    """
    members: list[_Member] = []
    values: list[Any] = []
    passed = Passed()
    for file in files:
        mine, said = _index(file, labels != "none", passed)
        members += mine
        values += said
    where = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    if not members:
        raise DataError(f"found no pictures in {where}{f'; {passed}' if str(passed) else ''}; {EXPECTED}")
    if str(passed):
        warn(f"{where}: {passed}")
    found = Pictures.unlabelled(lambda row: members[row].read(), lambda row: str(members[row]), len(members))
    return with_labels(found, values, where, labels)


def _index(path: Path, labels: bool, passed: Passed) -> tuple[list[_Member], list[Any]]:
    """The pictures of an archive, and what it says of their classes."""
    pictures: dict[str, _Member] = {}
    said: dict[str, Any] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                if not member.isfile() or any(is_junk(part) for part in place.parts if part != "."):
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{str(path)!r} is cut off within {member.name}")
                stem, _, kind = place.name.partition(".")
                key = str(place.with_name(stem))
                if place.suffix.lower() in suffixes():
                    if key in pictures:
                        key = str(place)  # not a WebDataset; every picture stands for itself
                    pictures[key] = _Member(path, member.name, member.offset_data, member.size)
                elif kind in ("cls", "json", "txt"):
                    if labels and kind != "txt":
                        label = _said(tar, member, kind)
                        if label is not None and (kind == "cls" or key not in said):
                            said[key] = label  # .cls counts before .json
                else:
                    passed.note(Path(place))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"cannot read {str(path)!r} as a tar archive: {error}; a compressed one has to be unpacked first"
        ) from None
    return list(pictures.values()), [said.get(key) for key in pictures]


def _said(tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str) -> Any:
    """The class that a text beside a picture states; ``None`` if it states none."""
    file = tar.extractfile(member) if member.size <= MOST_TEXT else None
    text = file.read() if file else b""
    if kind == "cls":
        word = text.decode("utf-8", "replace").strip()
        return int(word) if word.lstrip("-").isdecimal() else word or None
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return facts.get("label") if isinstance(facts, dict) else None
