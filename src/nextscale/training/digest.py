"""Digests of pictures, by which encoded pictures and checkpoints are bound to what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nextscale.training.sizes import height_width

if TYPE_CHECKING:
    from nextscale.training.data import ImageSource

WHOLE_BYTES = 1 << 30  # of all files together, up to which every byte is read
ENDS = 10_000  # files, up to which the end of each is read where not every byte is
END_BYTES = 1 << 16


@dataclass(frozen=True)
class Files:
    """Where the pictures of a source lie.

    paths: in order; one per picture, or parquet files with many each. root: what their names are relative to,
        so that a folder may be moved. version: of pictures that lie in no files we know.
    rows: int64, of a part of them; ``None`` for all.
    """

    paths: tuple[Path, ...] = ()
    root: Path = Path()
    version: str = ""
    rows: Tensor | None = None

    def subset(self, rows: Tensor) -> Files:
        """Only these rows, in this order."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])


def pictures_digest(pictures: ImageSource, *, times: bool = False) -> str:
    """A digest of all pictures, their labels and classes, in hexadecimal.

    Of pictures that are kept in memory every pixel counts, and of files with up to :data:`WHOLE_BYTES` in all
    every byte. Of more, names and sizes, with ``times`` also when they were changed, and for up to
    :data:`ENDS` files the last 64 KiB, which in parquet files describe all row groups.

    times: for what can be made anew at a cost; without them, copied files are the same.
    """
    digest = hashlib.blake2b(digest_size=32)
    size = height_width(pictures.size)  # however it was said
    digest.update(repr((len(pictures), size, pictures.class_names)).encode())
    digest.update(_bytes(pictures.labels))
    if pictures.cache is not None:
        digest.update(_bytes(pictures.cache))
    elif pictures.files is not None:
        for part in _of_files(pictures.files, times):
            digest.update(part)
    else:
        for row in range(len(pictures)):
            picture = pictures.read(row)
            digest.update(repr((picture.size, picture.mode)).encode() + picture.tobytes())
    return digest.hexdigest()


def _of_files(files: Files, times: bool) -> Iterable[bytes | memoryview]:
    yield files.version.encode()
    if files.rows is not None:
        yield _bytes(files.rows)
    stats = [path.stat() for path in files.paths]
    whole = sum(stat.st_size for stat in stats) <= WHOLE_BYTES
    for path, stat in zip(files.paths, stats, strict=True):
        name = path.relative_to(files.root).as_posix()
        yield repr((name, stat.st_size, stat.st_mtime_ns if times and not whole else 0)).encode()
    if whole or len(files.paths) <= ENDS:
        with ThreadPoolExecutor() as pool:  # reading and hashing release the interpreter lock
            yield from pool.map(lambda path: _of_file(path, whole), files.paths)


def _of_file(path: Path, whole: bool) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        if not whole:
            file.seek(max(path.stat().st_size - END_BYTES, 0))
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
