"""What the pipelines of all families share: seeds, guidance arguments, batches, and the outcome."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.guidance.cfg import ClassifierFreeGuidance
from nextscale.guidance.schedules import StrengthLike
from nextscale.guidance.ssg import ScaledSpatialGuidance

OutputType = Literal["pil", "pt", "np"]
SEED_LIMIT = 2**63


@dataclass(frozen=True)
class GenerationOutput:
    """What a pipeline returns.

    images: PIL images (``"pil"``), a float32 tensor ``(B, 3, H, W)`` in [0, 1] (``"pt"``), or a float32 array
        ``(B, H, W, 3)`` in [0, 1] (``"np"``).
    tokens: int64 ``(B, h, w)`` per step, on the CPU. seeds: one per image.
    settings: everything needed to make these images again, as JSON can hold it (``None`` values are defaults).
    """

    images: Any
    tokens: list[Tensor]
    seeds: list[int]
    settings: dict[str, Any]


def resolve_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed per image: 7 means 7, 8, 9, …; a list is taken as it is; ``None`` draws fresh ones."""
    if seed is None:
        seed = secrets.randbelow(2**31)
    values = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
    if len(values) != count:
        raise InvalidArgumentError(f"{len(values)} seeds for {count} images; give one number or one seed per image")
    for s in values:
        if isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < SEED_LIMIT:
            raise InvalidArgumentError(f"a seed is a whole number from 0 up to 2^63, got {s!r}")
    return values


def resolve_ssg(
    ssg: float | ScaledSpatialGuidance | None, defaults: Mapping[str, Any]
) -> ScaledSpatialGuidance | None:
    """``None`` (off), a strength, or a full description; what that leaves open comes from the model."""
    if ssg is None:
        return None
    if isinstance(ssg, (int, float)) and not isinstance(ssg, bool):
        return ScaledSpatialGuidance(float(ssg))
    if not isinstance(ssg, ScaledSpatialGuidance):
        raise InvalidArgumentError(f"ssg is a number, a ScaledSpatialGuidance or None, got {ssg!r}")
    return ssg.with_defaults(defaults.get("ssg", {}).get("beta"))


def resolve_cfg(scale: StrengthLike | ClassifierFreeGuidance, convention: Any) -> ClassifierFreeGuidance:
    """A strength under the family's convention, or a full description."""
    if isinstance(scale, ClassifierFreeGuidance):
        return scale
    return ClassifierFreeGuidance(scale, convention=convention)


def spans(count: int, batch_size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``batch_size``."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidArgumentError(f"batch_size must be a positive whole number, got {batch_size!r}")
    yield from (slice(i, min(i + batch_size, count)) for i in range(0, count, batch_size))


def check_output_type(output_type: str) -> None:
    if output_type not in get_args(OutputType):
        raise InvalidArgumentError(
            f"unknown output_type {output_type!r}; known: {', '.join(get_args(OutputType))}"
        )


def convert_images(images: Tensor, output_type: str) -> Any:
    """Pictures ``(B, 3, H, W)`` in [-1, 1] to what was asked for; 8-bit values are rounded, not cut off."""
    unit = (images.float().cpu() + 1) / 2
    if output_type == "pt":
        return unit
    last = unit.permute(0, 2, 3, 1)
    if output_type == "np":
        return last.numpy()
    return [Image.fromarray(p.numpy()) for p in (last * 255).round().to(torch.uint8)]
