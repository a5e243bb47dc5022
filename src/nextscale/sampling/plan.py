"""What a sampling run is: a manifest that all its processes read, and that keeps other runs out."""

from __future__ import annotations

import json
import os
import reprlib
import textwrap
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from nextscale.errors import InvalidArgumentError
from nextscale.generation.request import SEED_LIMIT
from nextscale.weights.digest import text_digest

Format = Literal["tar", "parquet", "folder", "npz"]
ImageFormat = Literal["png", "webp"]

MANIFEST = "manifest.json"
WORK = ".work"  # claims and unfinished shards, on the same file system, so that renames are atomic
LOGS = "logs"
JOINED = "samples.npz"
VERSION = 1  # of the manifest
MAX_SHARDS = 100_000
MAX_MANIFEST = 1 << 20  # bytes; one of ours has some thousands

_NAMES = {
    "tar": "shard-{index:06d}.tar",
    "parquet": "train-{index:06d}-of-{total:06d}.parquet",
    "folder": "shard-{index:06d}",
    "npz": "shard-{index:06d}.npz",
}


@dataclass(frozen=True)
class RunPlan:
    """Everything that the files of a run depend on, as JSON can hold it.

    count: pictures in all. seed: picture i is made from ``seed + i``.
    key: ``"labels"`` or ``"prompts"``. subjects: how many lines there are; picture i shows line ``i %
        subjects``.
    subjects_digest: SHA-256 of them as JSON.
    model: ``name``, ``family`` and ``sha256`` of the weights. sampling: settings as the pipeline reports
        them.
    size: ``(height, width)`` in pixels. device: its type; results are the same on one type alone.
    format: of the shards. image_format: of pictures in them; ``npz`` holds pixels. shard_size: pictures in
        each.
    group: pictures whose arithmetic goes together: last bits depend on the shape of a batch, so it belongs to
        the
        run. arithmetic: a digest of all numbers behind each of the first ``group`` pictures; a process whose
        processor or software rounds differently finds that here.
    """

    count: int
    seed: int
    key: str
    subjects: int
    subjects_digest: str
    model: Mapping[str, Any]
    sampling: Mapping[str, Any]
    size: tuple[int, int]
    device: str
    format: Format
    image_format: ImageFormat
    shard_size: int
    nextscale: str
    group: int = 1
    arithmetic: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "arithmetic", tuple(self.arithmetic))
        for name in ("count", "subjects", "shard_size", "group"):
            _require_whole(name, getattr(self, name), 1)
        _require_whole("seed", self.seed, 0)
        if self.seed + self.count > SEED_LIMIT:
            raise InvalidArgumentError(
                f"seeds are from 0 up to 2^64, and {self.count:,} of them from {self.seed} go beyond"
            )
        for name, known in (("format", get_args(Format)), ("image_format", get_args(ImageFormat))):
            if getattr(self, name) not in known:
                what, value = name.replace("_", " "), reprlib.repr(getattr(self, name))
                raise InvalidArgumentError(f"unknown {what} {value}; known: {', '.join(known)}")
        if self.shards > MAX_SHARDS:
            raise InvalidArgumentError(
                f"{self.count:,} pictures in shards of {self.shard_size} are {self.shards:,} files; make the "
                f"shards larger, so that there are at most {MAX_SHARDS:,}"
            )

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.shard_size)

    def span(self, shard: int) -> range:
        """The pictures of a shard."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.count))

    def name(self, shard: int) -> str:
        """The file or folder of a shard."""
        return _NAMES[self.format].format(index=shard, total=self.shards)

    @property
    def hash(self) -> str:
        """SHA-256 of everything that was asked for: all but what the arithmetic is, and names."""
        return text_digest(json.dumps(self._asked(), sort_keys=True))

    def _asked(self) -> dict[str, Any]:
        values = json.loads(json.dumps(asdict(self)))
        values["model"].pop("name", None)  # moving a model changes no picture
        return {k: v for k, v in values.items() if k not in ("group", "arithmetic")}

    def differences(self, other: RunPlan) -> list[str]:
        """What differs, ``"seed is 0 there and 5 here"``, ``other`` being there; nothing for the same run."""
        return list(_differences(other._asked(), self._asked(), ""))

    def to_dict(self) -> dict[str, Any]:
        return {"manifest": VERSION, "hash": self.hash, "shards": self.shards, **asdict(self)}

    @classmethod
    def from_dict(cls, stored: Any) -> RunPlan:
        """Raises InvalidArgumentError for what is no manifest of this version."""
        if not isinstance(stored, dict) or stored.get("manifest") != VERSION:
            raise InvalidArgumentError("it is no manifest of this version of nextscale")
        try:
            plan = cls(**{f.name: stored[f.name] for f in fields(cls)})
            whole = plan.hash == stored.get("hash")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
            raise InvalidArgumentError(f"it is damaged: {reason}") from None
        if not whole:
            raise InvalidArgumentError("it is damaged, or was edited: its hash does not fit")
        return plan


def _require_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgumentError(
            f"{name.replace('_', ' ')} must be at least {least}, got {reprlib.repr(value)}"
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str) -> Any:
    for name in sorted({*there, *here}):
        one, two = there.get(name), here.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            yield from _differences(one, two, f"{prefix}{name} ")
        elif one != two:
            yield f"{prefix}{name.replace('_', ' ')} is {_short(one)} there and {_short(two)} here"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:18]}…{text[-8:]}"


# ---------------------------------------------------------------------------- in a folder


def read_manifest(folder: Path) -> RunPlan | None:
    """The run of a folder; ``None`` if there is none.

    Raises InvalidArgumentError for a manifest that is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise InvalidArgumentError("it is too large")
        return RunPlan.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (InvalidArgumentError, ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, InvalidArgumentError) else "it is not JSON"
        raise InvalidArgumentError(
            f"{str(path)!r} cannot be used: {reason}. Give another --out, or delete that folder"
        ) from None


def check_same(folder: Path, stored: RunPlan, wanted: RunPlan) -> None:
    """Raises InvalidArgumentError, naming what differs, if a folder holds another run than the one wanted."""
    found = wanted.differences(stored)
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise InvalidArgumentError(
            f"{str(folder)!r} holds another run: {'; '.join(found[:3])}{more}. Give another --out, or the "
            f"options of that run to go on with it"
        )


def write_manifest(folder: Path, plan: RunPlan) -> RunPlan:
    """Begin a run: write its manifest, or read the one that another process was quicker to write.

    Returns what holds for all. Raises InvalidArgumentError if that is another run.
    """
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    partial = work / f"manifest-{uuid.uuid4().hex[:8]}.json"
    text = json.dumps(plan.to_dict(), indent=2) + "\n"
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _publish_once(partial, folder / MANIFEST)
    finally:
        partial.unlink(missing_ok=True)
    stored = read_manifest(folder)
    if stored is None:
        raise InvalidArgumentError(f"the manifest in {str(folder)!r} vanished while the run began")
    check_same(folder, stored, plan)
    return stored


def _publish_once(partial: Path, target: Path) -> None:
    """Give a whole file its name unless the name is taken."""
    try:
        os.link(partial, target)
    except FileExistsError:
        pass
    except OSError:  # a file system without links: the last of several replaces the others'
        if not target.exists():
            os.replace(partial, target)
