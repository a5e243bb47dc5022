"""Pictures in folders: which files count, and which classes they are of.

What other programs leave behind is skipped everywhere: names that begin with a dot (``._x.png``,
``.ipynb_checkpoints``), ``__MACOSX``, ``Thumbs.db`` and the like. All other files that are no pictures are
counted and said. Linked files and folders are followed, those that lead back upwards are not.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nextscale.data.classes import Wanted, with_labels
from nextscale.data.pictures import Pictures
from nextscale.errors import DataError, warn
from nextscale.pixels import is_picture

METADATA = "metadata.jsonl"
JUNK = {
    *("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"),
    "system volume information",
}
EXPECTED = (
    "expected one folder per class with pictures (.png, .jpg and whatever else Pillow reads), or .parquet or "
    ".tar files"
)


def is_junk(name: str) -> bool:
    """Whether a file or folder is one that other programs leave behind, or hidden."""
    return name.startswith(".") or name.lower() in JUNK


@dataclass
class Passed:
    """Count what was passed over, by the kind of file, and folders without pictures."""

    files: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)

    def note(self, path: Path) -> None:
        self.files[path.suffix.lower() or "without a suffix"] += 1

    def __str__(self) -> str:
        """``"passed over 7 files: 5 .heic, 2 .txt"``; nothing if nothing was."""
        said = []
        if self.files:
            total = sum(self.files.values())
            kinds = ", ".join(
                f"{count:,} {kind}" for kind, count in sorted(self.files.items(), key=lambda k: (-k[1], k[0]))
            )
            said.append(f"passed over {_counted(total, 'file')}: {kinds}")
        if self.folders:
            said.append(f"no pictures in {listed(self.folders)}")
        return "; ".join(said)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder by name, without junk. Raises DataError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not is_junk(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {str(folder)!r}: {error.strerror}") from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; one that leads back to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def pictures_under(folder: Path, passed: Passed) -> list[Path]:
    """Every picture in a folder and the folders in it, by name."""
    return sorted(_walk(folder, passed, _identities(folder.parent)))


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie in a folder itself."""
    return [
        Path(entry.path) for entry in entries(folder) if not is_folder(entry) and _counts(entry, Passed())
    ]


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder or below."""
    return next(_walk(folder, Passed(), _identities(folder.parent)), None) is not None


def _walk(folder: Path, passed: Passed, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    above |= {_identity(folder)}
    for entry in entries(folder):
        path = Path(entry.path)
        if not is_folder(entry):
            if _counts(entry, passed):
                yield path
        elif _identity(path) in above:
            passed.files["linked to a folder above"] += 1
        else:
            yield from _walk(path, passed, above)


def _counts(entry: os.DirEntry[str], passed: Passed) -> bool:
    """Whether a file is a picture; else it is noted."""
    path = Path(entry.path)
    # A link that leads nowhere is a picture that cannot be read; a pipe or a socket is none.
    if (entry.is_symlink() or entry.is_file()) and is_picture(path):
        return True
    passed.note(path)
    return False


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _identities(folder: Path) -> frozenset[tuple[int, int]]:
    """Identify a folder and all above it, so that a link to one of them is no way down."""
    here = Path(os.path.realpath(folder))
    return frozenset(_identity(place) for place in (here, *here.parents))


# ---------------------------------------------------------------------------- the layout


def open_folder(root: Path, *, labels: Wanted) -> Pictures:
    """Open a folder of pictures, or of one folder per class, or with a ``metadata.jsonl``.

    labels: with ``"classes"``, folders are classes. Otherwise all pictures in the folder and below count.
    Raises DataError if there are none, or, with classes, if some have no class or a class has none.
    """
    inside = entries(root)
    if (root / METADATA).is_file():
        return open_listed([root], labels=labels)
    folders = [Path(entry.path) for entry in inside if is_folder(entry)]
    if folders and all((folder / METADATA).is_file() for folder in folders):
        return open_listed(folders, labels=labels)
    passed = Passed()
    top = [Path(entry.path) for entry in inside if not is_folder(entry) and _counts(entry, passed)]
    below = {folder.name: pictures_under(folder, passed) for folder in folders}
    classes = [name for name, files in below.items() if files]
    empty = [name for name, files in below.items() if not files]
    if not top and not classes:
        said = f"; {passed}" if str(passed) else ""
        raise DataError(f"found no pictures in {str(root)!r}{said}; {EXPECTED}")
    if labels == "classes" and classes:
        _check_classes(root, top, classes, empty, passed)
    passed.folders = empty
    if str(passed):
        warn(f"{root}: {passed}")
    if labels != "classes" or not classes:
        files = sorted([*top, *(path for found in below.values() for path in found)])
        found = of_files(files)
        return found if not classes else _with_empty(found, empty)
    if len(classes) == 1:
        _warn_of_one_class(root, classes[0], below[classes[0]])
    files = [path for name in classes for path in below[name]]
    numbers = [i for i, name in enumerate(classes) for _ in below[name]]
    return Pictures(files.__getitem__, lambda row: str(files[row]), torch.tensor(numbers), tuple(classes))


def _check_classes(
    root: Path, top: Sequence[Path], classes: Sequence[str], empty: Sequence[str], passed: Passed
) -> None:
    if top:
        raise DataError(
            f"{str(root)!r} has {_counted(len(top), 'picture')} ({top[0].name} first) beside the folders "
            f"{listed(classes)}, so those have no class; move them into the folder of theirs"
        )
    if empty:
        raise without_pictures(root, empty, passed)


def without_pictures(root: Path, empty: Sequence[str], passed: Passed | None = None) -> DataError:
    """The error for classes that no picture shows."""
    said = f"; {passed}" if passed is not None and str(passed) else ""
    return DataError(
        f"{str(root)!r}: no pictures in {listed(empty)}{said}; every class needs some, so fill or remove "
        f"that folder"
    )


def _with_empty(found: Pictures, empty: Sequence[str]) -> Pictures:
    return Pictures(found.encoded, found.name, found.labels, labelled=False, empty=tuple(empty))


def _warn_of_one_class(root: Path, name: str, files: Sequence[Path]) -> None:
    inner = sorted({path.relative_to(root / name).parts[0] for path in files if path.parent != root / name})
    if inner:
        warn(
            f"all pictures in {root} are of one class, {name}; if {listed(inner)} are the classes, name "
            f"{root / name} instead"
        )


def of_files(files: Sequence[Path]) -> Pictures:
    """Files of no known class."""
    return Pictures.unlabelled(files.__getitem__, lambda row: str(files[row]), len(files))


# ---------------------------------------------------------------------------- metadata.jsonl


def open_listed(folders: Sequence[Path], *, labels: Wanted) -> Pictures:
    """Open folders in which ``metadata.jsonl`` lists the pictures, ``file_name``, and maybe a ``label``.

    That is how ``nextscale generate --format folder`` writes them, and image folders of the hub.
    Raises DataError for a list that cannot be read.
    """
    files: list[Path] = []
    values: list[Any] = []
    passed = Passed()
    for folder in folders:
        facts = list(_facts(folder / METADATA))
        mine = [folder / fact["file_name"] for fact in facts]
        names = {os.path.normpath(path) for path in mine}
        for path in pictures_under(folder, Passed()):
            if os.path.normpath(path) not in names:
                passed.note(path)
        files += mine
        values += [fact.get("label") for fact in facts]
    where = str(folders[0] / METADATA if len(folders) == 1 else folders[0].parent)
    if not files:
        raise DataError(f"{where!r} lists no pictures")
    if str(passed):
        warn(f"{where}: {passed}, which {METADATA} does not list")
    return with_labels(of_files(files), values, where, labels)


def _facts(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(
            b"\n"
        )  # not by what else counts as an end of a line: it may be in a text
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fact = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{str(path)!r}, line {number}: no JSON") from None
        if not isinstance(fact, dict) or not isinstance(fact.get("file_name"), str):
            raise DataError(f"{str(path)!r}, line {number}: no file_name")
        yield fact


# ---------------------------------------------------------------------------- words


def listed(names: Sequence[str], most: int = 5) -> str:
    """``"a, b"``; the first of many, and how many more."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
