"""Labelled pictures of one size: what the trainers read, from whatever :mod:`nextscale.data` opens.

Everything the trainers need is "give me these rows as a uint8 batch": :class:`ImageSource`. Pictures that
already have the right size are decoded once and kept; larger ones are decoded when asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from nextscale.data.classes import check_every_class
from nextscale.data.folders import without_pictures
from nextscale.data.opening import TRAIN, find_part, open_pictures, parts_of
from nextscale.data.pictures import Pictures, fault_list
from nextscale.data.resizing import pixels_of, training_crop
from nextscale.data.tables import NoSuchSplitError
from nextscale.errors import DataError, InvalidArgumentError, warn
from nextscale.pixels import Encoded
from nextscale.training.sizes import Size, height_width
from nextscale.training.wording import named

HELD_OUT = ("test", "validation", "valid", "val")
CACHE_BYTES = 2 << 30
Check = Literal["headers", "full"]


class BrokenPicturesError(DataError):
    """Some pictures cannot be read; they could be skipped."""


@dataclass(frozen=True)
class ImageSource:
    """Pictures and labels by row number.

    read: row -> PIL image.
    labels: int64 ``(N,)``.
    class_names: one per class, or empty when the source has none.
    size: pixels per side of what :meth:`batch` returns, or ``(height, width)``.
    cache: all pictures as uint8 ``(N, 3, height, width)`` where they fit and need no resizing, else ``None``.
    labelled: whether the labels are more than zeros. origin: where the pictures are from, for messages.
    empty: folders that could be classes and hold no pictures.
    stand_in: let another picture of the same class stand in for one that turns out to be broken, and say so.
    encoded: row -> the picture's file, or its bytes, by which a run knows its pictures again; see
        :func:`~nextscale.training.digest.pictures_digest`.
    """

    read: Callable[[int], Image.Image]
    labels: Tensor
    class_names: tuple[str, ...]
    size: Size
    cache: Tensor | None = None
    labelled: bool = True
    origin: str = "the data"
    empty: tuple[str, ...] = ()
    stand_in: bool = False
    encoded: Callable[[int], Encoded] | None = None

    @classmethod
    def of(cls, pictures: Pictures, size: Size, origin: str, *, stand_in: bool = False) -> ImageSource:
        """Pictures as they were found."""
        return cls(
            pictures.read,
            pictures.labels,
            pictures.class_names,
            size,
            labelled=pictures.labelled,
            origin=origin,
            empty=pictures.empty,
            stand_in=stand_in,
            encoded=pictures.encoded,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return max(len(self.class_names), int(self.labels.max()) + 1)

    def batch(self, rows: Sequence[int] | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """uint8 ``(B, 3, height, width)``. With a generator crops are random, otherwise central."""
        rows = torch.as_tensor(rows)
        if self.cache is not None:
            return self.cache[rows]
        places = (
            torch.rand(len(rows), 2, generator=generator) if generator else torch.full((len(rows), 2), 0.5)
        )
        size = height_width(self.size)
        with ThreadPoolExecutor() as pool:  # decoding and resizing release the interpreter lock
            return torch.stack(
                list(
                    pool.map(
                        lambda r, p: training_crop(self._readable(int(r)), size, p),
                        rows,
                        places.tolist(),
                    )
                )
            )

    def _readable(self, row: int) -> Image.Image:
        """The picture of a row, or, where that is allowed, the next one of its class that is not broken."""
        try:
            return self.read(row)
        except DataError as error:
            if not self.stand_in:
                raise
            others = (self.labels == self.labels[row]).nonzero().flatten()
            order = torch.cat([others[others > row], others[others < row]]).tolist()
            for other in order:
                with contextlib.suppress(DataError):
                    found = self.read(other)
                    warn(f"skipped a broken picture, and another of its class stands in: {error}")
                    return found
            raise

    def subset(self, rows: Tensor) -> ImageSource:
        """Only these rows, in this order."""
        picked = rows.tolist()
        cache = None if self.cache is None else self.cache[rows]
        whole = self.encoded
        return replace(
            self,
            read=lambda row: self.read(picked[row]),
            labels=self.labels[rows],
            cache=cache,
            encoded=None if whole is None else lambda row: whole(picked[row]),
        )

    def with_classes(self, names: Sequence[str]) -> ImageSource:
        """The same pictures with class numbers from another list of names.

        Folders number the classes they happen to hold, so two of them can disagree. Raises DataError for a
        class that is not in the list.
        """
        if not names or not self.class_names or tuple(names) == self.class_names:
            return self
        unknown = [n for n in self.class_names if n not in names]
        if unknown:
            raise DataError(
                f"the held-out pictures have classes that the training pictures lack: {', '.join(unknown)}"
            )
        numbers = torch.tensor([list(names).index(n) for n in self.class_names])
        return replace(self, labels=numbers[self.labels], class_names=tuple(names))

    def with_cache(self) -> ImageSource:
        """Itself with every picture decoded, if they all have the target size and fit in memory."""
        h, w = height_width(self.size)
        if len(self) * 3 * h * w > CACHE_BYTES or self._readable(0).size != (w, h):
            return self
        cache = torch.empty(len(self), 3, h, w, dtype=torch.uint8)
        for row in range(len(self)):
            image = self._readable(row)
            if image.size != (w, h):
                return self
            cache[row] = pixels_of(image)
        return replace(self, cache=cache)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], the range of every tokenizer."""
    return images.float() / 127.5 - 1


def open_images(
    source: str | Path,
    *,
    size: Size,
    split: str | None = None,
    labels: bool = True,
    check: Check | None = None,
    skip_broken: bool = False,
) -> ImageSource:
    """Open whatever :func:`~nextscale.data.opening.open_pictures` opens, as pictures of one size.

    size: pixels per side of the pictures wanted, or ``(height, width)``.
    split: for a ``datasets`` id its split (default ``train``); for a folder, a sub-folder or the beginning of
        the parquet files' names.
    labels: find the class of every picture. check: look at all pictures first; ``"headers"`` at what they
        begin with and whether they are whole, ``"full"`` at every pixel.
    skip_broken: leave out, count and name pictures that cannot be read.
    Raises DataError when nothing usable is there, naming what was looked for.
    """
    pictures = open_pictures(source, split=split, labels="classes" if labels else "none")
    if check is not None:
        pictures = checked(pictures, str(source), check, skip_broken=skip_broken)
    return ImageSource.of(pictures, size, str(source), stand_in=skip_broken).with_cache()


def checked(pictures: Pictures, origin: str, check: Check, *, skip_broken: bool = False) -> Pictures:
    """The pictures, if they can all be read, or with ``skip_broken`` those that can.

    Raises DataError, naming the first that cannot and how many there are.
    """
    if check not in get_args(Check):
        raise InvalidArgumentError(f"unknown check {check!r}; known: {', '.join(get_args(Check))}")
    faults = pictures.broken(full=check == "full")
    if not faults:
        return pictures
    count = f"{len(faults):,} of {len(pictures):,} pictures in {origin}"
    if not skip_broken:
        raise BrokenPicturesError(
            f"{count} cannot be read: {fault_list(faults)}. Mend or remove them, or have them skipped"
        )
    kept = [row for row in range(len(pictures)) if row not in faults]
    if not kept:
        raise DataError(f"{count} cannot be read, so none is left: {fault_list(faults)}")
    warn(f"skipped {count} that cannot be read: {fault_list(faults)}")
    return pictures.only(kept)


def open_splits(
    data: str | Path,
    *,
    size: Size,
    held_out: str | Path | None = None,
    labels: bool = True,
    check: Check | None = None,
    skip_broken: bool = False,
) -> tuple[ImageSource, ImageSource]:
    """Pictures to train on, and others to measure on, with the same class numbers.

    held_out: where the others are. By default the part of ``data`` named ``test``, ``validation``, ``valid``
        or ``val`` (a sub-folder, parquet files that begin so, or a split on the hub); without one, one
        picture in twenty of the training pictures, at most 2,000, which are then not trained on.
    labels, check, skip_broken: as for :func:`open_images`.
    Raises DataError for data with such parts and none to train on, and for a class without pictures.
    """

    def opened(source: str | Path, split: str | None) -> ImageSource:
        return open_images(
            source, size=size, split=split, labels=labels, check=check, skip_broken=skip_broken
        )

    on_hub, parts = not Path(data).exists(), parts_of(data)
    train = TRAIN if on_hub else find_part(parts, TRAIN)
    if parts and train is None:
        raise DataError(
            f"{str(data)!r} has {', '.join(parts)}, and no part to train on; name those pictures train, or "
            f"give the folder itself, as in {str(Path(data) / parts[0])!r}"
        )
    training = opened(data, train)
    if training.empty:
        raise without_pictures(Path(data), training.empty)
    if held_out is not None:
        others = [] if not Path(held_out).exists() else parts_of(held_out)
        split = next((p for p in (find_part(others, name) for name in HELD_OUT) if p), None)
        return training, opened(held_out, split).with_classes(training.class_names)
    for name in HELD_OUT if on_hub else dict.fromkeys(find_part(parts, n) for n in HELD_OUT):
        if name is not None:
            with contextlib.suppress(NoSuchSplitError):
                return training, opened(data, name).with_classes(training.class_names)
    kept = max(1, min(len(training) // 20, 2000))
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))
    return training.subset(order[:-kept]), training.subset(order[-kept:])


def check_classes(training: ImageSource, held_out: ImageSource) -> None:
    """Raise DataError unless pictures and held-out pictures can teach and measure a model of classes.

    Every class needs a picture, and held-out pictures must be of the same classes.
    """
    check_every_class(training.labels, training.class_names, training.origin)
    count = training.num_classes
    if training.labelled and count > 1 and not held_out.labelled:
        raise DataError(
            f"the held-out pictures in {held_out.origin} have no classes, and those in {training.origin} "
            f"have {count}"
        )
    if int(held_out.labels.max()) >= count:
        raise DataError(
            f"the held-out pictures in {held_out.origin} have the label {int(held_out.labels.max())}, and "
            f"the training pictures have {count} classes, 0 to {count - 1}"
        )


def batches(count: int, batch_size: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Endless row batches, each epoch in its own order; ``start`` skips that many batches.

    Stateless: the rows of batch i depend on the seed and i alone, so a resumed run goes on exactly where the
    killed one stopped. The incomplete last batch of an epoch is left out.
    """
    per_epoch = count // batch_size
    if per_epoch == 0:
        raise DataError(
            f"the data has {count} pictures, fewer than one batch of {batch_size}; use a smaller "
            f"{named('batch_size')}"
        )
    epoch, skip = divmod(start, per_epoch)
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator)[: per_epoch * batch_size].view(
            per_epoch, batch_size
        )
        yield from order[skip:]
        epoch, skip = epoch + 1, 0
