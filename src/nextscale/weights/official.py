"""What reading official checkpoints has in common: sizes from names and shapes, and sharded folders.

A family's ``checkpoint.py`` knows the names; here is how they are counted and required, how folders of
several files are read as one, and the order in which loading goes: names and shapes first, numbers last.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.nn.placement import Placement
from nextscale.weights.files import Module, build, check_shapes, read_json, read_weights, some
from nextscale.weights.hub import download

INDEX = "model.safetensors.index.json"
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
    return (path / INDEX).is_file() or (path / SINGLE).is_file()


def read_official(path: Path, *, unwrap: Sequence[str] = (), meta: bool = False) -> dict[str, Tensor]:
    """The tensors of a weight file, or of a folder of several files with an index, by name.

    unwrap, meta: see :func:`~nextscale.weights.files.read_weights`, which also names the errors.
    """
    if not path.is_dir():
        return read_weights(path, unwrap=unwrap, meta=meta)
    if not (path / INDEX).is_file():
        return read_weights(path / SINGLE, unwrap=unwrap, meta=meta)
    tensors: dict[str, Tensor] = {}
    for shard, names in _shards(path / INDEX).items():
        found = read_weights(path / shard, meta=meta)
        absent = [n for n in names if n not in found]
        if absent:
            raise CheckpointError(
                f"{path.name}/{shard} lacks {some(absent[:4])}, which {INDEX} says it holds; "
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
