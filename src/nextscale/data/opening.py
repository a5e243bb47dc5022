"""What a path means: a folder of pictures or of parts, parquet, tar, a run, or a data set of the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from nextscale.data.archives import open_archives
from nextscale.data.classes import Wanted
from nextscale.data.folders import (
    entries,
    has_pictures,
    is_folder,
    listed,
    open_folder,
    open_listed,
    pictures_in,
)
from nextscale.data.pictures import Pictures
from nextscale.data.tables import open_hub, open_tables
from nextscale.errors import DataError, InvalidArgumentError, MissingDependencyError, warn
from nextscale.sampling.plan import MANIFEST, MAX_MANIFEST, RunPlan, read_manifest

TRAIN, HELD_OUT = "train", ("test", "validation")
SYNONYMS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
}
_PART = re.compile(r"(training|train|testing|test|validation|valid|val)(?![a-z])", re.IGNORECASE)
_HUB_CACHE = {"blobs", "refs", "snapshots"}

Opened = Callable[[Wanted], Pictures]
"""What opens one part."""


def open_pictures(source: str | Path, *, split: str | None = None, labels: Wanted = "classes") -> Pictures:
    """Open whatever holds pictures.

    source: a folder (see :mod:`~nextscale.data.folders`), parquet or tar files or a folder of them, a run of
        ``nextscale generate --out``, a snapshot of the hub, or the id of a data set there.
    split: the part wanted, where there are several, such as ``train``. labels: what they are for.
    Raises DataError where nothing usable is there, or several parts and no ``split``.
    """
    path = Path(source)
    if path.is_file():
        return _open_file(path, labels)
    if path.is_dir():
        return _open_folder(path, split, labels)
    if path.suffix or len(path.parts) > 2 or path.is_absolute():
        raise DataError(f"no such file or folder: {str(source)!r}")
    try:
        return open_hub(str(source), split or TRAIN, labels=labels)
    except MissingDependencyError as error:
        raise DataError(
            f"no such file or folder: {str(source)!r}; as a data set of the hub, {error}"
        ) from None


def parts_of(source: str | Path) -> list[str]:
    """Name parts of a folder, such as ``train`` and ``test``, as they are called there; none if it has none.

    Raises DataError where a folder ``test`` could be a part or a class.
    """
    path = Path(source)
    return [name for name, _ in _parts(_inner(path))] if path.is_dir() else []


def find_part(parts: Sequence[str], wanted: str) -> str | None:
    """Find a part by its name: exactly, in another case, or by another word for it (``val``, ``valid``)."""
    kind = _canonical(wanted)
    exact = [name for name in parts if name == wanted]
    in_any_case = [name for name in parts if name.lower() == wanted.lower()]
    alike = [name for name in parts if kind and _canonical(name) == kind]
    return next(iter((*exact, *in_any_case, *alike)), None)


def is_run(folder: Path) -> bool:
    """Whether a folder is one of ``nextscale generate --out``; other programs have manifests too."""
    path = folder / MANIFEST
    try:
        if not path.is_file() or path.stat().st_size > MAX_MANIFEST:
            return False
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(stored, dict) and {"manifest", "hash", "shard_size"} <= set(stored)


# ---------------------------------------------------------------------------- files


def _open_file(path: Path, labels: Wanted) -> Pictures:
    with path.open("rb") as file:
        start = file.read(512)
    if start[:4] == b"PAR1" or path.suffix.lower() == ".parquet":
        return open_tables([path], labels=labels)
    if start[257:262] == b"ustar" or path.suffix.lower() == ".tar":
        return open_archives([path], labels=labels)
    remedy = "give a folder of pictures, or a .parquet or .tar file"
    if path.suffix.lower() == ".npz":
        raise DataError(
            f"{str(path)!r} is an .npz, which is read where pictures are measured alone; {remedy}"
        )
    if path.suffix.lower() in (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"):
        raise DataError(f"{str(path)!r} is compressed: unpack it, and name the folder")
    raise DataError(f"cannot read {str(path)!r} as pictures; {remedy}")


# ---------------------------------------------------------------------------- folders


def _open_folder(path: Path, split: str | None, labels: Wanted) -> Pictures:
    root = _inner(path)
    parts = _parts(root, split)
    names = [name for name, _ in parts]
    beside = _beside(root, names)
    if beside:
        warn(f"{path}: passed over {listed(beside)}, beside the parts {', '.join(names)}")
    if split is None:
        if len(parts) > 1:
            raise DataError(f"{str(path)!r} has the parts {', '.join(names)}; say which of them (split)")
        return parts[0][1](labels) if parts else _whole(root, labels)
    found = find_part(names, split)
    if found is None:
        found = find_part([entry.name for entry in entries(root) if is_folder(entry)], split)
        if found is None:
            there = f"the parts {', '.join(names)}" if names else "no parts"
            raise DataError(f"{str(path)!r} has {there}, and none that is called {split!r}")
        return _whole(root / found, labels)
    return dict(parts)[found](labels)


def _inner(root: Path) -> Path:
    """Where the data are: a snapshot in the hub's cache, or the one folder that holds the parts."""
    folders = [entry.name for entry in entries(root) if is_folder(entry)]
    if set(folders) >= _HUB_CACHE:
        return _inner(_snapshot(root))
    if is_run(root) or _files(root):
        return root
    if "data" in folders and _files(root / "data"):
        return root / "data"
    if len(folders) == 1 and not any(_canonical(name) for name in folders):
        inner = root / folders[0]
        if not pictures_in(root) and (_files(inner) or _folder_parts(inner)):
            return inner
    return root


def _snapshot(root: Path) -> Path:
    """The snapshot of a repository in the hub's cache: of the branch main, or the only one."""
    found = [Path(entry.path) for entry in entries(root / "snapshots") if is_folder(entry)]
    main = root / "refs" / "main"
    if main.is_file() and (root / "snapshots" / main.read_text(encoding="utf-8").strip()).is_dir():
        return root / "snapshots" / main.read_text(encoding="utf-8").strip()
    if len(found) != 1:
        raise DataError(f"{str(root)!r} has {len(found)} snapshots; name one of the folders in snapshots/")
    return found[0]


def _files(folder: Path) -> list[Path]:
    """The parquet files of a folder, or else its tar files."""
    found = [Path(entry.path) for entry in entries(folder) if not is_folder(entry)]
    parquet = [p for p in found if p.suffix.lower() == ".parquet" and p.name != "metadata.parquet"]
    return parquet or [p for p in found if p.suffix.lower() == ".tar"]


def _whole(root: Path, labels: Wanted) -> Pictures:
    if is_run(root):
        return _open_run(root, labels)
    files = _files(root)
    if files and not (files[0].suffix.lower() == ".tar" and pictures_in(root)):
        return _open_files(files, labels)
    return open_folder(root, labels=labels)


def _open_files(files: Sequence[Path], labels: Wanted) -> Pictures:
    tar = files[0].suffix.lower() == ".tar"
    return open_archives(files, labels=labels) if tar else open_tables(files, labels=labels)


def _parts(root: Path, split: str | None = None) -> list[tuple[str, Opened]]:
    """The parts of a folder, those to train on first, and what opens each."""
    if is_run(root):
        return []
    files = _files(root)
    if files:
        found = _file_parts(files, split)
        return [(name, _opener(mine)) for name, mine in found.items()]
    return [(name, _folder_opener(root / name)) for name in _folder_parts(root, split)]


def _beside(root: Path, parts: Sequence[str]) -> list[str]:
    """Data that belong to no part."""
    if not parts:
        return []
    files = _files(root)
    if files:
        return [path.name for path in files if not _PART.match(path.name)]
    folders = [entry.name for entry in entries(root) if is_folder(entry) and entry.name not in parts]
    return [path.name for path in pictures_in(root)] + [n for n in folders if has_pictures(root / n)]


def _opener(files: list[Path]) -> Opened:
    return lambda labels: _open_files(files, labels)


def _folder_opener(folder: Path) -> Opened:
    return lambda labels: _whole(_inner(folder), labels)


def _file_parts(files: Sequence[Path], split: str | None) -> dict[str, list[Path]]:
    """``train-00000-of-00004.parquet`` and its like by their part; nothing where names say nothing."""
    found: dict[str, list[Path]] = {}
    for path in files:
        match = _PART.match(path.name)
        if match:
            found.setdefault(_canonical(match[1]), []).append(path)
    if split is not None and find_part(list(found), split) is None:
        mine = [p for p in files if re.match(re.escape(split) + r"(?![a-z])", p.name, re.IGNORECASE)]
        return {**found, split: mine} if mine else found
    return {name: found[name] for name in sorted(found, key=_rank)}


def _folder_parts(root: Path, split: str | None = None) -> list[str]:
    """The folders ``train``, ``test`` and so on, in any case. ``split``: somebody said they are parts."""
    folders = [entry.name for entry in entries(root) if is_folder(entry)]
    parts = [name for name in folders if _canonical(name)]
    kinds = [_canonical(name) for name in parts]
    if len(set(kinds)) < len(kinds):
        raise DataError(f"{str(root)!r} has the folders {', '.join(parts)}, two of which are one part")
    others = [name for name in folders if name not in parts]
    if parts and TRAIN not in kinds and split is None:
        beside = [name for name in others if has_pictures(root / name)]
        if beside or pictures_in(root):
            what = f"the folders {listed(beside)}" if beside else "pictures"
            raise DataError(
                f"{str(root)!r} has {parts[0]} beside {what}; put what is no part into a folder train, or "
                f"name one of the folders"
            )
    return sorted(parts, key=lambda name: _rank(_canonical(name)))


def _open_run(root: Path, labels: Wanted) -> Pictures:
    """A finished run: the shards that its manifest names, and nothing else in the folder."""
    plan = run_plan(root)
    wanted: Wanted = labels if plan.key == "labels" else "none"
    if plan.format == "npz":
        raise DataError(
            f"the run {str(root)!r} is one .npz, which is read where pictures are measured alone; write runs "
            f"to train on with another --format"
        )
    shards = [root / plan.name(shard) for shard in range(plan.shards)]
    missing = next((path for path in shards if not path.exists()), None)
    if missing is not None:
        raise DataError(f"{str(missing)!r} is missing; give the command of the run again, and it goes on")
    found = open_listed(shards, labels=wanted) if plan.format == "folder" else _open_files(shards, wanted)
    if len(found) != plan.count:
        raise DataError(f"the run {str(root)!r} has {len(found)} of {plan.count} pictures; it is damaged")
    return found


def run_plan(root: Path) -> RunPlan:
    """Read the manifest of a run. Raises DataError if it is damaged."""
    try:
        plan = read_manifest(root)
    except InvalidArgumentError as error:
        raise DataError(str(error)) from None
    if plan is None:
        raise DataError(f"the manifest of {str(root)!r} vanished")
    return plan


def _canonical(name: str) -> str:
    return SYNONYMS.get(name.lower(), "")


def _rank(kind: str) -> int:
    return (TRAIN, *HELD_OUT).index(kind)
