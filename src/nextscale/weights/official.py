"""What reading official checkpoints has in common: sizes from names and shapes, and sharded folders.

A family's ``checkpoint.py`` knows the names; here is how they are counted and required, how folders of
several files are read as one, and the order in which loading goes: names and shapes first, numbers last.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.nn.placement import Placement
from nextscale.weights.files import Module, build, check_shapes, read_file, read_json, read_weights, some
from nextscale.weights.hub import download
from nextscale.whole import as_python

INDEX = "model.safetensors.index.json"
INDICES = "*.index.json"  # as other libraries call theirs
SINGLE = "model.safetensors"
LONGEST_NAME = 255  # of a file, on nearly every system


def count(names: Iterable[str], pattern: str) -> int:
    """How many different values the first group of ``pattern`` takes at the beginning of the names."""
    return len({m[1] for name in names if (m := re.match(pattern, name))})


def require(
    shapes: Mapping[str, Tensor], needed: Mapping[str, int], path: Path, what: str, *, cause: str = ""
) -> None:
    """The tensors that sizes are read from, by name and number of axes, are there and not empty.

    Raises CheckpointError saying that the file is not ``what``, and the likely ``cause`` where one is given.
    """
    absent = [n for n in needed if n not in shapes]
    cause = cause and f". {cause}"
    if absent:
        raise CheckpointError(
            f"{path.name} is not {what}: it lacks {', '.join(absent[:4])}; "
            f"its first names are {some(list(shapes)[:4])}{cause}"
        )
    for name, axes in needed.items():
        if shapes[name].ndim != axes or not shapes[name].numel():
            raise CheckpointError(
                f"{path.name} is not {what}: {name} has the shape {tuple(shapes[name].shape)}, "
                f"expected {axes} axes, none of them empty{cause}"
            )


def told(settings: Mapping[str, Any], kinds: Mapping[str, type], path: Path, remedy: str) -> dict[str, Any]:
    """Those of the settings that are there, compared with the kind each has to be of.

    Raises CheckpointError, with the remedy, for one of another kind.
    """
    found = {name: as_python(settings[name]) for name in kinds if name in settings}
    for name, value in found.items():
        of_kind = type(value) in ((float, int) if kinds[name] is float else (kinds[name],))
        if not of_kind:
            raise CheckpointError(
                f"the settings of {path.name} say {name} = {reprlib.repr(value)}, expected "
                f"{_KINDS[kinds[name]]}; {remedy.format(name=name)}"
            )
    return found


_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


def square_sides(counts: Sequence[int]) -> list[int] | None:
    """The sides of square grids of so many cells each; ``None`` where they may be of another shape.

    Numbers of cells tell no shapes: 4 can be 2x2 and 1x4. Grids of one picture have about its shape, so all
    of them beyond single cells would have to be m^2 times as wide as high; they can be only if m divides
    every side, as it does in 2, 4, 8, and in no published list.
    """
    sides = [math.isqrt(n) for n in counts]
    are_squares = [side * side for side in sides] == list(counts)
    return sides if are_squares and math.gcd(*(s for s in sides if s > 1)) < 2 else None


@contextmanager
def as_checkpoint_error(path: Path) -> Iterator[None]:
    """Sizes that no model can have are the file's fault, not an argument's."""
    try:
        yield
    except InvalidArgumentError as error:
        raise CheckpointError(f"{path.name} holds sizes that do not make a model: {error}") from None


def load_checked(
    make: Callable[[], Module],
    read: Callable[[bool], Mapping[str, Tensor]],
    placement: Placement,
    *,
    source: str,
    hint: str,
) -> Module:
    """A model from its tensors, in evaluation mode; nothing is allocated before names and shapes are right.

    read: gives the tensors under the model's names; with True on the meta device, for their shapes only.
    """
    with torch.device("meta"):
        expected = make()
    check_shapes(expected, read(True), source=source, hint=hint)
    return build(make, read(False), source=source, dtype=placement.dtype, device=placement.device, hint=hint)


# ------------------------------------------------------------------ one file or several


def is_sharded(path: Path) -> bool:
    """Whether a folder holds one set of weights: several files with an index, or ``model.safetensors``."""
    return (path / SINGLE).is_file() or any(path.glob(INDICES))


def weights_at(folder: Path, name: str) -> Path:
    """The file of this name in a folder, or the folder itself if it holds one set of weights."""
    return folder if is_sharded(folder) and not (folder / name).exists() else folder / name


def read_official(path: Path, *, unwrap: Sequence[str] = (), meta: bool = False) -> dict[str, Tensor]:
    """The tensors of a weight file, or of several files with an index, by name.

    path: a file, a folder with an index or ``model.safetensors``, or the index.
    unwrap, meta: see :func:`~nextscale.weights.files.read_weights`, which also names the errors.
    """
    weights = _one_of(path)
    return (
        _read_shards(weights, meta) if _is_index(weights) else read_weights(weights, unwrap=unwrap, meta=meta)
    )


def read_content(path: Path, *, meta: bool = False) -> dict[Any, Any]:
    """As :func:`read_official`, but nested as it is, with whatever else a file holds."""
    weights = _one_of(path)
    return _read_shards(weights, meta) if _is_index(weights) else read_file(weights, meta=meta)


def _is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def _one_of(path: Path) -> Path:
    """A weight file or the index of several: the path, or what a folder has."""
    if not path.is_dir():
        return path
    indices = sorted(path.glob(INDICES))
    if path / INDEX in indices or len(indices) == 1:
        return path / INDEX if path / INDEX in indices else indices[0]
    if indices:
        raise CheckpointError(
            f"{str(path)!r} has several sets of weights; name one of {some(i.name for i in indices)}"
        )
    if (path / ".metadata").is_file() and not (path / SINGLE).is_file():
        raise CheckpointError(
            f"{str(path)!r} is a distributed checkpoint; make one file of it with "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path.name} weights.pth"
        )
    return path / SINGLE


def _read_shards(index: Path, meta: bool) -> dict[str, Tensor]:
    folder = index.parent
    tensors: dict[str, Tensor] = {}
    for shard, names in _shards(index).items():
        found = read_weights(folder / shard, meta=meta)
        absent = [n for n in names if n not in found]
        if absent:
            raise CheckpointError(
                f"{folder.name}/{shard} lacks {some(absent[:4])}, which {index.name} says it holds; "
                f"download the folder again"
            )
        tensors |= {n: found[n] for n in names}
    return tensors


def _shards(index: Path) -> dict[str, list[str]]:
    """The files of an index, each with the names of its tensors."""
    where = f"{index.parent.name}/{index.name}"
    weight_map = read_json(index)
    weight_map = weight_map.get("weight_map") if isinstance(weight_map, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{where} is not the index of a sharded checkpoint: it has no weight_map")
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        plain = isinstance(file, str) and PurePosixPath(file).name == file and "\\" not in file
        if not plain or file in {"", ".."} or len(file) > LONGEST_NAME:
            raise CheckpointError(f"{where} points to {reprlib.repr(file)}, which is no file of its folder")
        shards.setdefault(file, []).append(name)
    if not shards:
        raise CheckpointError(f"{where} lists no tensors")
    return shards


def download_sharded(repo: str, folder: str) -> Path:
    """A folder of weight files of a hub repository, by its index; the local copy of the folder.

    Raises ModelNotFoundError if neither the cache nor the network has a file.
    """
    index = download(repo, f"{folder}/{INDEX}")
    for shard in _shards(index):
        download(repo, f"{folder}/{shard}")
    return index.parent
