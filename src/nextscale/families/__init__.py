"""The model families, one folder each, and the loading of a model whose family is not known beforehand.

A family is a folder with a ``pipeline.py`` whose ``PIPELINE`` is its pipeline class. Nothing else has to know
about it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from nextscale.errors import CheckpointError
from nextscale.weights.layout import locate, read_config


def families() -> tuple[str, ...]:
    """The names of all families, in alphabetical order."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg))


def pipeline_class(family: str) -> Any:
    """The pipeline class of a family. Raises CheckpointError, naming the known ones, for an unknown name."""
    if family not in families():
        raise CheckpointError(f"unknown model family {family!r}; known: {', '.join(families())}")
    return import_module(f"{__name__}.{family}.pipeline").PIPELINE


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
    family = read_config(locate(name)).get("family")
    if not isinstance(family, str):
        raise CheckpointError(f"the config.json of {str(name)!r} names no model family")
    return pipeline_class(family).from_pretrained(name, device=device, dtype=dtype, **options)
