"""ADM batches written as a stream: an npz is a zip archive, and a member can be written in pieces."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

IMAGES = "arr_0"
LABELS = "arr_1"


def entry(name: str, kind: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    """A member's header. It is dated 1980, so that the same content gives the same file."""
    made = zipfile.ZipInfo(f"{name}.npy")
    made.compress_type = kind
    return made


def write_header(member: IO[bytes], shape: tuple[int, ...]) -> None:
    """What an ``.npy`` of 8-bit numbers begins with."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)


class NpzWriter:
    """Pictures one by one as ``arr_0``, uint8 ``[N, H, W, 3]``, and their classes as ``arr_1``, int64.

    count: N, which the header needs beforehand. size: ``(height, width)``.
    """

    def __init__(self, path: Path, count: int, size: tuple[int, int]) -> None:
        self._path = path
        self._archive = zipfile.ZipFile(path, "w")
        self._member = self._archive.open(entry(IMAGES), "w", force_zip64=True)
        write_header(self._member, (count, *size, 3))

    def add(self, pixels: np.ndarray[Any, Any]) -> None:
        """One picture or several, uint8 ``([n,] H, W, 3)``."""
        self._member.write(np.ascontiguousarray(pixels).tobytes())

    def finish(self, labels: Iterable[int] | None) -> None:
        """The classes, if there are any, and the end of the archive; then all of it is on the disk."""
        self._member.close()
        if labels is not None:
            with self._archive.open(entry(LABELS), "w", force_zip64=True) as member:
                array = np.fromiter(labels, dtype=np.int64)
                np.lib.format.write_array(member, array, allow_pickle=False)
        self._archive.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Close the file as it is; it is going to be thrown away."""
        # zipfile would write the end of the archive, for which a full disk has no room.
        stream, self._archive.fp = self._archive.fp, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._member.close()
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def read_rows(path: Path, name: str = IMAGES, piece: int = 250) -> Iterable[np.ndarray[Any, Any]]:
    """The rows of a member of an npz that :class:`NpzWriter` wrote, some at a time."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for first in range(0, shape[0], piece):
            rows = min(piece, shape[0] - first)
            yield np.frombuffer(member.read(rows * row), dtype=dtype).reshape(rows, *shape[1:])


def join(parts: Iterable[Path], target: Path, count: int, size: tuple[int, int], classes: bool) -> None:
    """Several npz files as one, in their order, without holding more than some pictures.

    classes: whether they have any.
    """
    paths, writer = list(parts), NpzWriter(target, count, size)
    try:
        for path in paths:
            for rows in read_rows(path):
                writer.add(rows)
        labels = (int(n) for path in paths for rows in read_rows(path, LABELS) for n in rows)
        writer.finish(labels if classes else None)
    except BaseException:
        writer.abandon()
        raise
