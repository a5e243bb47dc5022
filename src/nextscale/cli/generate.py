"""``nextscale generate``: classes in, a picture file out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli import options, pictures, request
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import ModelChoice
from nextscale.cli.progress import drawing, working
from nextscale.cli.request import DrawingOptions, Pictures, SSGOptions
from nextscale.cli.setup import Setup, prepare

if TYPE_CHECKING:
    from PIL.Image import Image

    from nextscale.families.var.pipeline import VARPipeline
    from nextscale.generation.request import GenerationOutput
    from nextscale.guidance.ssg import ScaledSpatialGuidance

COMMAND = "generate"
DEFAULT_NAME = "nextscale.png"

EPILOG = """\
nextscale generate
nextscale generate horse ship --count 8 --seed 0 --ssg 0.6
nextscale generate cat -n 4 --guidance-scale 3 --output cats.png --separate cats
nextscale generate --from cats.png --ssg off --output cats-without.png
nextscale generate volcano "red panda" --model FoundationVision/var --depth 16
nextscale generate 3 --transformer var_d16.pth --tokenizer vae_ch160v4096z32.pth
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
def generate(
    labels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LABELS",
            help="Classes by name or number; none is no class. Default: all classes, or a few of many.",
            show_default=False,
        ),
    ] = None,
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
    ssg_schedule: options.SSGSchedule = None,
    prior: options.Prior = None,
    norm: options.Norm = None,
    remember: options.Remember = None,
    ssg_start: options.Start = None,
    ssg_stop: options.Stop = None,
    count: options.Count = None,
    seed: options.Seed = None,
    guidance_scale: options.GuidanceScale = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    temperature: options.Temperature = None,
    sampler: options.Sampler = None,
    more_smooth: options.MoreSmooth = None,
    batch_size: options.BatchSize = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The picture, a .png. Default: nextscale.png, or nextscale-2.png where that exists.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    separate: options.Separate = None,
    from_: options.From = None,
    columns: Annotated[
        int | None,
        typer.Option(
            "--columns",
            metavar="N",
            help="Columns of the grid. Default: a row per label, or a balanced grid.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    zoom: options.Zoom = None,
    model: options.Model = None,
    transformer: options.Transformer = None,
    tokenizer: options.Tokenizer = None,
    depth: options.Depth = None,
    patch_nums: options.PatchNums = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Make pictures of the given classes.

    The file is a PNG that holds every setting and seed; --from makes it again.
    """
    given = {"--count": count, "--batch-size": batch_size, "--columns": columns, "--zoom": zoom}
    options.require_positive(given)
    choice = ModelChoice.given(model, transformer, tokenizer, depth, patch_nums)
    setup = prepare(COMMAND, DEFAULT_NAME, output, separate, from_, choice, batch_size)
    drawing_options = DrawingOptions(guidance_scale, top_k, top_p, min_p, temperature, sampler, more_smooth)
    spatial_options = SSGOptions(ssg_schedule, prior, norm, remember, ssg_start, ssg_stop)
    with working(f"loading {setup.choice}"):
        arguments = drawing_options.arguments(setup.stored)
        spatial = spatial_options.build(ssg, setup.stored.get("ssg"))
        pipe = setup.choice.load(device, dtype or setup.stored.get("dtype"))
    spatial = request.with_model_default(pipe, spatial)
    if "batch" in setup.stored and not (labels or count or seed or batch_size):
        settings, images = _draw_again(pipe, setup, arguments, spatial)
    else:
        wanted = request.choose_pictures(pipe, labels, count, seed, setup.stored)
        out = _draw(pipe, wanted, arguments, spatial, setup.batch_size, len(wanted))
        settings, images = setup.settings(out), out.images
    old = setup.stored_layout(len(images))
    settings["layout"] = {
        "columns": columns or old.get("columns") or pictures.auto_columns(len(images), count or 1),
        "zoom": zoom or old.get("zoom") or pictures.auto_zoom(images[0].size),
    }
    for i, image in enumerate(images):
        alone = settings if "batch" in settings else pictures.single_settings(settings, i, setup.batch_size)
        setup.save_single(pipe, image, i, alone)
    pictures.save_png(pictures.grid(images, **settings["layout"]), setup.target, settings)
    _print_outcome(pipe, settings, setup.target, separate)


def _draw(
    pipe: VARPipeline,
    wanted: Pictures,
    arguments: Mapping[str, Any],
    spatial: ScaledSpatialGuidance | None,
    batch_size: int,
    shown: int,
) -> GenerationOutput:
    pieces = "1 picture" if shown == 1 else f"{shown} pictures"
    with drawing(f"drawing {pieces}", len(wanted) * pipe.schedule.num_tokens) as advance:
        return request.draw(pipe, wanted, arguments, spatial, batch_size, advance)


def _draw_again(
    pipe: VARPipeline, setup: Setup, arguments: Mapping[str, Any], spatial: ScaledSpatialGuidance | None
) -> tuple[dict[str, Any], list[Image]]:
    """A single file: its whole batch is drawn, so that every bit agrees, and one picture of it kept."""
    batch = setup.stored["batch"]
    wanted, index = Pictures(batch["labels"], batch["seeds"]), batch["index"]
    out = _draw(pipe, wanted, arguments, spatial, len(wanted), 1)
    return pictures.single_settings(setup.settings(out), index, len(wanted)), [out.images[index]]


def _print_outcome(
    pipe: VARPipeline, settings: Mapping[str, Any], target: Path, separate: Path | None
) -> None:
    labels, seeds = settings["labels"], settings["seeds"]
    names = list(dict.fromkeys(request.label_name(pipe, n) for n in labels))
    shown = ", ".join(names[:4]) + (f", … ({len(names)} classes)" if len(names) > 4 else "")
    pieces = "1 picture" if len(labels) == 1 else f"{len(labels)} pictures"
    print(f"{target}: {pieces} of {shown}; {request.seed_range(seeds)}")
    print(request.describe(settings))
    if separate is not None:
        print(f"{separate}: single files")
