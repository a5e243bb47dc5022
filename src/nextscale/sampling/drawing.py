"""Pictures of a run by number, with the same bits whatever the batch.

The last bits of a matrix product depend on the shape of the matrices and on the number of threads, and a last
bit can decide a token. So a run has one arithmetic: that of batches of ``group`` pictures, on one thread
where the processor computes. Larger batches are used only after they gave the same bits on this machine; on a
CPU with a group of 2 they usually do, on a GPU the group is the batch itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError, NotFiniteError, is_out_of_memory
from nextscale.generation.loop import StepInfo
from nextscale.sampling.plan import RunPlan

Note = Callable[[str], None]
CPU_GROUP = 2  # the smallest batch whose matrix products are computed like those of larger ones


@dataclass(frozen=True)
class RunPictures:
    """The pictures of a run by number.

    pipe: draws them. key, subjects: what they show; picture i shows ``subjects[i % len(subjects)]``.
    seed: of picture 0. arguments: of the pipeline's call.
    """

    pipe: Any
    key: str
    subjects: Sequence[Any]
    seed: int
    arguments: Mapping[str, Any]

    def subject(self, index: int) -> Any:
        return self.subjects[index % len(self.subjects)]

    def draw(self, wanted: Sequence[int], shape: int, digests: list[Any] | None = None) -> Tensor:
        """Pictures as float32 ``(n, 3, H, W)`` in [0, 1], computed as one batch of ``shape``.

        Fewer pictures than that are filled up with copies of the last one, which are thrown away.
        digests: one hash object for each picture, to take in every number behind it.
        Raises NotFiniteError, naming the picture, where logits or pixels are NaN or infinite.
        """
        padded = [*wanted, *[wanted[-1]] * (shape - len(wanted))]
        watch = _Watch(digests or [])
        try:
            out = self.pipe(
                [self.subject(i) for i in padded],
                seed=[self.seed + i for i in padded],
                batch_size=shape,
                output_type="pt",
                on_step=watch,
                **self.arguments,
            )
        except NotFiniteError as error:
            raise error.of(padded[error.picture]) from None
        images: Tensor = out.images[: len(wanted)]
        for digest, image in zip(digests or [], images, strict=False):
            digest.update(image.contiguous().numpy())
        return images


class _Watch:
    """A step callback that feeds digests."""

    def __init__(self, digests: Sequence[Any]) -> None:
        self.digests = digests

    def __call__(self, info: StepInfo) -> None:
        if self.digests:
            for digest, logits in zip(self.digests, info.guided.cpu(), strict=False):
                digest.update(logits.contiguous().numpy())


def to_uint8(images: Tensor) -> Any:
    """float ``(n, 3, H, W)`` in [0, 1] to a uint8 array ``(n, H, W, 3)``, rounded as single pictures are."""
    return (images.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()


@contextmanager
def fixed_arithmetic(device: torch.device) -> Iterator[None]:
    """One thread on a CPU, and no choice of algorithms by timing on a GPU: the same sums every time."""
    threads = torch.get_num_threads()
    kernels: AbstractContextManager[Any] = nullcontext()
    if device.type == "cuda":
        kernels = torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False)
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with kernels:
            yield
    finally:
        torch.set_num_threads(threads)


def arithmetic_of(pictures: RunPictures, count: int, shape: int) -> list[str]:
    """A digest of every number behind each of the first ``count`` pictures, drawn in batches of ``shape``."""
    found = []
    for first in range(0, count, shape):
        wanted = range(first, min(first + shape, count))
        digests = [hashlib.sha256() for _ in wanted]
        pictures.draw(wanted, shape, digests)
        found += [d.hexdigest() for d in digests]
    return found


def settle_group(plan: RunPlan, pictures: RunPictures, batch: int, note: Note) -> RunPlan:
    """The plan with its group and arithmetic, for the process that begins a run.

    On a CPU the group is :data:`CPU_GROUP`, so that runs with any batch agree; elsewhere it is the batch, or
    what of it fits: then ``note`` hears of it. Raises InvalidArgumentError if not even one picture fits.
    """
    group = CPU_GROUP if plan.device == "cpu" else batch
    while True:
        try:
            digests = arithmetic_of(pictures, min(group, plan.count), group)
            return replace(plan, group=group, arithmetic=tuple(digests))
        except (RuntimeError, MemoryError) as error:
            group = halved(error, group, pictures.pipe.device, note)


def settle_batch(plan: RunPlan, pictures: RunPictures, batch: int, note: Note) -> int:
    """The largest batch up to the one wanted with which this process computes what the run is.

    Raises InvalidArgumentError if there is none: the run's group does not fit into memory, this is another
    kind of processor, or another version of torch.
    """
    shape = _first_shape(plan, batch)
    while shape > plan.group:
        try:
            if _agrees(pictures, min(shape, plan.count), shape, plan):
                return shape
            note(f"batches of {shape} round differently here; drawing fewer at once")
            shape = max(plan.group, shape // 2)
        except (RuntimeError, MemoryError) as error:
            shape = max(plan.group, halved(error, shape, pictures.pipe.device, note))
    return _group_or_less(plan, pictures, shape, note)


def _first_shape(plan: RunPlan, batch: int) -> int:
    # The texts of a batch are padded to one length, so pictures of prompts keep their neighbours.
    if plan.key == "prompts":
        return plan.group
    return max(plan.group, min(batch, plan.shard_size, plan.count))


def _agrees(pictures: RunPictures, count: int, shape: int, plan: RunPlan) -> bool:
    """Whether a large batch gives the bits of its groups, in every row, and those the run began with."""
    found, known = arithmetic_of(pictures, count, shape), list(plan.arithmetic)
    return found[: len(known)] == known[:count] and found == arithmetic_of(pictures, count, plan.group)


def _group_or_less(plan: RunPlan, pictures: RunPictures, shape: int, note: Note) -> int:
    """The group, or, where it does not fit, half of it or less if that happens to give the same bits."""
    known, tried = list(plan.arithmetic), shape
    while True:
        try:
            if arithmetic_of(pictures, len(known), tried) == known:
                return tried
        except (RuntimeError, MemoryError) as error:
            tried = halved(error, tried, pictures.pipe.device, note)
            if plan.key != "prompts":
                continue
        if tried < shape:
            raise InvalidArgumentError(
                f"this run is computed in batches of {plan.group}, which do not fit into the memory of "
                f"{pictures.pipe.device}, and smaller ones round differently; begin it in another --out with "
                f"a smaller --batch-size"
            )
        raise InvalidArgumentError(
            "this machine computes other last bits than the one that began the run, so some pictures would "
            "not be the same (another kind of processor or GPU, or another version of torch). Go on with a "
            "machine and versions like those, or begin the run in another --out"
        )


def halved(error: BaseException, size: int, device: torch.device | None, note: Note) -> int:
    """Half of a batch that did not fit, with a word about it; other errors are raised again.

    device: whose memory it was; ``None`` where it may be any. Raises InvalidArgumentError if the batch was a
    single picture.
    """
    if not is_out_of_memory(error):
        raise error
    if size == 1:
        whose = "this machine" if device is None else str(device)
        raise InvalidArgumentError(f"{whose} has too little memory for a single picture") from None
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    of = "" if device is None else f" of {device}"
    note(f"{size} pictures at once do not fit into the memory{of}; drawing {size // 2} at once")
    return size // 2
