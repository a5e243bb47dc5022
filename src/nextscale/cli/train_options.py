"""The options of ``nextscale train``, which its three commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

DATA_HELP = "A folder of pictures, a parquet file or a folder of them, or a datasets id."

Data = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Where weights, checkpoint and log go. Default: runs/KIND.",
        show_default=False,
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe", metavar="NAME", help="Sizes and settings: cifar10, eurosat, or tiny to try things out."
    ),
]
TokenRecipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="Sizes and settings: cifar10, eurosat, or cifar10-bits for a model that takes prompts; tiny or "
        "tiny-bits to try things out.",
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        "--held-out",
        metavar="DATA",
        help="Data to measure on. Default: the test split, or a part of DATA.",
        show_default=False,
    ),
]
Check = Annotated[
    str | None,
    typer.Option(
        "--check",
        metavar="HOW",
        help="Look for broken pictures before: headers, or full (every pixel). Default: headers; full for a "
        "transformer.",
        show_default=False,
    ),
]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out broken pictures, counted and named; else an error.")
]
Fresh = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on from the checkpoint in the output folder.")
]
PictureSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="PIXELS",
        help="Side of the pictures, or HEIGHTxWIDTH, as in 64x48. Default: what the scales end at, or the "
        "recipe's.",
        show_default=False,
    ),
]
Scales = Annotated[
    str | None,
    typer.Option(
        "--scales",
        metavar="1,2,…",
        help="Sides of the grids, or HEIGHTxWIDTH each, as in 1,2x1,4x3; the last is the size divided by the "
        "tokenizer's stride. Default: the published list for the size, or one like it.",
        show_default=False,
    ),
]
OtherSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="PIXELS",
        help="Side of the pictures, or HEIGHTxWIDTH. Default: the tokenizer's.",
        show_default=False,
    ),
]
RulerSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="PIXELS",
        help="Side of the pictures, or HEIGHTxWIDTH. Default: the recipe's.",
        show_default=False,
    ),
]
OtherScales = Annotated[
    str | None,
    typer.Option(
        "--scales",
        metavar="1,2,…",
        help="Sides of the grids, or HEIGHTxWIDTH each. Default: the tokenizer's; an official tokenizer has "
        "none, then those of --initial.",
        show_default=False,
    ),
]


def _setting(name: str, metavar: str, help: str) -> Any:
    """Describe an option in whose place a recipe has a value."""
    return typer.Option(
        name,
        metavar=metavar,
        help=f"{help} Default: the recipe's.",
        rich_help_panel="Settings",
        show_default=False,
    )


Images = Annotated[int | None, _setting("--images", "N", "Pictures to see in all, repeats included.")]
BatchSize = Annotated[
    int | None, _setting("--batch-size", "N", "Pictures per iteration, of all processes together.")
]
Accumulate = Annotated[
    int | None,
    _setting("--accumulate", "N", "Parts of a batch that are computed one after another, to save memory."),
]
Rate = Annotated[float | None, _setting("--lr", "X", "Peak learning rate.")]
Dtype = Annotated[str | None, _setting("--dtype", "NAME", "Autocast: auto, float32 or bfloat16.")]
Seed = Annotated[int | None, _setting("--seed", "N", "Of everything random.")]
Perceptual = Annotated[
    str | None,
    _setting(
        "--perceptual",
        "SOURCE",
        "Also compare features: of VGG16 (a file), of a classifier (a run's folder, a name), or none.",
    ),
]
Adversarial = Annotated[
    float | None,
    _setting("--adversarial", "X", "Weight of the adversarial term beside the others, say 0.5; 0 is none."),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="cpu, cuda, mps or auto.", rich_help_panel="Settings")
]
