"""Digests of pictures, by which encoded pictures and checkpoints are bound to what they were made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def pictures_digest(pictures: ImageSource, *, times: bool = False) -> str:
    """A digest of all pictures, their labels and classes, in hexadecimal.

    Of pictures that are kept in memory every pixel counts, of those in parquet and tar files every byte, and
    of those in files of their own, if they have up to :data:`WHOLE_BYTES` in all, every byte. Of more, names
    and sizes, with ``times`` also when they were changed, and for up to :data:`ENDS` files the last 64 KiB.

    times: for what can be made anew at a cost; without them, copied files are the same.
    """
    digest = hashlib.blake2b(digest_size=32)
    size = height_width(pictures.size)  # however it was said
    digest.update(repr((len(pictures), size, pictures.class_names)).encode())
    digest.update(_bytes(pictures.labels))
    if pictures.cache is not None:
        digest.update(_bytes(pictures.cache))
    elif pictures.encoded is not None:
        files = []
        for row in range(len(pictures)):
            found = pictures.encoded(row)
            if isinstance(found, Path):
                files.append(found)
            else:
                digest.update(f"{row} {len(found)} ".encode() + found)
        for part in _of_files(files, times):
            digest.update(part)
    else:
        for row in range(len(pictures)):
            picture = pictures.read(row)
            digest.update(repr((picture.size, picture.mode)).encode() + picture.tobytes())
    return digest.hexdigest()


def _of_files(files: Sequence[Path], times: bool) -> Iterable[bytes]:
    if not files:
        return
    # Names are relative to what all have in common, so that a folder may be moved.
    root = os.path.commonpath([path.absolute().parent for path in files])
    stats = [path.stat() for path in files]
    whole = sum(stat.st_size for stat in stats) <= WHOLE_BYTES
    for path, stat in zip(files, stats, strict=True):
        name = path.absolute().relative_to(root).as_posix()
        yield repr((name, stat.st_size, stat.st_mtime_ns if times and not whole else 0)).encode()
    if whole or len(files) <= ENDS:
        with ThreadPoolExecutor() as pool:  # reading and hashing release the interpreter lock
            yield from pool.map(lambda path: _of_file(path, whole), files)


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
