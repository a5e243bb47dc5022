"""The model families, one folder each, and the loading of a model whose family is not known beforehand.

A family is a folder with a ``pipeline.py`` whose ``PIPELINE`` is its pipeline class, and a ``checkpoint.py``
with ``OFFICIAL_REPO``, where its official files are published, and ``recognises(path)``, which looks at the
names in a weight file. Nothing else has to know about it.
"""

from __future__ import annotations

import inspect
import pkgutil
import reprlib
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from nextscale.errors import CheckpointError, NextscaleError
from nextscale.weights.layout import CONFIG, locate, read_config
from nextscale.weights.official import is_sharded

WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def families() -> tuple[str, ...]:
    """The names of all families, in alphabetical order."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg))


def pipeline_class(family: str) -> Any:
    """The pipeline class of a family. Raises CheckpointError, naming the known ones, for an unknown name."""
    if family not in families():
        raise CheckpointError(f"unknown model family {reprlib.repr(family)}; known: {', '.join(families())}")
    return import_module(f"{__name__}.{family}.pipeline").PIPELINE


def family_of(pipeline: Any) -> str:
    """The name of a pipeline's family."""
    return type(pipeline).__module__.removeprefix(f"{__name__}.").partition(".")[0]


# ------------------------------------------------------------------ the library's layout


def pretrained_family(name: str | Path) -> str:
    """The family of a model in the library's layout, as its ``config.json`` has it.

    Raises ModelNotFoundError or CheckpointError, naming what is wrong.
    """
    family = read_config(locate(name)).get("family")
    if not isinstance(family, str):
        raise CheckpointError(f"the {CONFIG} of {str(name)!r} names no model family")
    return family


def load_pretrained(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> Any:
    """A pipeline from a model in the library's layout, of whichever family its ``config.json`` names.

    options: further keywords of that family's ``from_pretrained``.
    Raises ModelNotFoundError or CheckpointError, naming what is wrong.
    """
    family = pretrained_family(name)
    try:
        return pipeline_class(family).from_pretrained(name, device=device, dtype=dtype, **options)
    except NextscaleError:
        raise
    # What a pipeline's constructor raises for values that its configuration cannot have.
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        raise CheckpointError(
            f"the {CONFIG} of {str(name)!r} holds values that no model of the family {family} has: {reason}"
        ) from error


def pretrained_options(family: str) -> set[str]:
    """The keywords of a family's ``from_pretrained``, besides the name."""
    return _keywords(pipeline_class(family).from_pretrained)


# ------------------------------------------------------------------ official files


def official_repos() -> dict[str, str]:
    """The hub repository of every family's official files."""
    return {family: _checkpoint(family).OFFICIAL_REPO for family in families()}


def is_layout(folder: Path) -> bool:
    """Whether a folder is in the library's layout. Raises CheckpointError for a damaged ``config.json``."""
    return (folder / CONFIG).is_file() and "family" in read_config(folder)


def is_official(name: str | Path) -> bool:
    """Whether official files go by this name: a hub repository, a file, or a folder with a family's files."""
    path = Path(name)
    if path.is_dir():
        return not is_layout(path) and bool(recognise(path))
    return path.is_file() or str(name).lower() in {repo.lower() for repo in official_repos().values()}


def recognise(path: Path) -> tuple[str, ...]:
    """The families whose official transformers lie in a weight file, or in a folder and its folders.

    They are known by the names of their tensors; no numbers are read.
    Raises CheckpointError for a file that is no weight file; among those of a folder such are passed over.
    """
    if not path.is_dir():
        return tuple(sorted(_recognising(path)))
    found: set[str] = set()
    for weights in _weights_in(path):
        with suppress(CheckpointError):
            found |= _recognising(weights)
    return tuple(sorted(found))


def _recognising(weights: Path) -> set[str]:
    found, problems = set(), []
    for family in families():
        try:
            if _checkpoint(family).recognises(weights):
                found.add(family)
        except CheckpointError as problem:  # perhaps its tensors are nested, which other families know
            problems.append(problem)
    if len(problems) == len(families()):
        raise problems[0]
    return found


def _weights_in(folder: Path) -> Iterator[Path]:
    """Weight files of a folder and of the folders in it; those that an index joins count as their folder."""
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if is_sharded(place):
            yield place
        yield from sorted(p for p in place.iterdir() if p.is_file() and p.suffix in WEIGHT_SUFFIXES)


def official_family(source: str | Path, options: Iterable[str] = ()) -> str:
    """The family of official files in a place, or on the hub.

    options: keywords of ``from_official`` that are wanted; they tell where the place alone does not, because
        it holds several models or cannot be looked into.
    Raises CheckpointError if nothing tells, naming what was found.
    """
    path, wanted = Path(source), set(options)
    for family, repo in official_repos().items():
        if str(source).lower() == repo.lower() and not path.exists():
            return family
    candidates = recognise(path) if path.exists() else families()
    fitting = tuple(f for f in candidates if wanted <= official_options(f)) or candidates
    if len(fitting) == 1:
        return fitting[0]
    if not path.exists():
        raise CheckpointError(
            f"{str(source)!r} is no file, no folder, and none of the hub ids of official files: "
            f"{', '.join(official_repos().values())}"
        )
    if fitting:
        raise CheckpointError(
            f"{str(source)!r} holds models of several families ({', '.join(fitting)}); name the file of one"
        )
    raise CheckpointError(f"{str(source)!r} holds no transformer of a known family ({', '.join(families())})")


def official_options(family: str) -> set[str]:
    """The keywords of a family's ``from_official``, besides what it loads."""
    return _keywords(pipeline_class(family).from_official)


def _keywords(method: Any) -> set[str]:
    _, *names = inspect.signature(method).parameters
    return set(names)


def _checkpoint(family: str) -> Any:
    return import_module(f"{__name__}.{family}.checkpoint")
