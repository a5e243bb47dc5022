"""Fine-tuning: a transformer to start from, and what of it a new one takes over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.errors import CheckpointError
from nextscale.families import WEIGHT_SUFFIXES, is_official, recognise
from nextscale.families.infinity import checkpoint as infinity_files
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.var import checkpoint as var_files
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.nn.placement import Placement
from nextscale.scales import Grid, ScaleSchedule
from nextscale.training.next_scale import Transformer
from nextscale.training.wording import named
from nextscale.weights.digest import weights_digest
from nextscale.weights.files import check_shapes
from nextscale.weights.layout import load_module, locate, read_config
from nextscale.weights.official import is_sharded

CLASS_TABLE = "class_emb.weight"  # one row per class, and one for no class


@dataclass(frozen=True)
class Initial(Generic[Transformer]):
    """A trained transformer to start from. source: as it was named. official: whether its files are."""

    model: Transformer
    source: str
    official: bool

    @property
    def digest(self) -> str:
        """Digest its weights."""
        return weights_digest(self.model)

    def fill(self, model: Transformer, sizes: str) -> str:
        """Copy the weights into a transformer, all that do not depend on the number of classes or the scales.

        With another number of classes, of their table the row for no class is copied, and the others stay as
        they are. With other scales, VAR's tables of positions are resized; see :func:`fit_positions`. sizes:
        the likely cause where another size differs, which raises CheckpointError. Returns what was done, in a
        line.
        """
        theirs, ours = dict(self.model.state_dict()), model.state_dict()
        new: list[str] = []
        table = ours.get(CLASS_TABLE)
        if table is not None and CLASS_TABLE in theirs and len(theirs[CLASS_TABLE]) != len(table):
            before, now = len(theirs[CLASS_TABLE]) - 1, len(table) - 1
            new.append(
                f"the table of classes is new, for {now} instead of {before}, but for its row for no class"
            )
            null = theirs[CLASS_TABLE][-1:]
            if null.shape[1:] == table.shape[1:]:
                theirs[CLASS_TABLE] = table.clone()
                theirs[CLASS_TABLE][-1:] = null
        changed = len(new)
        if isinstance(self.model, VARTransformer) and isinstance(model, VARTransformer):
            before_scales, scales = self.model.schedule, model.schedule
            if before_scales != scales:
                new.append(f"the tables of positions are resized from the grids {before_scales} to {scales}")
                fitted = fit_positions(theirs, before_scales, scales)
                theirs |= fitted
                changed += len(fitted)
        check_shapes(model, theirs, source=self.source, hint=sizes)
        model.load_state_dict(theirs)
        taken = f"{len(theirs) - changed} of its" if changed else "all of its"
        return "; ".join([f"starts from {self.source}: {taken} {len(theirs)} tensors are taken over", *new])


def fit_positions(
    weights: Mapping[str, Tensor], before: ScaleSchedule, now: ScaleSchedule
) -> dict[str, Tensor]:
    """Resize VAR's tables of positions, ``(1, L, C)``, and of scales, ``(K, C)``, to other scales.

    Every grid takes after the one of ``before`` with the most similar number of cells: its positions,
    bilinearly resized, and its row of the table of scales.
    """
    like = [
        min(range(before.num_steps), key=lambda k: abs(math.log(before.lengths[k] / n))) for n in now.lengths
    ]
    maps = weights["pos_1LC"].split(list(before.lengths), dim=1)
    positions = [_resized(maps[k], before[k], grid) for k, grid in zip(like, now, strict=True)]
    return {
        "pos_start": _resized(weights["pos_start"], before[0], now[0]),
        "pos_1LC": torch.cat(positions, dim=1),
        "lvl_embed.weight": weights["lvl_embed.weight"][like],
    }


def _resized(positions: Tensor, before: Grid, now: Grid) -> Tensor:
    """A table of one grid, ``(1, h w, C)``, for another grid."""
    if before == now:
        return positions
    picture = positions.unflatten(1, before).permute(0, 3, 1, 2)
    resized = F.interpolate(picture.float(), size=now, mode="bilinear", align_corners=False)
    return resized.to(positions.dtype).flatten(2).transpose(1, 2)


def open_initial_var(
    source: str | Path, placement: Placement, sides: tuple[int | Grid, ...] | None
) -> Initial[VARTransformer]:
    """VAR's transformer to start from: of a run, a model or official files.

    sides: the scales of the run where they are known, in case that official tensors do not tell theirs.
    """

    def official(path: Path) -> VARTransformer:
        if sides is not None:
            with suppress(CheckpointError):
                return var_files.load_transformer(path, placement, sides)
        return var_files.load_transformer(path, placement)

    return _open("var", source, placement, lambda c: VARTransformer(VARTransformerConfig(**c)), official)


def open_initial_infinity(source: str | Path, placement: Placement) -> Initial[InfinityTransformer]:
    """Infinity's transformer to start from: of a run, a model or official files."""
    return _open(
        "infinity",
        source,
        placement,
        lambda c: InfinityTransformer(InfinityTransformerConfig(**c)),
        lambda path: infinity_files.load_transformer(path, placement),
    )


def _open(
    family: str,
    source: str | Path,
    placement: Placement,
    make: Callable[[Mapping[str, Any]], Transformer],
    official: Callable[[Path], Transformer],
) -> Initial[Transformer]:
    if is_official(source):
        return Initial(official(_official_file(family, Path(source))), str(source), True)
    folder = locate(source)
    other = read_config(folder).get("family")
    if other != family:
        bits = "with" if other == "infinity" else "without"
        raise CheckpointError(
            f"{str(source)!r} is a model of the family {other!r}, and the recipe is for {family!r}; take a "
            f"recipe {bits} '-bits' in its name"
        )
    return Initial(load_module(make, folder / "transformer", placement), str(source), False)


def _official_file(family: str, path: Path) -> Path:
    """The one official transformer of a family in a place. Raises CheckpointError if there is none."""
    if not path.exists():
        raise CheckpointError(
            f"{str(path)!r} is the hub's; {named('initial')} takes files: write them with nextscale convert "
            f"{path} FOLDER, and give FOLDER"
        )
    if path.is_file() or is_sharded(path):
        return path
    found = []
    for inner in sorted(path.iterdir()):
        if is_sharded(inner) or (inner.is_file() and inner.suffix in WEIGHT_SUFFIXES):
            with suppress(CheckpointError):
                found += [inner] if family in recognise(inner) else []
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise CheckpointError(
            f"{str(path)!r} should hold one transformer of the family {family}, found {names}; name its file"
        )
    return found[0]
