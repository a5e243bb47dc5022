"""``nextscale train``: the recipes, with a progress bar."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli import values
from nextscale.cli.help import NAMES, Command, Group
from nextscale.cli.pictures import check_folder
from nextscale.cli.progress import TrainingBar, TrainingLines, note, on_terminal
from nextscale.cli.sizes import read_scales, read_size
from nextscale.cli.train_options import (
    Accumulate,
    Adversarial,
    BatchSize,
    Check,
    Data,
    Device,
    Dtype,
    Fresh,
    HeldOut,
    Images,
    OtherScales,
    OtherSize,
    Output,
    Perceptual,
    PictureSize,
    Rate,
    Recipe,
    RulerSize,
    Scales,
    Seed,
    SkipBroken,
    TokenRecipe,
)
from nextscale.errors import DataError, InvalidArgumentError, NextscaleError

if TYPE_CHECKING:
    from nextscale.sampling.processes import Processes

CHECKS = ("headers", "full")
FILES = {
    "checkpoint.pt": "to resume from",
    "log.jsonl": "every figure",
    "config.json": "a complete model: --model",
}


def _epilog(*examples: str) -> str:
    return "\n".join(examples)


app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=False,
    context_settings=NAMES,
    epilog=_epilog(
        "nextscale train tokenizer data/cifar10 -o runs/tokenizer",
        "nextscale train transformer data/cifar10 --tokenizer runs/tokenizer -o runs/model",
        "nextscale generate --model runs/model",
    ),
)


@app.callback(invoke_without_command=True)
def train(ctx: typer.Context) -> None:
    """Train a tokenizer, a transformer or a classifier.

    A run that was stopped goes on when the same command is given again.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(
    cls=Command,
    context_settings=NAMES,
    epilog=_epilog(
        "nextscale train tokenizer data/cifar10",
        "nextscale train tokenizer pictures --size 64 -o runs/mine --images 2000000",
        "nextscale train tokenizer portraits --size 64x48 -o runs/portraits",
        "nextscale train tokenizer pictures --scales 1,2,3,4,6,8,12 -o runs/mine",
        "nextscale train tokenizer data/cifar10 --recipe cifar10-bits -o runs/bits",
    ),
)
def tokenizer(
    data: Data,
    output: Output = None,
    size: PictureSize = None,
    scales: Scales = None,
    recipe: TokenRecipe = "cifar10",
    perceptual: Perceptual = None,
    adversarial: Adversarial = None,
    held_out: HeldOut = None,
    check: Check = None,
    skip_broken: SkipBroken = False,
    resume: Fresh = True,
    images: Images = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    lr: Rate = None,
    dtype: Dtype = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Train a tokenizer: pictures to token maps and back.

    Reports reconstruction error per scale, and how well the codebook or the bits are used.
    """
    pictures = (held_out, check, skip_broken)
    settings = _settings(recipe, *pictures, resume, images, batch_size, accumulate, lr, dtype, seed, device)
    settings |= {"perceptual": perceptual, "adversarial": adversarial}
    _train("tokenizer", data, output, size=read_size(size), scales=read_scales(scales), **settings)


@app.command(
    cls=Command,
    context_settings=NAMES,
    epilog=_epilog(
        "nextscale train transformer data/cifar10 --tokenizer runs/tokenizer -o runs/model",
        "nextscale train transformer pictures --tokenizer cifar10 --initial cifar10 --images 20000",
        "nextscale train transformer pictures --tokenizer vae_ch160v4096z32.pth --initial var_d16.pth",
        "nextscale train transformer data/cifar10 --tokenizer runs/bits --recipe cifar10-bits",
    ),
)
def transformer(
    data: Data,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", metavar="DIR", help="A run's folder, a model's name, or an official file."
        ),
    ],
    output: Output = None,
    initial: Annotated[
        str | None,
        typer.Option(
            "--initial",
            metavar="MODEL",
            help="Start from this model's weights (fine-tune): a run's folder, a model's name, or an "
            "official file. The model gets its sizes; with another number of classes, their table is new.",
            show_default=False,
        ),
    ] = None,
    size: OtherSize = None,
    scales: OtherScales = None,
    recipe: TokenRecipe = "cifar10",
    held_out: HeldOut = None,
    check: Check = None,
    skip_broken: SkipBroken = False,
    resume: Fresh = True,
    images: Images = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    lr: Rate = None,
    dtype: Dtype = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Train a transformer on token maps; gives a complete model.

    The recipe must be of the tokenizer's kind: both with -bits, or both without. With bits the prompts are
    captions made from the names of the classes.
    """
    pictures = (held_out, check, skip_broken)
    settings = _settings(recipe, *pictures, resume, images, batch_size, accumulate, lr, dtype, seed, device)
    sizes: dict[str, Any] = dict(size=read_size(size), scales=read_scales(scales))
    _train("transformer", data, output, tokenizer=tokenizer, initial=initial, **sizes, **settings)


@app.command(
    cls=Command,
    context_settings=NAMES,
    epilog=_epilog("nextscale train classifier data/cifar10 -o runs/classifier"),
)
def classifier(
    data: Data,
    output: Output = None,
    size: RulerSize = None,
    recipe: Recipe = "cifar10",
    held_out: HeldOut = None,
    check: Check = None,
    skip_broken: SkipBroken = False,
    resume: Fresh = True,
    images: Images = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    lr: Rate = None,
    dtype: Dtype = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Train the small classifier that measures pictures."""
    pictures = (held_out, check, skip_broken)
    settings = _settings(recipe, *pictures, resume, images, batch_size, accumulate, lr, dtype, seed, device)
    _train("classifier", data, output, size=read_size(size), **settings)


def _settings(
    recipe: str,
    held_out: str | None,
    check: str | None,
    skip_broken: bool,
    resume: bool,
    images: int | None,
    batch_size: int | None,
    accumulate: int | None,
    lr: float | None,
    dtype: str | None,
    seed: int | None,
    device: str,
) -> dict[str, Any]:
    """Gather what all three kinds take, by the names of the recipes' functions.

    Raises InvalidArgumentError, naming the option, for what no run can have.
    """
    values.require_positive({"--images": images, "--batch-size": batch_size, "--accumulate": accumulate})
    if lr is not None and not 0 < lr < math.inf:
        raise InvalidArgumentError(f"--lr must be a positive number, got {lr}")
    if check is not None and check not in CHECKS:
        raise InvalidArgumentError(f"--check is {' or '.join(CHECKS)}, got {check!r}")
    return dict(
        **({} if check is None else {"check": check}),
        recipe=recipe,
        held_out=held_out,
        skip_broken=skip_broken,
        resume=resume,
        images=images,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        dtype=dtype,
        seed=seed,
        device=device,
    )


def _train(kind: str, data: str, output: Path | None, **arguments: Any) -> None:
    folder = output if output is not None else Path("runs") / kind
    if folder.is_file():
        raise InvalidArgumentError(f"{str(folder)!r} is a file; --output takes a folder")
    if output is not None:
        check_folder(_nearest_folder(folder))
    from nextscale.sampling.processes import joined
    from nextscale.training import recipes
    from nextscale.training.data import BrokenPicturesError
    from nextscale.training.wording import options_named

    run: Callable[..., Any] = getattr(recipes, f"train_{kind}")
    try:
        with (
            options_named(),
            joined(arguments["device"], lambda text: note(f"note: {text}")) as processes,
            _reporter(f"training the {kind}", processes) as report,
        ):
            device = processes.device or arguments["device"]
            run(data, folder, report=report, **{**arguments, "device": device})
    except KeyboardInterrupt:
        if (folder / "checkpoint.pt").exists():
            note("stopped; the same command goes on from the last checkpoint")
        raise
    except NextscaleError as error:
        with contextlib.suppress(OSError):  # what the failed start left: folders without files
            folder.rmdir()
        if isinstance(error, BrokenPicturesError):
            raise DataError(f"{error} (--skip-broken)") from None
        if isinstance(error, DataError) and (folder / "checkpoint.pt").exists():
            note("stopped; the same command goes on from the last checkpoint")
        raise
    if not processes.is_main:
        return
    print(f"{folder}: the {kind} is trained")
    for name in sorted(p.name for p in folder.iterdir()):
        if name in FILES or name == kind:
            print(f"  {name:16} {FILES.get(name, 'the weights')}")


def _nearest_folder(path: Path) -> Path:
    """The deepest folder on the way to a path that exists; the rest will be made."""
    path = path.absolute()
    return path if path.exists() else _nearest_folder(path.parent)


def _reporter(text: str, processes: Processes) -> AbstractContextManager[Any]:
    if not processes.is_main:
        return contextlib.nullcontext(lambda record, step, total: None)
    return TrainingBar(text) if on_terminal() else contextlib.nullcontext(TrainingLines())
