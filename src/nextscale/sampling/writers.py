"""Shards as files: WebDataset tar, parquet in the hub's layout, folders, and ADM npz.

The same pictures give the same bytes, whenever and wherever: no file tells when it was made, or by whom.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from nextscale.errors import MissingDependencyError
from nextscale.sampling.npz import NpzWriter
from nextscale.sampling.plan import RunPlan

ROWS = 100  # of a parquet row group, as the hub's viewer likes them
_ENCODER: Mapping[str, Mapping[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 6},
    "webp": {"format": "WEBP", "lossless": True, "quality": 75, "method": 4},
}


@dataclass(frozen=True)
class Item:
    """One picture of a run. subject: the class, -1 for none, or the prompt. pixels: uint8 ``(H, W, 3)``."""

    index: int
    seed: int
    subject: int | str
    pixels: np.ndarray[Any, Any]

    @property
    def key(self) -> str:
        """What addresses it: its index, at a width at which names sort by it."""
        return f"{self.index:09d}"

    def facts(self, key: str) -> dict[str, Any]:
        """What stands beside a picture."""
        return {"index": self.index, "seed": self.seed, key.removesuffix("s"): self.subject}


def encode(pixels: np.ndarray[Any, Any], image_format: str) -> bytes:
    """uint8 ``(H, W, 3)`` as the bytes of a file; both formats keep every pixel."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **_ENCODER[image_format])
    return buffer.getvalue()


class ShardWriter(Protocol):
    """One shard in the making, under a name that is not its own."""

    def add(self, item: Item) -> None:
        """The next picture."""
        ...

    def finish(self) -> None:
        """The end: afterwards all bytes are on the disk."""
        ...

    def abandon(self) -> None:
        """Close what is open, write nothing more."""
        ...


def open_shard(plan: RunPlan, shard: int, path: Path) -> ShardWriter:
    """A writer for a shard of a run at a temporary place."""
    kinds: Mapping[str, Callable[[RunPlan, int, Path], ShardWriter]] = {
        "tar": TarShard,
        "parquet": ParquetShard,
        "folder": FolderShard,
        "npz": NpzShard,
    }
    return kinds[plan.format](plan, shard, path)


class TarShard:
    """A WebDataset: ``000000017.png``, ``.json``, and ``.cls`` for the class or ``.txt`` for the prompt."""

    def __init__(self, plan: RunPlan, shard: int, path: Path) -> None:
        self.plan = plan
        self._file = path.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, item: Item) -> None:
        kind = "cls" if self.plan.key == "labels" else "txt"
        self._member(f"{item.key}.{self.plan.image_format}", encode(item.pixels, self.plan.image_format))
        self._member(f"{item.key}.json", json.dumps(item.facts(self.plan.key)).encode())
        self._member(f"{item.key}.{kind}", str(item.subject).encode())

    def _member(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)  # owner 0, date 0
        info.size, info.mode = len(content), 0o644
        self._tar.addfile(info, io.BytesIO(content))

    def finish(self) -> None:
        self._tar.close()
        _to_disk(self._file)
        self._file.close()

    def abandon(self) -> None:
        _close_quietly(self._file)


class ParquetShard:
    """Rows as the hub has them: ``image`` (bytes and path), ``label`` or ``prompt``, ``index``, ``seed``."""

    def __init__(self, plan: RunPlan, shard: int, path: Path) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise MissingDependencyError(
                "parquet shards need pyarrow; install nextscale[data], or write another --format"
            ) from None
        self.plan = plan
        self.rows: list[dict[str, Any]] = []
        self._pyarrow = pyarrow
        label = pyarrow.int64() if plan.key == "labels" else pyarrow.string()
        image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        fields = [
            ("image", image),
            (self._subject, label),
            ("index", pyarrow.int64()),
            ("seed", pyarrow.uint64()),
        ]
        features = {"image": {"_type": "Image"}}
        features |= {name: {"dtype": str(kind), "_type": "Value"} for name, kind in fields if name != "image"}
        known = json.dumps({"info": {"features": features}})
        self._schema = pyarrow.schema(fields, metadata={"huggingface": known})
        self._file = path.open("wb")
        self._writer = parquet.ParquetWriter(self._file, self._schema, compression="none")

    @property
    def _subject(self) -> str:
        return self.plan.key.removesuffix("s")

    def add(self, item: Item) -> None:
        kind = self.plan.image_format
        image = {"bytes": encode(item.pixels, kind), "path": f"{item.key}.{kind}"}
        self.rows.append({"image": image, **item.facts(self.plan.key)})
        if len(self.rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self._writer.write_table(self._pyarrow.Table.from_pylist(self.rows, schema=self._schema))
            self.rows = []

    def finish(self) -> None:
        self._flush()
        self._writer.close()
        _to_disk(self._file)
        self._file.close()

    def abandon(self) -> None:
        self._writer.is_open = False  # else it writes its end when it is collected
        _close_quietly(self._file)


class FolderShard:
    """Picture files in a folder, and ``metadata.jsonl`` beside them, as the hub's image folders have it."""

    def __init__(self, plan: RunPlan, shard: int, path: Path) -> None:
        self.plan, self.path = plan, path
        path.mkdir()
        self._metadata = (path / "metadata.jsonl").open("wb")

    def add(self, item: Item) -> None:
        name = f"{item.key}.{self.plan.image_format}"
        with (self.path / name).open("wb") as file:
            file.write(encode(item.pixels, self.plan.image_format))
            _to_disk(file)
        line = json.dumps({"file_name": name, **item.facts(self.plan.key)})
        self._metadata.write(line.encode() + b"\n")

    def finish(self) -> None:
        _to_disk(self._metadata)
        self._metadata.close()
        sync_folder(self.path)

    def abandon(self) -> None:
        _close_quietly(self._metadata)


class NpzShard:
    """A part of an ADM batch, of which the run makes one file when all parts are there."""

    def __init__(self, plan: RunPlan, shard: int, path: Path) -> None:
        self.plan = plan
        self.labels: list[int] = []
        self._writer = NpzWriter(path, len(plan.span(shard)), plan.size)

    def add(self, item: Item) -> None:
        self._writer.add(item.pixels)
        if isinstance(item.subject, int):
            self.labels.append(item.subject)

    def finish(self) -> None:
        self._writer.finish(self.labels if self.plan.key == "labels" else None)

    def abandon(self) -> None:
        self._writer.abandon()


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _to_disk(file: io.BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())


def _close_quietly(file: io.BufferedWriter) -> None:
    """Close a file that is thrown away; what its buffer still holds need not fit on the disk."""
    with contextlib.suppress(OSError):
        file.close()
