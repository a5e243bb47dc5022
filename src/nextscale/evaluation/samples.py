"""Generated pictures from elsewhere: an ``.npz``, a folder, tar or parquet files, a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nextscale.data.opening import is_run, open_pictures, run_plan
from nextscale.errors import DataError, warn
from nextscale.evaluation.images import (
    FoundImages,
    Images,
    NpzImages,
    WrongSizeError,
    images_digest,
    open_npz,
    read_array,
)
from nextscale.evaluation.provenance import file_digest
from nextscale.sampling.npz import LABELS
from nextscale.sampling.plan import JOINED
from nextscale.weights.digest import text_digest


@dataclass(frozen=True)
class Samples:
    """Generated pictures, as they are.

    name: of the file or folder. sha256: of the file, or of all pixels and labels.
    labels: int64 ``(N,)``, the classes asked for, -1 for none; ``None`` if nobody said.
    """

    name: str
    sha256: str
    images: Images
    labels: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        return self.images.size

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Tensor:
        """uint8 ``(stop - start, 3, H, W)``."""
        return self.images.read(start, stop)


def open_samples(path: str | Path) -> Samples:
    """Open generated pictures: an ``.npz``, or whatever holds pictures of one size.

    Classes are those of ``arr_1``, or numbers that stand beside the pictures, in a run or a parquet file.
    Raises DataError for what holds no pictures, or pictures of several sizes: samples are not resized.
    Statistics in an ``.npz`` are not believed, with a NextscaleWarning.
    """
    path = Path(path)
    if path.is_dir() and is_run(path) and run_plan(path).format == "npz":
        path = path / JOINED
        if not path.exists():
            raise DataError(f"{str(path)!r} is missing; give the command of the run again, and it goes on")
    if path.suffix.lower() == ".npz" or (path.is_file() and _is_zip(path)):
        return _of_npz(path)
    if not path.exists():
        raise DataError(f"cannot read {str(path)!r}: no such file or folder")
    return _of_pictures(path)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4"


def _of_npz(path: Path) -> Samples:
    images = NpzImages(path)
    with open_npz(path) as archive:
        members = {name.removesuffix(".npy") for name in archive.namelist()}
    stored = sorted({"mu", "sigma", "mu_s", "sigma_s"} & members)
    if stored:
        warn(
            f"{path.name} holds statistics ({', '.join(stored)}) besides its pictures; they are not used, "
            f"the pictures themselves are measured"
        )
    labels = _npz_labels(path, len(images)) if LABELS in members else None
    return Samples(path.name, file_digest(path), images, labels)


def _npz_labels(path: Path, count: int) -> Tensor:
    """``arr_1``. Raises DataError unless it is one whole number for every picture."""
    array = read_array(path, LABELS)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{path.name}: {LABELS} must be a whole number for each of the {count} pictures, their class, "
            f"got {array.dtype} {list(array.shape)}"
        )
    return torch.from_numpy(array.astype(np.int64))


def _of_pictures(path: Path) -> Samples:
    pictures = open_pictures(path, labels="numbers")
    first = pictures.read(0)
    images = FoundImages(pictures, (first.height, first.width))
    try:
        digest = images_digest(images)
    except WrongSizeError as error:
        raise DataError(f"{path}: generated pictures must all have one size: {error}") from None
    if not pictures.labelled:
        return Samples(path.name, digest, images)
    return Samples(path.name, text_digest(f"{digest} {pictures.labels.tolist()}"), images, pictures.labels)
