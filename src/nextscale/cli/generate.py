"""``nextscale generate``: classes or prompts in, a picture file out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli import options, pictures, request, values
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import ModelOptions
from nextscale.cli.progress import drawing, working
from nextscale.cli.request import DrawingOptions, Pictures, SSGOptions
from nextscale.cli.run import RunOptions, sample
from nextscale.cli.setup import CountOptions, FileOptions, Job, prepare
from nextscale.cli.subjects import SubjectOptions, Subjects

if TYPE_CHECKING:
    from PIL.Image import Image

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
nextscale generate --model FoundationVision/Infinity --variant 2b --prompt "a lighthouse at dawn"
nextscale generate --model my-infinity --prompts prompts.txt --aspect-ratio 16:9 --ssg 0.6
nextscale generate --count 50000 --ssg 0.6 --out samples
nextscale generate --labels labels.txt --count 1000000 --out samples --format parquet
torchrun --nproc-per-node 8 -m nextscale generate --count 50000 --format npz --out samples
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
@options.bundled
def generate(
    *,
    subjects: SubjectOptions,
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
    how_many: CountOptions,
    shape: DrawingOptions,
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
    columns: Annotated[
        int | None,
        typer.Option(
            "--columns",
            metavar="N",
            help="Columns of the grid. Default: a row per label or prompt, or a balanced grid.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    files: FileOptions,
    run: RunOptions,
    model: ModelOptions,
) -> None:
    """Make pictures of the given classes, or of prompts.

    The file is a PNG that holds every setting and seed; --from makes it again. With --out, any number of
    pictures as shards in a folder, by any number of processes; a run that was stopped goes on when the same
    command is given again.
    """
    values.require_positive({"--columns": columns})
    if run.wanted():
        run.refuse({"--output": output, "--columns": columns, **files.options()})
        sample(run, subjects, ssg, spatial, how_many, shape, model)
        return
    typed = subjects.typed()
    setup = prepare(COMMAND, DEFAULT_NAME, output, files, model, how_many)
    with working(f"loading {setup.choice}"):
        given = shape.given()
        guidance = spatial.build(ssg, setup.stored.get("ssg"))
        job = setup.load(given, model.device, model.dtype)
    guidance = request.with_model_default(job.pipe, guidance)
    if setup.stored.get("batch") and not (typed or how_many.given()):
        settings, images = _draw_again(job, guidance, files.zoom)
    else:
        wanted = job.choose(typed, how_many)
        job.check_size(len(wanted), files.zoom or setup.stored_layout(len(wanted)).get("zoom"))
        out = _draw(job, wanted, guidance, len(wanted))
        settings, images = job.settings(out), out.images
    old = setup.stored_layout(len(images))
    settings["layout"] = {
        "columns": columns or old.get("columns") or pictures.auto_columns(len(images), how_many.count or 1),
        "zoom": files.zoom or old.get("zoom") or pictures.auto_zoom(images[0].size),
    }
    for i, image in enumerate(images):
        one = settings if "batch" in settings else pictures.single_settings(settings, i)
        job.save_single(image, i, one)
    pictures.save_png(pictures.grid(images, **settings["layout"]), setup.target, settings)
    _print_outcome(job.subjects, settings, setup.target)
    if setup.separate is not None:
        print(f"{setup.separate}: single files")


def _draw(
    job: Job, wanted: Pictures, ssg: ScaledSpatialGuidance | None, shown: int, **changes: Any
) -> GenerationOutput:
    job.prepare(wanted)
    pieces = "1 picture" if shown == 1 else f"{shown} pictures"
    with drawing(f"drawing {pieces}", job.tokens(len(wanted))) as advance:
        return job.draw(wanted, ssg, advance, **changes)


def _draw_again(
    job: Job, ssg: ScaledSpatialGuidance | None, zoom: int | None
) -> tuple[dict[str, Any], list[Image]]:
    """A single file: its whole batch is drawn, so that every bit agrees, and one picture of it kept."""
    job.check_size(1, zoom or job.setup.stored_layout(1).get("zoom"))
    batch = job.setup.stored["batch"]
    wanted, index = Pictures(batch[job.subjects.key], batch["seeds"]), batch["index"]
    out = _draw(job, wanted, ssg, 1, batch_size=len(wanted))
    settings = pictures.single_settings(job.settings(out), index)
    if out.settings["batch_size"] == len(wanted):  # else memory was short
        settings["batch_size"] = job.batch_size
    return settings, [out.images[index]]


def _print_outcome(subjects: Subjects, settings: Mapping[str, Any], target: Path) -> None:
    shown, seeds = settings[subjects.key], settings["seeds"]
    names = list(dict.fromkeys(subjects.quoted(subject) for subject in shown))
    listed = ", ".join(names[:4]) + (f", … ({len(names)} {subjects.nouns[1]})" if len(names) > 4 else "")
    pieces = "1 picture" if len(shown) == 1 else f"{len(shown)} pictures"
    print(f"{target}: {pieces} of {listed}; {request.seed_range(seeds)}")
    print(request.describe(settings))
