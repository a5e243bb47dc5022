"""Runs a protocol: draw pictures, compute features, compare with the reference. Stopped runs go on."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale import __version__
from nextscale.errors import InvalidArgumentError, NotFiniteError
from nextscale.evaluation.features import FeatureSpace
from nextscale.evaluation.figures import Figures, measure
from nextscale.evaluation.images import Advance, Images, unheard, write_npz
from nextscale.evaluation.protocol import Protocol, Rounding, Rules, to_uint8
from nextscale.evaluation.provenance import versions
from nextscale.evaluation.reference import Reference, measure_reference
from nextscale.evaluation.samples import Samples
from nextscale.evaluation.shards import SHARD, ShardImages, Shards
from nextscale.families.var.pipeline import VARPipeline
from nextscale.guidance.cfg import ClassifierFreeGuidance
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.weights.digest import pipeline_digest, text_digest

# What a pipeline reports of its settings that is no setting: it stands elsewhere in a protocol, or nowhere.
_NOT_SAMPLING = ("nextscale", "family", "model", "labels", "prompts", "seeds", "given_tokens", "tile")


@dataclass(frozen=True)
class Result:
    """A measurement. seconds: what each part cost, in all runs that contributed. device: where it ended."""

    protocol: Protocol
    figures: Figures
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    device: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the hashes of the protocol first, the figures, and all that they rest on."""
        return {
            "protocol_hash": self.protocol.hash,
            "ruler_hash": self.protocol.ruler,
            "images": self.protocol.images,
            "images_per_class": self.protocol.per_class,
            "scores": self.figures.scores,
            "standard_errors": self.figures.errors,
            "details": self.figures.details,
            "left_out": self.figures.left_out,
            "seconds": dict(self.seconds),
            "images_per_second": self.protocol.images / max(self.seconds["images"], 1e-9),
            "device": self.device,
            "versions": dict(self.versions),
            "protocol": self.protocol.to_dict(),
        }


class PipelineImages:
    """The pictures of a protocol, drawn by a pipeline when they are asked for."""

    def __init__(self, pipe: VARPipeline, protocol: Protocol) -> None:
        if protocol.sampling is None or protocol.classes is None:
            raise InvalidArgumentError("this protocol is about a file of samples, not about a pipeline")
        self.pipe, self.protocol = pipe, protocol
        self.subjects = class_subjects(pipe)
        known = inspect.signature(pipe).parameters
        self.arguments: dict[str, Any] = {k: v for k, v in protocol.sampling.items() if k in known}
        self.arguments["guidance_scale"] = ClassifierFreeGuidance.from_dict(
            protocol.sampling["guidance_scale"]
        )
        ssg = protocol.sampling["ssg"]
        self.arguments["ssg"] = None if ssg is None else ScaledSpatialGuidance.from_dict(ssg)

    @property
    def size(self) -> tuple[int, int]:
        return self.protocol.size

    def __len__(self) -> int:
        return self.protocol.images

    def read(self, start: int, stop: int) -> Tensor:
        """Draw pictures ``start`` up to ``stop``, all at once.

        Raises NotFiniteError, naming the picture, where logits or pixels are NaN or infinite.
        """
        wanted: Any = [self.subjects[self.protocol.label(i)] for i in range(start, stop)]
        seeds = [self.protocol.seed + i for i in range(start, stop)]
        try:
            out = self.pipe(wanted, seed=seeds, batch_size=stop - start, output_type="pt", **self.arguments)
        except torch.cuda.OutOfMemoryError:
            raise InvalidArgumentError(
                f"{self.pipe.device} has too little memory for {stop - start} pictures at once; use a "
                f"smaller --batch-size"
            ) from None
        except NotFiniteError as error:
            raise error.of(start + error.picture) from None
        return to_uint8(out.images, self.protocol.rounding)


def plan(
    pipe: VARPipeline,
    images: int,
    space: FeatureSpace,
    reference: Reference | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
    rounding: Rounding = "round",
    batch_size: int = SHARD,
) -> Protocol:
    """The protocol of so many pictures of a pipeline.

    arguments: of the pipeline's call; what they leave open is the model's. One picture is drawn, so that the
        pipeline itself says what it makes of them.
    Raises InvalidArgumentError if pipeline, feature space and reference do not fit each other.
    """
    subjects: Any = class_subjects(pipe)
    check_fit(pipe.image_size, space, reference)
    settings = pipe([subjects[0]], seed=seed, **(arguments or {})).settings
    sampling = sampling_in(settings)
    return Protocol(
        images=images,
        size=pipe.image_size,
        model={
            "name": pipe.name,
            "family": settings["family"],
            "depth": getattr(pipe.transformer.config, "depth", None),
            "sha256": pipeline_digest(pipe),
            **({} if isinstance(subjects, range) else {"prompts": list(subjects)}),
        },
        features=described(space),
        reference=reference.description() if reference else None,
        sampling=sampling,
        classes=len(subjects),
        seed=seed,
        rounding=rounding,
        batch=batch_size if sampling.get("sampler") == "multinomial" else None,
        rules=Rules().fitted(images, reference.count if reference else 0),
    )


def class_subjects(pipe: Any) -> Sequence[int] | Sequence[str]:
    """What a pipeline is asked for to draw each class: its number, or its prompt.

    Raises InvalidArgumentError for a pipeline that knows no classes.
    """
    if hasattr(pipe, "class_names"):
        return range(pipe.transformer.config.num_classes)
    prompts: Sequence[str] = getattr(pipe, "class_prompts", ())
    if not prompts:
        raise InvalidArgumentError(
            f"{pipe.name} draws prompts, and names none for the classes of any data; only models that draw "
            f"classes can be measured"
        )
    return prompts


def sampling_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings that a pipeline reports is a protocol's ``sampling``."""
    return {k: v for k, v in settings.items() if k not in _NOT_SAMPLING}


def plan_samples(samples: Samples, space: FeatureSpace, reference: Reference | None = None) -> Protocol:
    """The protocol of generated pictures from elsewhere, all of them."""
    check_fit(samples.size, space, reference)
    return Protocol(
        images=len(samples),
        size=samples.size,
        model={"name": samples.name, "family": "samples", "sha256": samples.sha256},
        features=described(space),
        reference=reference.description() if reference else None,
        rules=Rules().fitted(len(samples), reference.count if reference else 0),
    )


def check_fit(size: tuple[int, int], space: FeatureSpace, reference: Reference | None) -> None:
    """Raises InvalidArgumentError unless pictures of this size can be measured so."""
    space.check_size(size)
    if reference is not None:
        reference.check(space, size)


def described(space: FeatureSpace) -> dict[str, Any]:
    """A feature space in a protocol."""
    return {**space.description(), "classes": space.classes, "dtype": "float32"}


def generated_shards(protocol: Protocol, work: Path) -> Shards:
    """Where the features of the generated pictures are, those of an earlier run among them.

    Another version of this library may draw other pictures, so it starts afresh.
    """
    key = text_digest(f"{protocol.pictures} {__version__}")[:16]
    return Shards(work / f"images-{key}", protocol.images)


def reference_shards(reference: Reference, space: FeatureSpace, work: Path) -> Shards:
    """Where the features of the real pictures are."""
    key = text_digest(f"{reference.sha256} {described(space)}")[:16]
    return Shards(work / f"reference-{key}", reference.count)


def draw(
    protocol: Protocol,
    images: Images,
    space: FeatureSpace,
    work: Path,
    *,
    batch_size: int = SHARD,
    keep: Path | None = None,
    advance: Advance = unheard,
) -> Shards:
    """Features of all pictures, going on from what an earlier run has left in ``work``.

    images: :class:`PipelineImages`, or samples.
    keep: a file to write the pictures to as well, in the ADM layout.
    """
    generated = generated_shards(protocol, work)
    size = min(batch_size, SHARD)
    generated.fill(images, space, batch_size=size, keep_images=keep is not None, advance=advance)
    if keep is not None:
        write_npz(keep, ShardImages(generated))
    return generated


def conclude(
    protocol: Protocol,
    generated: Shards,
    space: FeatureSpace,
    reference: Reference | None,
    work: Path,
    *,
    device: str,
    labels: Tensor | None = None,
    advance: Advance = unheard,
) -> Result:
    """The result from the features of :func:`draw`; ``advance`` hears how many real pictures were done.

    labels: the classes that samples show, where they are known; a pipeline's follow from the protocol.
    """
    start = time.perf_counter()
    measured = None
    if reference is not None:
        shards = reference_shards(reference, space, work)
        measured = measure_reference(reference, space, shards, advance)
    referenced = time.perf_counter()
    figures = measure(generated, measured, protocol, labels)
    ended = time.perf_counter()
    spent = {"reference": referenced - start, "figures": ended - referenced}
    return Result(protocol, figures, {**generated.seconds(), **spent}, versions(), device)


def run(
    protocol: Protocol,
    images: Images,
    space: FeatureSpace,
    reference: Reference | None,
    work: str | Path,
    *,
    batch_size: int = SHARD,
    keep: Path | None = None,
    advance: Advance = unheard,
) -> Result:
    """:func:`draw` and :func:`conclude` in one.

    work: a folder for features; runs of other protocols may share it.
    """
    work = Path(work)
    generated = draw(protocol, images, space, work, batch_size=batch_size, keep=keep, advance=advance)
    labels = getattr(images, "labels", None)
    return conclude(protocol, generated, space, reference, work, device=device_of(images), labels=labels)


def device_of(images: Images) -> str:
    """Where pictures are made, in words, for a result."""
    if not isinstance(images, PipelineImages):
        return "the pictures were given"
    device = images.pipe.device
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads"
