"""Pictures by number, a few at a time: from an ADM ``.npz`` file, or from anything that can be called.

50,000 pictures of 256 x 256 pixels are 9.8 GB, so a file is read and written in pieces; members of an npz are
entries of a zip archive, which allows that.
"""

from __future__ import annotations

import hashlib
import os
import struct
import textwrap
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextscale.data.pictures import Pictures
from nextscale.data.resizing import pixels_of, resized
from nextscale.errors import DataError, InvalidArgumentError
from nextscale.sampling.npz import IMAGES, entry, write_header

PIECE = 250

# What zipfile and numpy raise for damaged archives and headers.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, EOFError, OSError),
    *(ValueError, SyntaxError, RuntimeError, struct.error),  # NotImplementedError is a RuntimeError
)

Advance = Callable[[int], None]


def unheard(_: int) -> None:
    """For callers without a progress bar."""


class Images(Protocol):
    """Pictures of one size, numbered from 0."""

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """uint8 ``(stop - start, 3, H, W)``."""
        ...


@dataclass(frozen=True)
class CalledImages:
    """Pictures from a function of row numbers, such as an ImageSource's batch: uint8 ``(B, 3, H, W)``."""

    batch: Callable[[list[int]], Tensor]
    count: int
    size: tuple[int, int]

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Tensor:
        return self.batch(list(range(start, stop)))


class WrongSizeError(DataError):
    """Pictures have another size than is wanted, and nobody said how to resize them."""


@dataclass(frozen=True)
class FoundImages:
    """Pictures from anywhere (:func:`~nextscale.data.opening.open_pictures`), brought to one size.

    size: ``(height, width)``. resize: a rule of :data:`~nextscale.data.resizing.RULES`; without one,
        reading a picture of another size raises WrongSizeError.
    """

    pictures: Pictures
    size: tuple[int, int]
    resize: str | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, start: int, stop: int) -> Tensor:
        with ThreadPoolExecutor() as pool:  # decoding and resizing release the interpreter lock
            return torch.stack(list(pool.map(self._one, range(start, stop))))

    def _one(self, row: int) -> Tensor:
        image, (h, w) = self.pictures.read(row), self.size
        if self.resize is not None:
            image = resized(image, self.size, self.resize)
        if image.size != (w, h):
            raise WrongSizeError(
                f"{self.pictures.name(row)} has {image.width}x{image.height} pixels, where {w}x{h} are wanted"
            )
        return pixels_of(image)


@dataclass(frozen=True)
class ResizedImages:
    """Pictures brought to another size, ``(height, width)``, by a rule."""

    images: Images
    size: tuple[int, int]
    resize: str

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Tensor:
        pixels = self.images.read(start, stop).permute(0, 2, 3, 1).contiguous().numpy()
        return torch.stack([pixels_of(resized(Image.fromarray(p), self.size, self.resize)) for p in pixels])


class NpzImages:
    """The pictures of an ADM batch: member ``arr_0``, uint8 ``[N, H, W, 3]``, in pieces.

    Reading forwards is quick; going back in a compressed file starts it again.
    Raises DataError for a file without such a member, or in an order that cannot be read in pieces.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._archive = open_npz(self.path)
        if f"{IMAGES}.npy" not in self._archive.namelist():
            raise DataError(
                f"{self.path.name} has no {IMAGES}: it holds no pictures, only {_members(self._archive)}"
            )
        try:
            self._stream = self._archive.open(f"{IMAGES}.npy")
        except DAMAGE as error:
            reason = textwrap.shorten(str(error), 200, placeholder=" …")
            raise DataError(f"{self.path.name} is damaged: {reason}") from None
        shape, fortran, dtype = _header(self._stream, self.path.name)
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran or shape[0] == 0:
            order = ", in Fortran order" if fortran else ""
            raise DataError(
                f"{self.path.name}: {IMAGES} must be uint8 [N, H, W, 3], got {dtype} {list(shape)}{order}"
            )
        self._start, self._count, self.size = self._stream.tell(), shape[0], (shape[1], shape[2])

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Tensor:
        if not 0 <= start < stop <= self._count:
            raise InvalidArgumentError(f"{self.path.name} has {self._count} pictures, not {start} to {stop}")
        h, w = self.size
        each = h * w * 3
        try:
            if self._stream.tell() != self._start + start * each:
                self._stream.seek(self._start + start * each)
            data = self._stream.read((stop - start) * each)
        except DAMAGE as error:
            reason = textwrap.shorten(str(error), 200, placeholder=" …")
            raise DataError(f"{self.path.name} is damaged: {reason}") from None
        if len(data) != (stop - start) * each:
            raise DataError(f"{self.path.name} ends before picture {stop}; it was not written completely")
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, h, w, 3).permute(0, 3, 1, 2)


def pieces(images: Images, size: int = PIECE) -> Iterator[Tensor]:
    """All pictures in order, uint8 ``(B, 3, H, W)``."""
    yield from (images.read(i, min(i + size, len(images))) for i in range(0, len(images), size))


def images_digest(images: Images, advance: Advance = unheard) -> str:
    """SHA-256 of all pixels, for pictures that are not one file. ``advance`` hears how many were read."""
    digest = hashlib.sha256(f"{len(images)} {images.size}".encode())
    for piece in pieces(images):
        digest.update(piece.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
        advance(len(piece))
    return digest.hexdigest()


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The members of an npz other than its pictures. Raises DataError for one that needs code to load."""
    open_npz(path).close()
    with np.load(path, allow_pickle=False) as file:
        return {name: _member(path, file, name) for name in file.files if name != IMAGES}


def read_array(path: Path, name: str) -> np.ndarray[Any, Any]:
    """One member of an npz. Raises DataError if it needs code to load, or is damaged."""
    with np.load(path, allow_pickle=False) as file:
        return _member(path, file, name)


def _member(path: Path, file: Mapping[str, Any], name: str) -> np.ndarray[Any, Any]:
    try:
        found: np.ndarray[Any, Any] = file[name]
    except DAMAGE as error:
        raise DataError(f"{path.name}: {name} cannot be read: {error}") from None
    return found


def write_npz(
    path: Path,
    images: Images | None,
    arrays: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    compress: bool = False,
    advance: Advance = unheard,
) -> None:
    """Write pictures as ``arr_0``, in pieces, and other arrays beside them: a whole file or none.

    ``advance`` hears how many pictures were written.
    """
    if images is None and not arrays:
        raise InvalidArgumentError(f"there is nothing to write to {str(path)!r}")
    partial = path.with_name(path.name + ".partial")
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            if images is not None:
                with archive.open(entry(IMAGES, kind), "w", force_zip64=True) as member:
                    _write_images(member, images, advance)
            for name, array in (arrays or {}).items():
                with archive.open(entry(name, kind), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_images(member: Any, images: Images, advance: Advance) -> None:
    write_header(member, (len(images), *images.size, 3))
    for piece in pieces(images):
        member.write(piece.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
        advance(len(piece))


def open_npz(path: Path) -> zipfile.ZipFile:
    """The archive. Raises DataError if there is none."""
    try:
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        raise DataError(f"cannot read {str(path)!r} as an .npz file: {error}") from None


def _header(stream: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        return readers[version](stream)
    except (*DAMAGE, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name}: {IMAGES} has an unknown header: {reason}") from None


def _members(archive: zipfile.ZipFile) -> str:
    return ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
