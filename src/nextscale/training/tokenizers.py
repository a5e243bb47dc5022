"""Trained tokenizers for the training of transformers, from runs, models and official files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nextscale.errors import CheckpointError, GridError, InvalidArgumentError
from nextscale.families.infinity import checkpoint as infinity_files
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.var import checkpoint as var_files
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.nn.placement import Placement
from nextscale.scales import Grid, ScaleSchedule
from nextscale.training.cache import AnyTokenizer
from nextscale.training.reconstruction import Tokenizer
from nextscale.training.sizes import Sides, Size, cells_of, fit_scales
from nextscale.training.wording import named
from nextscale.weights.files import check_shapes
from nextscale.weights.layout import load_module, locate


def load_tokenizer(source: str | Path, placement: Placement) -> AnyTokenizer:
    """A trained tokenizer from its folder, a run or model folder that has one, or a model's name."""
    folder = Path(source)
    if not (folder / "model.safetensors").is_file():
        folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else locate(source) / "tokenizer"

    def make(config: Mapping[str, Any]) -> AnyTokenizer:
        if "bits" in config:
            return InfinityTokenizer(InfinityTokenizerConfig(**config))
        return VARTokenizer(VARTokenizerConfig(**config))

    return load_module(make, folder, placement)


def open_tokenizer(
    kind: type[Tokenizer],
    source: str | Path,
    placement: Placement,
    *,
    size: Size | None = None,
    scales: Sequence[int | Grid] | None = None,
    initial: ScaleSchedule | None = None,
    token_bits: int | None = None,
) -> Tokenizer:
    """A tokenizer of the recipe's kind, with the scales that a transformer is to be trained on.

    source: as for :func:`load_tokenizer`, or an official file or a folder with one.
    size, scales: of the pictures and the latent; left out, they are the tokenizer's own, or, of an official
        file, which has none, those of ``initial``.
    token_bits: of the transformer to start from, which tells of official bitwise files whether a token is
        several cells.
    Raises CheckpointError for a tokenizer of the other kind or of other sizes, InvalidArgumentError where
    sizes and scales do not fit.
    """
    file = _official_file(kind, Path(source))
    if file is None:
        tokenizer = _of_kind(kind, load_tokenizer(source, placement), source)
    else:
        tokenizer = _official(kind, file, placement, token_bits)
    own = None if file is not None else tokenizer.schedule
    if size is not None or scales is not None:
        return with_scales(tokenizer, _fitting(tokenizer, size, scales), source)
    if own is not None:
        return tokenizer
    if initial is None:
        raise InvalidArgumentError(
            f"the tokenizer {str(source)!r} has no scales of its own; say which with {named('scales')}, as "
            f"in 1,2,3,4,5,6,8,10,13,16, or with the {named('size')} of the pictures"
        )
    return with_scales(tokenizer, tuple(initial.sides), source)


def stride_of(tokenizer: AnyTokenizer) -> int:
    """Pixels per cell of the transformer's grids along a side."""
    config = tokenizer.config
    return config.reduction * (config.patch if isinstance(config, InfinityTokenizerConfig) else 1)


def with_scales(tokenizer: Tokenizer, sides: Sides, source: str | Path) -> Tokenizer:
    """Make the same tokenizer for another list of scales, on which its weights do not depend.

    With one exception: raises CheckpointError if it has a convolution for every scale and there are
    more or fewer.
    """
    config: Any = replace(tokenizer.config, patch_nums=sides)
    with torch.device("meta"):
        other = type(tokenizer)(config)
    weights = tokenizer.state_dict()
    check_shapes(other, weights, source=str(source), hint="It has weights for its own number of scales alone")
    other.load_state_dict(weights, assign=True)
    return other.eval().requires_grad_(False)


def _fitting(tokenizer: AnyTokenizer, size: Size | None, scales: Sequence[int | Grid] | None) -> Sides:
    """The scales for a size, which are the published ones of its family where there are any."""
    stride = stride_of(tokenizer)
    if isinstance(tokenizer, InfinityTokenizer) and scales is None and size is not None:
        h, w = cells_of(size, stride)
        unset = replace(tokenizer.config, patch_nums=None)
        try:
            with torch.device("meta"):
                patch = tokenizer.config.patch
                published = InfinityTokenizer(unset).schedule_for((h * patch, w * patch))
            return tuple(published.sides)
        except GridError:
            pass
    return fit_scales(size, scales, stride)[1]


def _official_file(kind: type[Tokenizer], path: Path) -> Path | None:
    """The official tokenizer in a place, if it is one of those."""
    if path.is_file():
        return path
    if not path.is_dir() or (path / "tokenizer").is_dir() or (path / "model.safetensors").is_file():
        return None
    pattern = "infinity_vae_*.pth" if kind is InfinityTokenizer else var_files.TOKENIZER_FILE
    found = sorted(path.glob(pattern))
    return found[0] if len(found) == 1 else None


def _official(kind: type[Tokenizer], file: Path, placement: Placement, token_bits: int | None) -> Tokenizer:
    loaded: AnyTokenizer
    if kind is InfinityTokenizer:
        loaded = infinity_files.load_tokenizer(file, placement, token_bits=token_bits)
    else:
        loaded = var_files.load_tokenizer(file, placement, VARTokenizerConfig().patch_nums)
    return _of_kind(kind, loaded, file)


def _of_kind(kind: type[Tokenizer], tokenizer: AnyTokenizer, source: str | Path) -> Tokenizer:
    """The tokenizer, if it is of the recipe's kind."""
    if isinstance(tokenizer, kind):
        return tokenizer
    needs = "bits" if kind is InfinityTokenizer else "a codebook"
    other = "without" if kind is InfinityTokenizer else "with"
    raise CheckpointError(
        f"the recipe needs a tokenizer of {needs}, and {str(source)!r} is of the other kind; take a recipe "
        f"{other} '-bits' in its name"
    )
