"""What a run is made of, by which a checkpoint is known to be of it."""

from __future__ import annotations

from torch import nn

from nextscale.scales import ScaleSchedule
from nextscale.training.data import ImageSource
from nextscale.training.digest import pictures_digest
from nextscale.training.sizes import Sides, as_text
from nextscale.weights.digest import weights_digest

SHOWN_DIGEST = 16  # characters


def run_origin(
    kind: str, recipe: object, pictures: ImageSource, sides: Sides = (), **weights: nn.Module | None
) -> dict[str, str]:
    """Say what a run is made of, for its checkpoint: an entry per argument, in the words of a message."""
    origin = {"kind": kind, "size": as_text(pictures.size)}
    if isinstance(recipe, str):
        origin["recipe"] = recipe
    for name, model in weights.items():
        origin[name] = f"of the digest {weights_digest(model)[:SHOWN_DIGEST]}" if model else "not given"
    if sides:
        origin["scales"] = str(ScaleSchedule.from_sides(sides))
    digest = pictures_digest(pictures)[:SHOWN_DIGEST]
    return origin | {"data": f"of {len(pictures)} pictures and the digest {digest}"}
