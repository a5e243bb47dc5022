"""What a caller may write for sizes, the place of guidance and given tokens, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nextscale.errors import InvalidArgumentError, warn
from nextscale.families.infinity.schedules import schedule_for, snap
from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.generation.given import check_number
from nextscale.generation.request import given_maps
from nextscale.scales import Grid, ScaleSchedule

Grids = ScaleSchedule | Sequence[int | Grid]

ON_LOGITS = 0


def resolve_schedule(
    default: ScaleSchedule | str,
    *,
    aspect_ratio: float | str | None = None,
    pixels: str | None = None,
    height: int | None = None,
    width: int | None = None,
    schedule: Grids | None = None,
) -> ScaleSchedule:
    """The grids for one of three ways to name a size: by ratio and budget, by its sides, or by themselves.

    default: the only schedule of a model that has just one; or the pixel budget of one that takes all
        published sizes, which are square where nothing else is said.
    The others are those of :meth:`~nextscale.families.infinity.pipeline.InfinityPipeline.__call__`.

    Raises InvalidArgumentError if the ways are mixed, or something is named that is not there.
    """
    by_ratio = aspect_ratio is not None or pixels is not None
    by_sides = height is not None or width is not None
    if by_ratio + by_sides + (schedule is not None) > 1:
        raise InvalidArgumentError(
            "name the size in one way: aspect_ratio and pixels, or height and width, or schedule"
        )
    if schedule is not None:
        return schedule if isinstance(schedule, ScaleSchedule) else ScaleSchedule.from_sides(schedule)
    if isinstance(default, ScaleSchedule):
        if by_ratio or by_sides:
            raise InvalidArgumentError(
                f"this model makes pictures of one size, with the grids {default}; leave the size out"
            )
        return default
    if by_sides:
        return _snapped(height, width)
    return schedule_for(1.0 if aspect_ratio is None else aspect_ratio, pixels or default)


def _snapped(height: int | None, width: int | None) -> ScaleSchedule:
    if height is None or width is None:
        raise InvalidArgumentError(f"give both height and width, got {height} and {width}")
    found = snap(height, width)
    if found.size != (height, width):
        h, w = found.size
        warn(
            f"{width}x{height} pixels (width x height) is no size of this model, so the nearest, {w}x{h}, "
            f"is made"
        )
    return found.schedule


def resolve_layers(given: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Where guidance acts: 0 on the logits, -k on the output of the k-th last of ``depth`` blocks.

    Raises InvalidArgumentError for anything else; the official code's 1 is explained.
    """
    layers = tuple(given) if isinstance(given, Sequence) else (given,)
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise InvalidArgumentError(f"guidance_layer is a whole number or several, got {given!r}")
        if layer == 1:
            raise InvalidArgumentError(
                "guidance_layer 1 means guidance on probabilities in the official code, which announces it "
                "but never applies it; use 0 for the logits, or guidance_scale=1 for no guidance"
            )
        if not -depth < layer <= 0:
            raise InvalidArgumentError(
                f"guidance_layer must be 0 (the logits) or -1 to -{depth - 1} (blocks, counted from the "
                f"last), got {layer}"
            )
    if not layers:
        raise InvalidArgumentError("guidance_layer is empty; for no guidance use guidance_scale=1")
    return layers


def given_bits(
    tokenizer: InfinityTokenizer, maps: Sequence[Tensor], grids: ScaleSchedule, count: int
) -> list[Tensor]:
    """Given bits of the first scales, tokens or cells, as tokens ``(count, h, w, D)``.

    Raises InvalidArgumentError for more maps than scales, and where shapes or values are wrong.
    """
    check_number(maps, grids)
    if not maps:
        return []
    tokenizer.partial_sums(maps, grids)  # raises where shapes or values are wrong
    bits = tokenizer.config.token_bits
    tokens = [m if m.shape[-1] == bits else tokenizer.tokens(m) for m in maps]
    return given_maps(tokens, grids.grids, count)
