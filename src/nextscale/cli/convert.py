"""``nextscale convert``: official files of any family, once, into a folder in the library's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextscale.cli import options
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import ModelChoice
from nextscale.cli.pictures import check_folder
from nextscale.cli.progress import working
from nextscale.errors import InvalidArgumentError

EPILOG = """\
nextscale convert var_d16.pth var-d16 --tokenizer vae_ch160v4096z32.pth
nextscale convert FoundationVision/var var-d16 --depth 16 --dtype bfloat16
nextscale convert FoundationVision/Infinity infinity-2b --variant 2b --dtype bfloat16
nextscale convert last.ckpt my-var --tokenizer vae.pth --no-averaged --class-names classes.txt
nextscale generate volcano --model var-d16
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="An official transformer file, a folder with official files, a hub id, "
            "or a model to write in another dtype.",
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DST", help="The folder to write; made if it is missing.")
    ],
    tokenizer: options.Tokenizer = None,
    depth: options.Depth = None,
    variant: options.Variant = None,
    patch_nums: options.PatchNums = None,
    averaged: options.Averaged = None,
    settings: options.Settings = None,
    class_names: options.ClassNames = None,
    text_encoder: options.TextEncoder = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="float32, bfloat16 or float16: how weights are stored. Default: float32.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write official checkpoints of any family in this library's layout.

    The result is a folder of safetensors and JSON that --model takes and that from_pretrained loads. Of
    text encoders only the name is written.
    """
    if folder.is_file():
        raise InvalidArgumentError(f"{str(folder)!r} is a file; DST is a folder to write")
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidArgumentError(f"the folder {str(folder)!r} is not empty; name a new one")
    check_folder(folder.absolute().parent)
    choice = ModelChoice.given(
        source,
        None,
        tokenizer,
        depth,
        patch_nums,
        variant=variant,
        text_encoder=text_encoder,
        averaged=averaged,
        settings=settings,
        class_names=class_names,
    )
    with working(f"converting {choice}"):
        choice.load("cpu", dtype or "float32").save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {choice} in {dtype or 'float32'}, {size / 1e6:.1f} MB")
