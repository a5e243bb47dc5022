"""``nextscale compare``: the same seeds without and with SSG, side by side, or measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale import __version__
from nextscale.cli import comparison, options, pictures, request, values
from nextscale.cli.comparison import MeasuringOptions
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import ModelOptions
from nextscale.cli.progress import drawing, working
from nextscale.cli.request import DrawingOptions, Pictures, SSGOptions
from nextscale.cli.ruler import RulerOptions
from nextscale.cli.setup import CountOptions, FileOptions, Job, prepare
from nextscale.cli.sheets import Block
from nextscale.cli.sheets import comparison as draw_sheet
from nextscale.cli.subjects import SubjectOptions

if TYPE_CHECKING:
    from nextscale.generation.request import GenerationOutput
    from nextscale.guidance.ssg import ScaledSpatialGuidance

    Arm = ScaledSpatialGuidance | None

COMMAND = "compare"
DEFAULT_NAME = "compare.png"
SMALL, SMALL_COUNT, LARGE_COUNT = 64, 4, 2  # pictures per row for sides up to 64 pixels, and above

EPILOG = """\
nextscale compare --output demo.png
nextscale compare --ssg 0.3,0.6,1.2
nextscale compare horse ship --count 6 --seed 100 --guidance-scale 3
nextscale compare --ssg 0.6 --ssg-schedule bandwidth --norm forward
nextscale compare volcano fountain --model FoundationVision/var --depth 16 --ssg 0.6
nextscale compare --model my-infinity --prompt "a lighthouse at dawn" --prompt "a red panda" --count 3
nextscale compare --images 10000 --ssg 0.6 --output measured.json
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
@options.bundled
def compare(
    *,
    subjects: SubjectOptions,
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
    spatial: SSGOptions,
    how_many: CountOptions,
    shape: DrawingOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The picture, a .png. Default: compare.png, or compare-2.png where that exists. With "
            "--images the figures, a .json with a table beside it as .md. Default: comparison.json.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    files: FileOptions,
    measuring: MeasuringOptions,
    ruler: RulerOptions,
    model: ModelOptions,
) -> None:
    """Make the same pictures without and with SSG, side by side: a row per class or prompt.

    Seeds start at 0 unless --seed says otherwise, and are the same in every block.
    With --images, measure both instead: the difference of every figure, with a 95 % interval.
    """
    shown = {"LABELS": subjects.words, "--prompt": subjects.prompt, "--prompts": subjects.prompts}
    sheets_only = {**shown, "--count": how_many.count, **_given(files)}
    comparison.check_mode(measuring.images, {**measuring.only_here(), **_given(ruler)}, sheets_only)
    if measuring.images is not None:
        chosen = comparison.Measuring.of(measuring, how_many, output)
        task = chosen.plan(read_arms(ssg, spatial), shape.given(), ruler, model)
        comparison.measure(task, chosen)
        return
    typed = subjects.typed()
    setup = prepare(COMMAND, DEFAULT_NAME, output, files, model, how_many)
    with working(f"loading {setup.choice}"):
        given = shape.given()
        arms = read_arms(ssg, spatial, setup.stored)
        job = setup.load(given, model.device, model.dtype)
    arms = list(dict.fromkeys(request.with_model_default(job.pipe, arm) for arm in arms))
    usual = SMALL_COUNT if max(job.pipe.image_size) <= SMALL else LARGE_COUNT
    wanted = job.choose(typed, how_many, default_seed=0, default_count=usual)
    job.check_size(len(wanted), files.zoom or setup.stored_layout(len(wanted)).get("zoom"), len(arms))
    outs = _draw_arms(job, wanted, arms)
    settings = job.settings(outs[0])
    del settings["ssg"]
    settings["arms"] = [out.settings["ssg"] for out in outs]
    old = setup.stored_layout(len(wanted))
    settings["layout"] = {
        "columns": how_many.count or (None if typed else old.get("columns")) or usual,
        "zoom": files.zoom or old.get("zoom") or _auto_zoom(outs[0].images[0].size),
    }
    for out in outs if setup.separate is not None else []:
        _save_singles(job, out)
    titles = _save_sheet(job, outs, settings)
    pieces = f"{len(wanted)} pictures each, {request.seed_range(wanted.seeds)}"
    print(f"{setup.target}: {', '.join(titles)}; {pieces}")
    print(request.describe(settings, ssg=False))
    if setup.separate is not None:
        print(f"{setup.separate}: single files")


def _given(bundle: Any) -> dict[str, Any]:
    """Options of a bundle by their names on the command line."""
    return {values.flag(name.rstrip("_")): value for name, value in vars(bundle).items()}


def read_arms(
    strengths: Sequence[str] | None, spatial: SSGOptions, stored: Mapping[str, Any] | None = None
) -> list[Arm]:
    """The settings to compare, the one without SSG first.

    strengths: as typed; ``None`` is the model's. stored: the settings of an earlier picture.
    """
    stored = stored or {}
    if strengths:
        base = next((arm for arm in stored.get("arms", []) if arm), None)
        arms = [_arm(text, spatial, base) for text in values.split_arms(strengths)]
    elif stored:
        arms = [spatial.build(None, arm) if arm else None for arm in stored.get("arms", [])]
    else:
        arms = [None, spatial.build(request.DEFAULT)]
    off = next((arm for arm in arms if arm is None or arm.beta == 0), None)
    return [off, *(arm for arm in arms if arm is not None and arm.beta != 0)]


def _arm(text: str, spatial: SSGOptions, base: Mapping[str, Any] | None) -> Arm:
    return None if text in request.OFF else spatial.build(text, base)


def _draw_arms(job: Job, wanted: Pictures, arms: Sequence[Arm]) -> list[GenerationOutput]:
    job.prepare(wanted)
    total = len(arms) * job.tokens(len(wanted))
    with drawing(f"drawing {len(arms)} x {len(wanted)} pictures", total) as advance:
        outs = [job.draw(wanted, arms[0], advance)]
        for arm in arms[1:]:
            outs.append(job.draw(wanted, arm, advance, outs[-1].settings["batch_size"]))
        # Last bits depend on the batch, so all are drawn alike: as the one that needs most memory.
        least = outs[-1].settings["batch_size"]
        return [
            out if out.settings["batch_size"] == least else job.draw(wanted, arm, lambda _: None, least)
            for out, arm in zip(outs, arms, strict=True)
        ]


def _save_singles(job: Job, out: GenerationOutput) -> None:
    settings = job.settings(out)
    for i, image in enumerate(out.images):
        alone = pictures.single_settings(settings, i)
        job.save_single(image, i, alone, request.arm_name(out.settings["ssg"]))


def _save_sheet(job: Job, outs: Sequence[GenerationOutput], settings: Mapping[str, Any]) -> list[str]:
    """Write the picture; returns the titles of its blocks."""
    layout, shown = settings["layout"], settings[job.subjects.key]
    rows = [job.subjects.whole(subject) for subject in shown[:: layout["columns"]]]
    blocks = [
        Block(request.arm_name(arm), request.ssg_details(arm), out.images)
        for arm, out in zip(settings["arms"], outs, strict=True)
    ]
    sheet, _ = draw_sheet(blocks, rows, **layout, caption=_caption(settings))
    pictures.save_png(sheet, job.setup.target, settings)
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
