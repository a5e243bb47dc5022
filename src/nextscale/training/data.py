"""Labelled pictures from a folder, parquet files in the hub's layout, or a ``datasets`` id.

Everything the trainers need is "give me these rows as a uint8 batch": :class:`ImageSource`. Pictures that
already have the right size are decoded once and kept; larger ones are decoded when asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from nextscale.errors import DataError, MissingDependencyError
from nextscale.training.digest import Files
from nextscale.training.sizes import Size, height_width
from nextscale.training.wording import named

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
IMAGE_COLUMNS = ("img", "image", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
TRAIN, HELD_OUT = "train", ("test", "validation", "valid", "val")
CACHE_BYTES = 2 << 30
ENLARGE = 1.125  # shorter side before the crop, relative to the target (VAR's published data pipeline)


@dataclass(frozen=True)
class ImageSource:
    """Pictures and labels by row number.

    read: row -> PIL image.
    labels: int64 ``(N,)``.
    class_names: one per class, or empty when the source has none.
    size: pixels per side of what :meth:`batch` returns, or ``(height, width)``.
    cache: all pictures as uint8 ``(N, 3, height, width)`` where they fit and need no resizing, else ``None``.
    files: where they lie, for :func:`~nextscale.training.digest.pictures_digest`; ``None`` if nobody knows.
    """

    read: Callable[[int], Image.Image]
    labels: Tensor
    class_names: tuple[str, ...]
    size: Size
    cache: Tensor | None = None
    files: Files | None = None

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
        with ThreadPoolExecutor() as pool:  # decoding and resizing release the interpreter lock
            return torch.stack(
                list(pool.map(lambda r, p: _crop(self.read(int(r)), self.size, p), rows, places.tolist()))
            )

    def subset(self, rows: Tensor) -> ImageSource:
        """Only these rows, in this order."""
        picked = rows.tolist()
        cache = None if self.cache is None else self.cache[rows]
        return ImageSource(
            lambda row: self.read(picked[row]),
            self.labels[rows],
            self.class_names,
            self.size,
            cache,
            self.files and self.files.subset(rows),
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
        if len(self) * 3 * h * w > CACHE_BYTES or self.read(0).size != (w, h):
            return self
        cache = torch.empty(len(self), 3, h, w, dtype=torch.uint8)
        for row in range(len(self)):
            image = self.read(row)
            if image.size != (w, h):
                return self
            cache[row] = _to_tensor(image)
        return replace(self, cache=cache)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], the range of every tokenizer."""
    return images.float() / 127.5 - 1


def open_images(source: str | Path, *, size: Size, split: str | None = None) -> ImageSource:
    """Open a folder of class folders, a parquet file or folder of them, or a ``datasets`` id.

    size: pixels per side of the pictures wanted, or ``(height, width)``.
    split: for a ``datasets`` id its split (default ``train``); for a folder, a sub-folder or the beginning of
        the parquet files' names.
    Raises DataError when nothing usable is there, naming what was looked for.
    """
    path = Path(source)
    if path.is_file():
        return _open_parquet([path], size).with_cache()
    if path.is_dir():
        parquet = sorted(path.glob(f"{split or ''}*.parquet"))
        opened = (
            _open_parquet(parquet, size) if parquet else _open_folder(path / split if split else path, size)
        )
        return opened.with_cache()
    if path.suffix or len(path.parts) > 2 or path.is_absolute():
        raise DataError(f"no such file or folder: {str(source)!r}")
    try:
        return _open_hub(str(source), split or "train", size).with_cache()
    except MissingDependencyError as error:
        raise DataError(
            f"no such file or folder: {str(source)!r}; as a data set of the hub, {error}"
        ) from None


def open_splits(
    data: str | Path, *, size: Size, held_out: str | Path | None = None
) -> tuple[ImageSource, ImageSource]:
    """Pictures to train on, and others to measure on, with the same class numbers.

    held_out: where the others are. By default the part of ``data`` named ``test``, ``validation``, ``valid``
        or ``val`` (a sub-folder, parquet files that begin so, or a split on the hub); without one, one
        picture in twenty of the training pictures, at most 2,000, which are then not trained on.
    """
    path = Path(data)
    on_hub = not path.exists()
    training = open_images(data, size=size, split=TRAIN if on_hub or _has_part(path, TRAIN) else None)
    if held_out is not None:
        return training, open_images(held_out, size=size).with_classes(training.class_names)
    if on_hub or _has_part(path, TRAIN):
        for part in HELD_OUT:
            with contextlib.suppress(_NoSuchSplitError):
                if on_hub or _has_part(path, part):
                    found = open_images(data, size=size, split=part)
                    return training, found.with_classes(training.class_names)
    kept = max(1, min(len(training) // 20, 2000))
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))
    return training.subset(order[:-kept]), training.subset(order[-kept:])


class _NoSuchSplitError(DataError):
    pass


def _has_part(path: Path, part: str) -> bool:
    return path.is_dir() and ((path / part).is_dir() or any(path.glob(f"{part}*.parquet")))


def _open_folder(root: Path, size: Size) -> ImageSource:
    if not root.is_dir():
        raise DataError(f"no such folder: {str(root)!r}")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    files: list[tuple[Path, int]] = []
    for label, folder in enumerate(classes or ["."]):
        found = sorted(p for p in (root / folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        files += [(p, label) for p in found]
    if not files:
        raise DataError(
            f"found no pictures in {str(root)!r}; expected one folder per class with "
            f"{', '.join(IMAGE_SUFFIXES)} files, or .parquet files"
        )
    paths = [p for p, _ in files]

    def read(row: int) -> Image.Image:
        return _open_picture(paths[row], str(paths[row]))

    labels = torch.tensor([label for _, label in files])
    return ImageSource(read, labels, tuple(classes), size, files=Files(tuple(paths), root))


def _open_parquet(files: list[Path], size: Size) -> ImageSource:
    parquet = _needs("pyarrow.parquet", "data")
    pyarrow = _needs("pyarrow", "data")
    try:
        schema = parquet.read_schema(files[0])
        image, label = (_column(schema.names, c, str(files[0])) for c in (IMAGE_COLUMNS, LABEL_COLUMNS))
        table = pyarrow.concat_tables([parquet.read_table(f, columns=[image, label]) for f in files])
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"cannot read {str(files[0])!r} as parquet: {error}") from None
    pictures = table.column(image)
    if table.column(label).null_count or pictures.null_count:
        raise DataError(f"{files[0].name} has rows without a picture or label; remove them first")

    def encoded(row: int) -> bytes:
        value = pictures[row].as_py()  # a struct of bytes and path in the hub's layout, else bytes
        data: bytes | None = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(f"{files[0].name} row {row} holds no encoded picture, but {type(data).__name__}")
        return data

    def read(row: int) -> Image.Image:
        return _open_picture(io.BytesIO(encoded(row)), f"{files[0].name} row {row}")

    labels = torch.from_numpy(np.array(table.column(label).to_numpy(), dtype=np.int64))
    if len(labels) == 0 or int(labels.min()) < 0:
        raise DataError(f"{files[0].name} has no rows, or labels below 0 (pictures without a known class)")
    made_of = Files(tuple(files), files[0].parent)
    return ImageSource(read, labels, _hub_class_names(schema, label), size, files=made_of)


def _open_hub(name: str, split: str, size: Size) -> ImageSource:
    datasets = _needs("datasets", "data")
    try:
        data = datasets.load_dataset(name, split=split)
    except ValueError as error:  # an unknown split or configuration
        raise _NoSuchSplitError(f"data set {name!r}, split {split!r}: {error}") from None
    except OSError as error:  # not on the hub, or no network
        raise DataError(f"cannot get the data set {name!r}: {error}") from None
    image, label = (_column(data.column_names, c, name) for c in (IMAGE_COLUMNS, LABEL_COLUMNS))

    def read(row: int) -> Image.Image:
        picture: Image.Image = data[row][image]
        return picture.convert("RGB")

    names = tuple(getattr(data.features[label], "names", None) or ())
    version = getattr(data, "_fingerprint", "")  # without one, every picture is read for a digest
    made_of = Files(version=version) if version else None
    return ImageSource(read, torch.tensor(data[label]), names, size, files=made_of)


def _hub_class_names(schema: Any, label: str) -> tuple[str, ...]:
    """Class names from the metadata that the hub's writers put into a parquet schema."""
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        return tuple(json.loads(raw)["info"]["features"][label]["names"]) if raw else ()
    except (KeyError, TypeError, ValueError):
        return ()


def _column(names: Sequence[str], wanted: Sequence[str], where: str) -> str:
    for name in wanted:
        if name in names:
            return name
    raise DataError(f"{where} has the columns {', '.join(names)}; expected one of {', '.join(wanted)}")


def _needs(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingDependencyError(
            f"reading this needs {module.split('.')[0]}: pip install 'nextscale[{extra}]'"
        ) from None


def _open_picture(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the picture {name}: {error}") from None


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def _crop(image: Image.Image, size: Size, place: Sequence[float]) -> Tensor:
    """Resize (Lanczos) until both sides reach 1.125 x size, then crop; ``place`` in [0, 1] says where."""
    height, width = height_width(size)
    if image.size != (width, height):
        scale = max(round(ENLARGE * s) / side for s, side in zip((width, height), image.size, strict=True))
        w, h = max(round(image.width * scale), width), max(round(image.height * scale), height)
        image = image.resize((w, h), Image.Resampling.LANCZOS)
        left, top = round(place[0] * (w - width)), round(place[1] * (h - height))
        image = image.crop((left, top, left + width, top + height))
    return _to_tensor(image)


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
