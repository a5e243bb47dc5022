"""What the pipelines of all families share: seeds, guidance arguments, batches, and the outcome."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

import torch
from PIL import Image
from torch import Tensor

from nextscale import __version__
from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.generation.finite import (
    WatchedDraws,
    check_decoded,
    check_pictures,
    check_steps,
    finite_rows,
)
from nextscale.generation.loop import Session, StepCallback, generate
from nextscale.generation.tokens import Drawer, Filters
from nextscale.generation.version import VERSION
from nextscale.guidance.base import GuidanceChain
from nextscale.guidance.cfg import ClassifierFreeGuidance, Convention, Ramp
from nextscale.guidance.schedules import StrengthLike, is_single
from nextscale.guidance.ssg import DEFAULT_BETA, ScaledSpatialGuidance, as_ssg
from nextscale.kernels import constant_weights
from nextscale.pixels import to_rgb
from nextscale.scales import Grid

OutputType = Literal["pil", "pt", "np"]
RANGE_SLACK = 1e-3  # beyond [-1, 1], for pictures that were rounded to 8 or 16 bits of a float
SEED_LIMIT = 2**64  # the bits that noise.py hashes

Method = TypeVar("Method", bound="ClassifierFreeGuidance | ScaledSpatialGuidance | None")


@dataclass(frozen=True)
class GenerationOutput:
    """What a pipeline returns.

    images: PIL images (``"pil"``), a float32 tensor ``(B, 3, H, W)`` in [0, 1] (``"pt"``), or a float32
        array ``(B, H, W, 3)`` in [0, 1] (``"np"``).
    tokens: int64 ``(B, h, w)`` per step, on the CPU. seeds: one per image.
    settings: everything needed to make these images again, as JSON can hold it (``None`` values are
        defaults).
    """

    images: Any
    tokens: list[Tensor]
    seeds: list[int]
    settings: dict[str, Any]


def check_pair(transformer: Any, tokenizer: Any) -> None:
    """Raises CheckpointError unless a transformer draws the codes of a tokenizer, on its grids."""
    for field in ("z_channels", "vocab_size", "schedule"):
        ours, theirs = (getattr(m.config, field) for m in (transformer, tokenizer))
        if ours != theirs:
            what = {"schedule": "their grids are"}.get(field, f"{field} is")
            raise CheckpointError(
                f"transformer and tokenizer do not belong together: {what} {ours} and {theirs}"
            )


def resolve_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed per image: 7 means 7, 8, 9, …; a list is taken as it is; ``None`` draws fresh ones."""
    if seed is None:
        seed = secrets.randbelow(2**31)
    given: Any = seed.tolist() if hasattr(seed, "tolist") else seed  # arrays, tensors and their numbers
    several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    values = [_seed(s) for s in given] if several else list(range(_seed(given), _seed(given) + count))
    if len(values) != count:
        raise InvalidArgumentError(
            f"{len(values)} seeds for {count} images; give one number or one seed per image"
        )
    if values and values[-1] >= SEED_LIMIT:
        raise InvalidArgumentError(f"seeds end below 2^64, but {count} of them from {values[0]} go beyond")
    return values


def _seed(value: Any) -> int:
    try:
        number = operator.index(value) if not isinstance(value, bool) else -1
    except TypeError:
        number = -1
    if not 0 <= number < SEED_LIMIT:
        raise InvalidArgumentError(f"a seed is a whole number from 0 up to 2^64, got {value!r}")
    return number


def resolve_ssg(
    ssg: StrengthLike | ScaledSpatialGuidance | None, defaults: Mapping[str, Any]
) -> ScaledSpatialGuidance | None:
    """``None`` (off), a strength, or a full description; what that leaves open comes from the model."""
    if ssg is None:
        return None
    described = as_ssg(ssg)
    if described is None:
        return None
    # The settings of a picture must not depend on a constant that may change, so all are written out.
    return described.with_defaults(default_ssg(defaults))


def default_ssg(defaults: Mapping[str, Any]) -> ScaledSpatialGuidance:
    """What SSG without arguments is with a model, from the ``ssg`` among its defaults.

    That is a mapping with all settings, or with some of them (older folders name ``beta`` alone); the
    library's defaults fill it up. Raises InvalidArgumentError for settings that are none.
    """
    stored = {k: v for k, v in (defaults.get("ssg") or {}).items() if v is not None}
    return ScaledSpatialGuidance.from_dict({"beta": DEFAULT_BETA, **stored})


def resolve_cfg(
    scale: StrengthLike | ClassifierFreeGuidance, convention: Convention, ramp: Ramp | None = None
) -> ClassifierFreeGuidance:
    """A strength under the family's convention, or a full description; ``ramp`` spreads a single number."""
    if isinstance(scale, ClassifierFreeGuidance):
        return scale
    described = ClassifierFreeGuidance(scale, convention=convention)
    return replace(described, ramp=ramp) if ramp and is_single(described.scale) else described


def with_values(method: Method, grids: Sequence[Grid]) -> Method:
    """The same guidance with the values of a callable strength, one per step, in the callable's place.

    They are asked for once, so that all batches of a call use the same, and can be stored.
    """
    if isinstance(method, ClassifierFreeGuidance) and callable(method.scale):
        return replace(method, scale=cast("tuple[float, ...]", method.scales(grids)))
    if isinstance(method, ScaledSpatialGuidance) and callable(method.beta):
        return replace(method, beta=cast("tuple[float, ...]", method.betas(grids)))
    return method


def call_settings(
    *,
    family: str,
    model: str,
    seeds: Sequence[int],
    cfg: ClassifierFreeGuidance,
    ssg: ScaledSpatialGuidance | None,
    filters: Filters,
    sampler: str,
    dtype: torch.dtype,
    **own: Any,
) -> dict[str, Any]:
    """What every family stores of a call, as JSON can hold it, and what a family adds of its ``own``."""
    return {
        "nextscale": __version__,
        "family": family,
        "model": model,
        **own,
        "seeds": list(seeds),
        "guidance_scale": cfg.to_dict(),
        "ssg": ssg.to_dict() if ssg else None,
        "top_k": filters.top_k,
        "top_p": filters.top_p,
        "min_p": filters.min_p,
        "temperature": filters.temperature,
        "sampler": sampler,
        "sampler_version": VERSION,
        "dtype": str(dtype).removeprefix("torch."),
    }


def given_maps(maps: Sequence[Tensor], grids: Sequence[Grid], count: int) -> list[Tensor]:
    """Token maps of the first scales, checked already but for their number, for ``count`` pictures.

    maps: ``(B, h, w, ...)`` or flat ``(B, h * w, ...)`` with B = 1, one for all pictures, or B = count.
    Returns int64 ``(count, h, w, ...)`` tensors.
    """
    shaped = []
    for tokens, (h, w) in zip(maps, grids, strict=False):
        rest = tokens.shape[3:] if tuple(tokens.shape[1:3]) == (h, w) else tokens.shape[2:]
        shaped.append(tokens.reshape(len(tokens), h, w, *rest).long())
    if shaped and len(shaped[0]) not in (1, count):
        raise InvalidArgumentError(
            f"given_tokens are for {len(shaped[0])} pictures, but {count} are made; give one or {count}"
        )
    return [t.expand(count, *t.shape[1:]) for t in shaped]


def spans(count: int, batch_size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``batch_size``."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidArgumentError(f"batch_size must be a positive whole number, got {batch_size!r}")
    yield from (slice(i, min(i + batch_size, count)) for i in range(0, count, batch_size))


class Drawn(NamedTuple):
    """A batch at its end: one token tensor per grid, and the latent ``(B, z, h, w)``.

    finite: whose logits were, bool ``(steps, B)``.
    """

    tokens: list[Tensor]
    latent: Tensor
    finite: Tensor


def draw_batch(
    session: Session, draw: Drawer, guidance: GuidanceChain, on_step: StepCallback | None = None
) -> Drawn:
    """Run one batch to its end."""
    watched = WatchedDraws(draw)
    tokens = generate(session, guidance, watched, on_step)
    return Drawn(tokens, session.feature_map, watched.flags())


def draw_batches(
    count: int,
    batch_size: int,
    draw: Callable[[slice], Drawn],
    decode: Callable[[Tensor], Tensor],
    output_type: OutputType,
    dtype: torch.dtype,
) -> tuple[Any, list[Tensor]]:
    """Make ``count`` pictures, at most ``batch_size`` at a time.

    draw: draws the batch that is this slice of the pictures. Nothing but what it returns should stay alive: a
    KV cache would only lie beside what decoding needs.
    decode: a finished latent to pictures ``(B, 3, H, W)`` in [-1, 1]. dtype: of the model, for messages.
    Returns all pictures as ``output_type`` says, and all tokens (one tensor per grid) on the CPU. Raises
    NotFiniteError, naming the picture, at the end of a batch with logits or pixels that are NaN or infinite.
    """
    images, tokens = [], []
    with constant_weights():
        for span in spans(count, batch_size):
            drawn = draw(span)
            decoded = decode(drawn.latent)
            whole = finite_rows(decoded)
            pictures = _encoded(decoded, output_type)
            # Fetched at the end, since the first fetch waits for all until here.
            images.append(_fetched(pictures))
            tokens.append([_fetched(t) for t in drawn.tokens])
            grids = [(int(t.shape[1]), int(t.shape[2])) for t in drawn.tokens]
            check_steps(_fetched(drawn.finite), list(enumerate(grids)), dtype, first=span.start)
            check_pictures(_fetched(whole), dtype, first=span.start)
    return _packed(_joined(images), output_type), [_joined(maps) for maps in zip(*tokens, strict=True)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _fetched(tensor: Tensor) -> Tensor:
    """On the CPU; from a GPU by way of memory that the system cannot move, which is several times as fast."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


def image_tensor(
    images: Tensor | Image.Image | Sequence[Image.Image], size: tuple[int, int] | None = None
) -> Tensor:
    """PIL images of ``size`` (height, width) as a float32 tensor ``(B, 3, H, W)`` in [-1, 1]; tensors as is.

    size: by default that of the first. :mod:`nextscale.pixels` says what other kinds than 8-bit RGB become.
    Raises InvalidArgumentError for other sizes, other things, or none at all, and for tensors that are not
    finite or reach beyond [-1, 1]; DataError for pictures that are refused or broken.
    """
    if isinstance(images, Tensor):
        _check_range(images)
        return images
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    if not all(isinstance(p, Image.Image) for p in pictures):
        raise InvalidArgumentError(
            f"images are PIL images or a tensor (B, 3, H, W) in [-1, 1], got {type(images).__name__} of "
            f"{type(pictures[0]).__name__}"
        )
    if not pictures:
        raise InvalidArgumentError("no pictures were given")
    pictures = [to_rgb(p, getattr(p, "filename", "") or f"picture {i}") for i, p in enumerate(pictures)]
    h, w = size or (pictures[0].height, pictures[0].width)
    wrong = next((p.size for p in pictures if p.size != (w, h)), None)
    if wrong is not None:
        raise InvalidArgumentError(
            f"pictures must be {w}x{h} pixels for this model, got {wrong[0]}x{wrong[1]}"
        )
    stacked = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures]
    return torch.stack(stacked).view(-1, h, w, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


def _check_range(images: Tensor) -> None:
    """Raise InvalidArgumentError, naming the range that was found, unless all numbers are in [-1, 1]."""
    if not images.is_floating_point() or images.numel() == 0:
        return  # the tokenizer says what is wrong with these
    remedy = "pictures are in [-1, 1], and x / 127.5 - 1 makes such ones of 8-bit pixels"
    if not bool(images.isfinite().all()):
        count = int((~images.isfinite()).sum())
        raise InvalidArgumentError(
            f"{count:,} of the pictures' {images.numel():,} numbers are not finite (NaN, infinite); {remedy}"
        )
    low, high = float(images.min()), float(images.max())
    if low < -1 - RANGE_SLACK or high > 1 + RANGE_SLACK:
        raise InvalidArgumentError(f"the pictures' numbers are from {low:.4g} to {high:.4g}; {remedy}")


def check_output_type(output_type: str) -> None:
    if output_type not in get_args(OutputType):
        raise InvalidArgumentError(
            f"unknown output_type {output_type!r}; known: {', '.join(get_args(OutputType))}"
        )


def convert_images(images: Tensor, output_type: OutputType) -> Any:
    """Pictures ``(B, 3, H, W)`` in [-1, 1] to what was asked for; 8-bit values are rounded, not cut off.

    Raises NotFiniteError for pictures that are NaN or infinite.
    """
    check_decoded(_fetched(finite_rows(images)))
    return _packed(_encoded(images, output_type).cpu(), output_type)


def _encoded(images: Tensor, output_type: OutputType) -> Tensor:
    """The numbers of what was asked for, where the pictures are: 8-bit ones are quicker to fetch."""
    unit = (images.float() + 1) / 2
    if output_type == "pt":
        return unit
    last = unit.permute(0, 2, 3, 1)
    if output_type == "pil":
        last = (last * 255).round().to(torch.uint8)
    return last.contiguous()


def _packed(numbers: Tensor, output_type: OutputType) -> Any:
    if output_type == "pil":
        return [Image.fromarray(p.numpy()) for p in numbers]
    return numbers.numpy() if output_type == "np" else numbers
