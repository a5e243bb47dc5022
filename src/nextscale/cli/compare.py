"""``nextscale compare``: the same seeds without and with SSG, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale import __version__
from nextscale.cli import options, pictures, request
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import ModelChoice
from nextscale.cli.progress import drawing, working
from nextscale.cli.request import DrawingOptions, Pictures, SSGOptions
from nextscale.cli.setup import Setup, prepare
from nextscale.cli.sheets import Block, comparison

if TYPE_CHECKING:
    from nextscale.families.var.pipeline import VARPipeline
    from nextscale.generation.request import GenerationOutput
    from nextscale.guidance.ssg import ScaledSpatialGuidance

    Arm = ScaledSpatialGuidance | None

COMMAND = "compare"
DEFAULT_NAME = "compare.png"
SMALL, SMALL_COUNT, LARGE_COUNT = 64, 4, 2  # pictures per class for sides up to 64 pixels, and above

EPILOG = """\
nextscale compare --output demo.png
nextscale compare --ssg 0.3,0.6,1.2
nextscale compare horse ship --count 6 --seed 100 --guidance-scale 3
nextscale compare --ssg 0.6 --ssg-schedule bandwidth --norm forward
nextscale compare volcano fountain --model FoundationVision/var --depth 16 --ssg 0.6
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
def compare(
    labels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LABELS",
            help="Classes by name or number, a row each. Default: all classes, or a handful of many.",
            show_default=False,
        ),
    ] = None,
    ssg: Annotated[
        list[str] | None,
        typer.Option(
            "--ssg",
            metavar="STRENGTH",
            help="A strength, or several: repeated, or with commas; default is the model's. "
            "Pictures without SSG always come first.",
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
            help="The picture, a .png. Default: compare.png, or compare-2.png where that exists.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    separate: options.Separate = None,
    from_: options.From = None,
    zoom: options.Zoom = None,
    model: options.Model = None,
    transformer: options.Transformer = None,
    tokenizer: options.Tokenizer = None,
    depth: options.Depth = None,
    patch_nums: options.PatchNums = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Make the same pictures without and with SSG, side by side.

    Seeds start at 0 unless --seed says otherwise, and are the same in every block.
    """
    options.require_positive({"--count": count, "--batch-size": batch_size, "--zoom": zoom})
    choice = ModelChoice.given(model, transformer, tokenizer, depth, patch_nums)
    setup = prepare(COMMAND, DEFAULT_NAME, output, separate, from_, choice, batch_size)
    drawing_options = DrawingOptions(guidance_scale, top_k, top_p, min_p, temperature, sampler, more_smooth)
    spatial_options = SSGOptions(ssg_schedule, prior, norm, remember, ssg_start, ssg_stop)
    with working(f"loading {setup.choice}"):
        arguments = drawing_options.arguments(setup.stored)
        arms = _arms(ssg, spatial_options, setup.stored)
        pipe = setup.choice.load(device, dtype or setup.stored.get("dtype"))
    arms = list(dict.fromkeys(request.with_model_default(pipe, arm) for arm in arms))
    usual = SMALL_COUNT if max(pipe.image_size) <= SMALL else LARGE_COUNT
    wanted = request.choose_pictures(
        pipe, labels, count, seed, setup.stored, default_seed=0, default_count=usual
    )
    outs = _draw_arms(pipe, wanted, arguments, arms, setup.batch_size)
    settings = setup.settings(outs[0])
    del settings["ssg"]
    settings["arms"] = [out.settings["ssg"] for out in outs]
    old = setup.stored_layout(len(wanted))
    settings["layout"] = {
        "columns": count or (None if labels else old.get("columns")) or usual,
        "zoom": zoom or old.get("zoom") or _auto_zoom(pipe.image_size),
    }
    for out in outs if separate is not None else []:
        _save_singles(pipe, setup, out)
    titles = _save_sheet(pipe, setup.target, outs, settings)
    pieces = f"{len(wanted)} pictures each, {request.seed_range(wanted.seeds)}"
    print(f"{setup.target}: {', '.join(titles)}; {pieces}")
    print(request.describe(settings, ssg=False))
    if separate is not None:
        print(f"{separate}: single files")


def _arms(strengths: Sequence[str] | None, spatial: SSGOptions, stored: Mapping[str, Any]) -> list[Arm]:
    """The settings to compare, the one without SSG first."""
    if strengths:
        base = next((arm for arm in stored.get("arms", []) if arm), None)
        arms = [_arm(text, spatial, base) for text in options.split_arms(strengths)]
    elif stored:
        arms = [spatial.build(None, arm) if arm else None for arm in stored.get("arms", [])]
    else:
        arms = [None, spatial.build(request.DEFAULT)]
    off = next((arm for arm in arms if arm is None or arm.beta == 0), None)
    return [off, *(arm for arm in arms if arm is not None and arm.beta != 0)]


def _arm(text: str, spatial: SSGOptions, base: Mapping[str, Any] | None) -> Arm:
    return None if text in request.OFF else spatial.build(text, base)


def _draw_arms(
    pipe: VARPipeline, wanted: Pictures, arguments: Mapping[str, Any], arms: Sequence[Arm], batch_size: int
) -> list[GenerationOutput]:
    total = len(arms) * len(wanted) * pipe.schedule.num_tokens
    with drawing(f"drawing {len(arms)} x {len(wanted)} pictures", total) as advance:
        return [request.draw(pipe, wanted, arguments, arm, batch_size, advance) for arm in arms]


def _save_singles(pipe: VARPipeline, setup: Setup, out: GenerationOutput) -> None:
    settings = setup.settings(out)
    for i, image in enumerate(out.images):
        alone = pictures.single_settings(settings, i, setup.batch_size)
        setup.save_single(pipe, image, i, alone, request.arm_name(out.settings["ssg"]))


def _save_sheet(
    pipe: VARPipeline, target: Path, outs: Sequence[GenerationOutput], settings: Mapping[str, Any]
) -> list[str]:
    """Write the picture; returns the titles of its blocks."""
    layout, labels = settings["layout"], settings["labels"]
    rows = [request.label_name(pipe, label) for label in labels[:: layout["columns"]]]
    blocks = [
        Block(request.arm_name(arm), request.ssg_details(arm), out.images)
        for arm, out in zip(settings["arms"], outs, strict=True)
    ]
    sheet, _ = comparison(blocks, rows, **layout, caption=_caption(settings))
    pictures.save_png(sheet, target, settings)
    return [block.title for block in blocks]


def _auto_zoom(size: tuple[int, int]) -> int:
    """Somewhat less than alone, since there are several blocks: 3 for 32 pixels."""
    return max(1, 96 // max(size))


def _caption(settings: Mapping[str, Any]) -> list[str]:
    return [
        *request.describe(settings, ssg=False).split(" · "),
        f"{request.seed_range(settings['seeds'])}, the same in every block",
        f"nextscale {__version__}",
    ]
