"""``nextscale evaluate``: the figures of a model under a fixed protocol, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli import options, pictures, request, values
from nextscale.cli.help import NAMES, Command
from nextscale.cli.launch import join_launch
from nextscale.cli.models import ModelOptions
from nextscale.cli.progress import drawing, note, working
from nextscale.cli.request import DrawingOptions, SSGOptions
from nextscale.cli.ruler import PANEL, BatchSize, FirstSeed, RulerOptions, option
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.evaluation.features import FeatureSpace
    from nextscale.evaluation.images import Images
    from nextscale.evaluation.paper import Published
    from nextscale.evaluation.protocol import Preset, Protocol
    from nextscale.evaluation.reference import Reference
    from nextscale.evaluation.runner import Result
    from nextscale.evaluation.shards import Shards
    from nextscale.families.var.pipeline import VARPipeline

DEFAULT_PRESET = "cifar10"
DEFAULT_NAME = "evaluation.json"
WORK = "evaluation.work"
OUT = "Output"

EPILOG = """\
nextscale evaluate --images 500
nextscale evaluate --images 10000 --ssg 0.6 --output ssg.json
nextscale evaluate --model runs/model --reference cifar10/test.parquet --images 2000
nextscale evaluate --preset imagenet256-adm --model FoundationVision/var --depth 16 --ssg 0.6
nextscale evaluate --preset custom --model my-model --features dinov2 --reference pictures
nextscale evaluate --preset imagenet256-adm --samples samples.npz
nextscale evaluate --preset custom --samples run --reference photos --resize adm
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@dataclass(frozen=True)
class ProtocolOptions:
    """Which pictures are measured; ``None`` is the preset's."""

    preset: Annotated[
        str,
        option(
            PANEL,
            "--preset",
            metavar="NAME",
            help="cifar10, imagenet256-adm, imagenet512-adm (the usual protocol for ImageNet), or custom. "
            "Default: cifar10.",
        ),
    ] = DEFAULT_PRESET
    images: Annotated[
        int | None,
        option(
            PANEL,
            "--images",
            "-n",
            metavar="N",
            help="Pictures to draw, of all classes in turn. Default: 10000, or 50000 for ImageNet.",
        ),
    ] = None
    seed: FirstSeed = 0
    batch_size: BatchSize = None
    rounding: Annotated[
        str,
        option(PANEL, "--rounding", metavar="RULE", help="To 8 bit: round or truncate. Default: round."),
    ] = "round"
    samples: Annotated[
        Path | None,
        option(
            PANEL,
            "--samples",
            metavar="PATH",
            help="Measure these pictures and draw none: an .npz, a folder, parquet or tar files, or a run.",
        ),
    ] = None

    def check_samples(self, others: Mapping[str, Any]) -> None:
        """Raises InvalidArgumentError for options that pictures from a file leave nothing to."""
        if self.samples is None:
            return
        own = {"--images": self.images, "--seed": self.seed, "--batch-size": self.batch_size}
        given = {**own, **others}
        named = [name for name, value in given.items() if value]
        if named:
            raise InvalidArgumentError(f"{named[0]} is about drawing pictures, and --samples gives them")


@dataclass(frozen=True)
class ClassDrawing:
    """The options that shape pictures of classes; ``None`` is the preset's, or the model's."""

    guidance_scale: options.GuidanceScale = None
    top_k: options.TopK = None
    top_p: options.TopP = None
    min_p: options.MinP = None
    temperature: options.Temperature = None
    sampler: options.Sampler = None
    more_smooth: options.MoreSmooth = None

    def given(self) -> dict[str, Any]:
        """As keyword arguments. Raises InvalidArgumentError for texts that are no numbers."""
        return DrawingOptions(**vars(self)).given()


@dataclass(frozen=True)
class FileOptions:
    """Where results go."""

    output: Annotated[
        Path | None,
        option(
            OUT,
            "--output",
            "-o",
            metavar="FILE",
            help="The result, a .json; a table lies beside it as .md. Default: evaluation.json, or "
            "evaluation-2.json where that exists.",
        ),
    ] = None
    work: Annotated[
        Path | None,
        option(
            OUT,
            "--work",
            metavar="DIR",
            help="Where features are kept, so that a stopped run goes on and a larger one draws only what is "
            "missing. Default: evaluation.work beside the result.",
        ),
    ] = None
    save_images: Annotated[
        Path | None,
        option(OUT, "--save-images", metavar="FILE", help="Also write all pictures, as an ADM .npz."),
    ] = None

    def target(self) -> Path:
        """Raises InvalidArgumentError if results cannot be written."""
        target = self.output or pictures.free_name(DEFAULT_NAME)
        if target.suffix.lower() != ".json":
            raise InvalidArgumentError(f"give a name that ends in .json, got {str(target)!r}")
        if self.save_images is not None and self.save_images.suffix.lower() != ".npz":
            raise InvalidArgumentError(f"give a name that ends in .npz, got {str(self.save_images)!r}")
        for path in (target, self.save_images):
            if path is not None and path.is_dir():
                raise InvalidArgumentError(f"{str(path)!r} is a folder; give the name of a file")
            if path is not None:
                pictures.check_folder(path.parent)
        return target


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
@options.bundled
def evaluate(
    *,
    what: ProtocolOptions,
    ruler: RulerOptions,
    ssg: Annotated[
        str | None,
        typer.Option(
            "--ssg",
            metavar="STRENGTH",
            help="A number, one per step with commas, default (the model's), or off. Default: off.",
            rich_help_panel="Scaled Spatial Guidance",
            show_default=False,
        ),
    ] = None,
    spatial: SSGOptions,
    shape: ClassDrawing,
    files: FileOptions,
    model: ModelOptions,
) -> None:
    """Measure a model: Fréchet distance, precision, recall, density, coverage and more.

    The result names everything that it depends on, under a hash. Stopped runs go on where they were.
    """
    from nextscale.evaluation.protocol import PRESETS
    from nextscale.evaluation.report import write_result

    values.require_positive({"--images": what.images, "--batch-size": what.batch_size})
    if what.preset not in PRESETS:
        raise InvalidArgumentError(f"unknown preset {what.preset!r}; known: {', '.join(PRESETS)}")
    preset, target = PRESETS[what.preset], files.target()
    work, choice = files.work or target.parent / WORK, model.choice()
    drawn = {"--ssg": ssg, "--model": choice, "--save-images": files.save_images}
    what.check_samples({**drawn, **{values.flag(k): True for k in {**spatial.given(), **shape.given()}}})
    processes, model = join_launch(model)
    if what.samples is not None:
        task = _samples_task(what.samples, preset, ruler, model.device)
    else:
        with working(f"loading {choice}"):
            given, guidance = shape.given(), spatial.build(ssg)
            pipe = choice.load(model.device, model.dtype)
            check_model(pipe, preset)
            arguments = request.call_arguments(pipe, {**preset.sampling, **given}, {})
            arguments["ssg"] = request.with_model_default(pipe, guidance)
        task = _model_task(pipe, arguments, what, preset, ruler, model.device)
    if not processes.is_main:
        task.help(work, keep=files.save_images is not None)
        return
    result = task.run(work, files.save_images)
    published = _published(preset, result.protocol)
    write_result(result, target, heading=_heading(result.protocol), preset=preset.name, published=published)
    _print(result, preset, published)
    print(f"{target}, {target.with_suffix('.md').name}; features are kept in {work}")


def check_model(pipe: Any, preset: Preset) -> None:
    """Raises InvalidArgumentError for a model that the preset is not for."""
    from nextscale.evaluation.runner import class_subjects

    (h, w), classes = pipe.image_size, len(class_subjects(pipe))
    for wanted, found in ((preset.size, (h, w)), (preset.classes, classes)):
        if wanted is not None and wanted != found:
            size = "any" if preset.size is None else f"{preset.size[1]}x{preset.size[0]}"
            raise InvalidArgumentError(
                f"the preset {preset.name} is for {preset.classes} classes at {size} pixels, and {pipe.name} "
                f"draws {classes} at {w}x{h}; name another model (--model) or preset (--preset custom, say)"
            )


# ---------------------------------------------------------------------------- running and reporting


@dataclass(frozen=True)
class Task:
    """All that a run needs."""

    protocol: Protocol
    images: Images
    space: FeatureSpace
    reference: Reference | None
    batch_size: int

    def run(self, work: Path, keep: Path | None) -> Result:
        """Pictures, reference, figures, each with its own progress. keep: a file for the pictures."""
        from nextscale.evaluation.runner import draw, generated_shards

        protocol = self.protocol
        done = len(generated_shards(protocol, work))
        left = protocol.images - done
        if done:
            note(f"going on: {done:,} of {protocol.images:,} pictures are done")
        doing = "measuring" if protocol.sampling is None else "drawing"
        batch = self.batch_size
        with drawing(f"{doing} {left:,} pictures", max(left, 1)) as advance:
            generated = draw(
                protocol, self.images, self.space, work, batch_size=batch, keep=keep, advance=advance
            )
        return self._conclude(generated, work)

    def help(self, work: Path, *, keep: bool) -> None:
        """Draw a share of the pictures for the process that concludes. keep: whether pixels are wanted."""
        from nextscale.evaluation.runner import generated_shards
        from nextscale.evaluation.shards import SHARD

        size = min(self.batch_size, SHARD)
        shards = generated_shards(self.protocol, work)
        shards.fill(self.images, self.space, batch_size=size, keep_images=keep)

    def _conclude(self, generated: Shards, work: Path) -> Result:
        from nextscale.evaluation.runner import conclude, device_of, reference_shards

        left, reference, where = 0, self.reference, device_of(self.images)
        if reference is not None and reference.to_compute(self.space):
            left = reference.count - len(reference_shards(reference, self.space, work))
        arguments = (self.protocol, generated, self.space, reference, work)
        labels = getattr(self.images, "labels", None)
        if left:
            with drawing(f"measuring {left:,} pictures of the reference", left) as advance:
                return conclude(*arguments, device=where, labels=labels, advance=advance)
        with working("computing figures"):
            return conclude(*arguments, device=where, labels=labels)


def _model_task(
    pipe: VARPipeline,
    arguments: Mapping[str, Any],
    what: ProtocolOptions,
    preset: Preset,
    ruler: RulerOptions,
    device: str | None,
) -> Task:
    from nextscale.evaluation.runner import PipelineImages, plan

    count, batch = what.images or preset.images, what.batch_size or preset.batch_size
    space, reference = ruler.open(preset, pipe.image_size, device)
    settings = {"arguments": arguments, "seed": what.seed, "rounding": what.rounding, "batch_size": batch}
    with working("planning"):
        protocol = plan(pipe, count, space, reference, **settings)  # type: ignore[arg-type]
    return Task(protocol, PipelineImages(pipe, protocol), space, reference, batch)


def _samples_task(file: Path, preset: Preset, ruler: RulerOptions, device: str | None) -> Task:
    from nextscale.evaluation.runner import plan_samples
    from nextscale.evaluation.samples import open_samples
    from nextscale.evaluation.shards import SHARD

    with working("reading the samples"):
        samples = open_samples(file)
    space, reference = ruler.open(preset, samples.size, device)
    with working("planning"):
        protocol = plan_samples(samples, space, reference)
    return Task(protocol, samples, space, reference, SHARD)


def _published(preset: Preset, protocol: Protocol) -> Published | None:
    """Figures for the column headed "paper"."""
    from nextscale.evaluation.paper import published

    if protocol.sampling is None:
        return None
    ssg = request.arm_name(protocol.sampling["ssg"]) != request.arm_name(None)
    found = published(preset.name, protocol.model, ssg=ssg)
    cfg = {"guidance_scale": protocol.sampling["guidance_scale"]["scale"]}
    here = {**protocol.sampling, **cfg}
    others = [name.replace("_", " ") for name, value in preset.sampling.items() if here[name] != value]
    if found is None or not others:
        return found
    return replace(found, source=f"{found.source}; measured with another {', '.join(others)}")


def _heading(protocol: Protocol) -> str:
    if protocol.sampling is None:
        return str(protocol.model["name"])
    return request.describe({**protocol.sampling, "model": protocol.model["name"]})


def _print(result: Result, preset: Preset, published: Published | None) -> None:
    from nextscale.evaluation.report import conditions, left_out, plain, table

    protocol = result.protocol
    print(_heading(protocol))
    for line in plain(table(result.figures, None if published is None else published.figures)):
        print(line)
    for line in left_out(result.figures):
        print(line)
    if published is not None:
        print(f"paper: {published.source}")
    if protocol.images != preset.images and protocol.reference:
        print(
            f"{protocol.images:,} pictures instead of {preset.images:,}: distances grow as pictures get "
            f"fewer, so compare at equal numbers only"
        )
    for line in conditions(result):
        print(line)
