"""Reading what a run has written, and checking that all of it is there."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import textwrap
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nextscale.errors import DataError
from nextscale.sampling.npz import IMAGES, LABELS, read_rows
from nextscale.sampling.plan import JOINED, RunPlan, read_manifest
from nextscale.sampling.writers import Item


def read_run(folder: Path) -> Iterator[Item]:
    """Every picture of a finished run, in order.

    Raises DataError if the folder holds no run, or one that is not complete, or a shard is damaged.
    """
    plan = read_manifest(folder)
    if plan is None:
        raise DataError(f"{str(folder)!r} holds no run; name the folder of --out")
    for shard in [None] if plan.format == "npz" else range(plan.shards):
        path = folder / (JOINED if shard is None else plan.name(shard))
        wanted = range(plan.count) if shard is None else plan.span(shard)
        if not path.exists():
            raise DataError(f"{str(path)!r} is missing; give the command of the run again, and it goes on")
        yield from checked_items(plan, path, wanted)


def verify(folder: Path) -> int:
    """Read every picture of a finished run; how many there are.

    Raises DataError, naming the first that is missing, twice there, damaged, or of another size.
    """
    return sum(1 for _ in read_run(folder))


def read_shard(plan: RunPlan, path: Path, wanted: range) -> Iterator[Item]:
    """The pictures of a shard, in order. ``wanted``: those it should hold."""
    readers = {"tar": _tar, "parquet": _parquet, "folder": _folder}
    if plan.format == "npz":
        yield from _npz(plan, path, wanted)
        return
    for facts, content in readers[plan.format](plan, path):
        _require_end(plan, path, content)
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"))
        yield Item(facts["index"], facts["seed"], facts[plan.key.removesuffix("s")], pixels)


def checked_items(plan: RunPlan, path: Path, wanted: range) -> Iterator[Item]:
    """The pictures of a file of a run, in order. ``wanted``: those it should hold.

    Raises DataError for the first that is missing, twice there, damaged, or of another size.
    """
    expected = iter(wanted)
    try:
        for item in read_shard(plan, path, wanted):
            index = next(expected, None)
            if item.index != index:
                where = "after its last one" if index is None else f"where {index} belongs"
                raise DataError(f"{str(path)!r} has picture {item.index} {where}")
            if item.seed != plan.seed + item.index:
                raise DataError(
                    f"{str(path)!r}: picture {item.index} is said to have the seed {item.seed}, and it is "
                    f"{plan.seed + item.index}"
                )
            if item.pixels.shape != (*plan.size, 3):
                raise DataError(f"{str(path)!r}: picture {item.index} has the shape {item.pixels.shape}")
            yield item
    except DataError:
        raise
    except _DAMAGE as error:
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        raise DataError(f"{str(path)!r} is damaged: {reason}") from None
    missing = next(expected, None)
    if missing is not None:
        raise DataError(f"{str(path)!r} lacks picture {missing}")


# What the readers of archives, pictures and numbers raise for bytes that are none of theirs.
_DAMAGE = (
    *(
        OSError,
        ValueError,
        KeyError,
        TypeError,
        SyntaxError,
        EOFError,
        RuntimeError,
        AttributeError,
        MemoryError,
    ),
    *(tokenize.TokenError, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    Image.DecompressionBombError,
)

Found = Iterator[tuple[dict[str, Any], bytes]]


# How the files end that Pillow also reads without their end.
_PNG_END = b"IEND\xaeB`\x82"


def _require_end(plan: RunPlan, path: Path, content: bytes) -> None:
    """Raises DataError for a picture that was cut off, if only by a byte."""
    if plan.image_format == "png":
        whole = content.endswith(_PNG_END)
    else:
        whole = len(content) == int.from_bytes(content[4:8], "little") + 8
    if not whole:
        raise DataError(f"{str(path)!r} is damaged: a picture in it is cut off")


def _tar(plan: RunPlan, path: Path) -> Found:
    if path.stat().st_size % tarfile.RECORDSIZE:
        raise DataError(f"{str(path)!r} is damaged: it is cut off")
    with tarfile.open(path, "r:") as tar:
        content: dict[str, bytes] = {}
        for member in tar:
            file = tar.extractfile(member)
            content[member.name.partition(".")[2]] = file.read() if file else b""
            if len(content) == 3:
                facts = json.loads(content["json"])
                told = content["cls" if plan.key == "labels" else "txt"].decode()
                if told != str(facts[plan.key.removesuffix("s")]):
                    raise DataError(f"{str(path)!r} says two things of what picture {facts['index']} shows")
                yield facts, content[plan.image_format]
                content = {}
        if content:
            raise DataError(f"{str(path)!r} ends within a picture")


def _parquet(plan: RunPlan, path: Path) -> Found:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield row, row["image"]["bytes"]
    except ArrowException as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from None


def _folder(plan: RunPlan, path: Path) -> Found:
    for line in (path / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        facts = json.loads(line)
        yield facts, (path / f"{facts['index']:09d}.{plan.image_format}").read_bytes()


def _npz(plan: RunPlan, path: Path, wanted: range) -> Iterator[Item]:
    classes = plan.key == "labels"
    labels = iter([int(n) for rows in read_rows(path, LABELS) for n in rows] if classes else [])
    index = wanted.start
    for rows in read_rows(path, IMAGES):
        for pixels in rows:
            yield Item(index, plan.seed + index, next(labels, ""), pixels)
            index += 1
