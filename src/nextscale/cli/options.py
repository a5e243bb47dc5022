"""The options that commands share, several of them as one parameter, and the reading of their values."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

_MODEL, _SSG, _DRAW, _OUT = "Model", "Scaled Spatial Guidance", "Drawing", "Output"
_TEXT = "Text to image"


def bundled(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take several options as one dataclass: typer sees its fields as options of their own.

    The help lists them where the dataclass stands among the parameters. Every field needs a default.
    """
    taken = inspect.signature(command, eval_str=True).parameters
    bundles: dict[str, Any] = {n: p.annotation for n, p in taken.items() if is_dataclass(p.annotation)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in taken.items():
        if name not in bundles:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kinds = get_type_hints(bundles[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=kinds[f.name]
            )
            for f in fields(bundles[name])
        ]

    def call(**values: Any) -> None:
        made = {
            name: kind(**{f.name: values.pop(f.name) for f in fields(kind)}) for name, kind in bundles.items()
        }
        command(**values, **made)

    call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _option(panel: str, *names: str, help: str, metavar: str | None = None) -> typer.models.OptionInfo:
    info: typer.models.OptionInfo = typer.Option(
        *names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False
    )
    return info


Model = Annotated[
    str | None,
    _option(
        _MODEL,
        "--model",
        "-m",
        metavar="NAME_OR_PATH",
        help="An embedded name, a model folder, or a hub id; also a folder or hub id of official files. "
        "Default: cifar10.",
    ),
]
Transformer = Annotated[
    Path | None,
    _option(
        _MODEL,
        "--transformer",
        metavar="FILE",
        help="An official transformer, of any family: var_d16.pth, infinity_2b_reg.pth, …",
    ),
]
Tokenizer = Annotated[
    Path | None,
    _option(
        _MODEL,
        "--tokenizer",
        metavar="FILE",
        help="The official tokenizer that belongs to it; looked for beside the transformer.",
    ),
]
DEPTHS = "16, 20, 24, 30 or 36"
VARIANTS = "125m, 2b, 8b or 8b-512"
Depth = Annotated[
    int | None,
    _option(_MODEL, "--depth", metavar="N", help=f"Which official VAR: {DEPTHS}."),
]
Variant = Annotated[
    str | None,
    _option(_MODEL, "--variant", metavar="NAME", help=f"Which official Infinity: {VARIANTS}."),
]
TextEncoder = Annotated[
    str | None,
    _option(
        _MODEL,
        "--text-encoder",
        metavar="NAME_OR_PATH",
        help="What encodes prompts: a folder or hub id. Default: the one the model was made with.",
    ),
]
SystemPrompt = Annotated[
    Path | None,
    _option(
        _MODEL,
        "--system-prompt",
        metavar="FILE",
        help="The text that HART's official code puts before every prompt.",
    ),
]
PatchNums = Annotated[
    str | None,
    _option(
        _MODEL,
        "--patch-nums",
        metavar="1,2,…",
        help="Sides of the scales, or 1x4 for height x width, only for official files of unusual scales that "
        "the tensors cannot tell.",
    ),
]
Averaged = Annotated[
    bool | None,
    _option(
        _MODEL,
        "--averaged/--no-averaged",
        help="Take averaged weights (EMA) of official files that hold both, or the others. Default: averaged "
        "ones where there are any.",
    ),
]
Settings = Annotated[
    str | None,
    _option(
        _MODEL,
        "--settings",
        metavar="NAME=VALUE,…",
        help="What the tensors of official files do not tell, such as num_heads=8; or a JSON object.",
    ),
]
ClassNames = Annotated[
    Path | None,
    _option(
        _MODEL,
        "--class-names",
        metavar="FILE",
        help="Names of the classes, one a line in the order of their numbers, for a model that has none.",
    ),
]
Device = Annotated[
    str | None,
    _option(_MODEL, "--device", metavar="NAME", help="cpu, cuda, cuda:1, mps or auto. Default: auto."),
]
Dtype = Annotated[
    str | None,
    _option(_MODEL, "--dtype", metavar="NAME", help="auto, float32, bfloat16 or float16. Default: auto."),
]

SSGSchedule = Annotated[
    str | None,
    _option(
        _SSG,
        "--ssg-schedule",
        metavar="NAME",
        help="How the strength is spread over the steps: constant, linear, cosine or bandwidth.",
    ),
]
Prior = Annotated[
    str | None,
    _option(
        _SSG,
        "--prior",
        metavar="KIND",
        help="How the step before is enlarged: dse, dct, bilinear or nearest.",
    ),
]
Norm = Annotated[
    str | None,
    _option(_SSG, "--norm", metavar="NAME", help="Normalisation of the prior: ortho, forward or backward."),
]
Remember = Annotated[
    str | None,
    _option(
        _SSG,
        "--remember",
        metavar="WHICH",
        help="The logits the next prior is made from: unguided or guided.",
    ),
]
Start = Annotated[int | None, _option(_SSG, "--ssg-start", metavar="STEP", help="First guided step, from 1.")]
Stop = Annotated[
    int | None, _option(_SSG, "--ssg-stop", metavar="STEP", help="Step before which guidance ends.")
]

Seed = Annotated[
    str | None,
    _option(
        _DRAW,
        "--seed",
        metavar="N",
        help="7 gives the pictures the seeds 7, 8, 9, …; 7,3,5 gives each its own.",
    ),
]
Count = Annotated[
    int | None,
    _option(_DRAW, "--count", "-n", metavar="N", help="Pictures per label or prompt; with --out, in all."),
]
GuidanceScale = Annotated[
    str | None,
    _option(
        _DRAW,
        "--guidance-scale",
        "-g",
        metavar="T",
        help="Strength of classifier-free guidance, or one number per step. Off is 0 for VAR and HART, where "
        "it is the strength at the last step, and 1 for Infinity.",
    ),
]
TopK = Annotated[
    int | None, _option(_DRAW, "--top-k", metavar="K", help="Draw from the K likeliest tokens; 0 is all.")
]
TopP = Annotated[
    float | None,
    _option(_DRAW, "--top-p", metavar="P", help="Draw from the likeliest tokens that reach P together."),
]
MinP = Annotated[
    float | None,
    _option(
        _DRAW, "--min-p", metavar="P", help="Draw from tokens at least P times as likely as the likeliest."
    ),
]
Temperature = Annotated[
    str | None,
    _option(
        _DRAW, "--temperature", metavar="T", help="Logits are divided by it; one number, or one per step."
    ),
]
Sampler = Annotated[
    str | None,
    _option(
        _DRAW,
        "--sampler",
        metavar="NAME",
        help="paired (a picture depends on its seed alone), greedy, or multinomial (as the official code).",
    ),
]
MoreSmooth = Annotated[
    bool | None,
    _option(_DRAW, "--more-smooth/--no-more-smooth", help="Mix codes instead of drawing them: for looks."),
]
BatchSize = Annotated[
    int | None, _option(_DRAW, "--batch-size", "-b", metavar="N", help="Pictures made at once. Default: 16.")
]

Prompt = Annotated[
    list[str] | None,
    _option(_TEXT, "--prompt", "-p", metavar="TEXT", help="What to draw; may be repeated."),
]
PromptFile = Annotated[
    Path | None,
    _option(_TEXT, "--prompts", metavar="FILE", help="A text file with a prompt on every line."),
]
NegativePrompt = Annotated[
    str | None,
    _option(_TEXT, "--negative-prompt", metavar="TEXT", help="What to keep away from."),
]
AspectRatio = Annotated[
    str | None,
    _option(
        _TEXT,
        "--aspect-ratio",
        metavar="W:H",
        help="Shape of the pictures, as 16:9; the nearest that the model knows.",
    ),
]
Pixels = Annotated[
    str | None,
    _option(_TEXT, "--pixels", metavar="SIZE", help="Size of the pictures: 0.06M, 0.25M, 0.60M or 1M."),
]
Height = Annotated[
    int | None,
    _option(_TEXT, "--height", metavar="N", help="In pixels, with --width, instead of shape and size."),
]
Width = Annotated[int | None, _option(_TEXT, "--width", metavar="N", help="In pixels, with --height.")]
GuidanceLayer = Annotated[
    int | None,
    _option(
        _TEXT,
        "--guidance-layer",
        metavar="N",
        help="Where classifier-free guidance acts: 0 on the logits, -3 after the third last layer.",
    ),
]
Residual = Annotated[
    bool | None,
    _option(
        _TEXT, "--residual/--no-residual", help="Whether HART draws the continuous rest of the finest scale."
    ),
]
MaskIterations = Annotated[
    int | None,
    _option(
        _TEXT, "--mask-iterations", metavar="N", help="In how many parts HART predicts the finest scale."
    ),
]

Tile = Annotated[
    int | None,
    _option(_TEXT, "--tile", metavar="N", help="Decode in tiles of N cells a side, where memory is short."),
]

Separate = Annotated[
    Path | None,
    _option(
        _OUT, "--separate", metavar="DIR", help="Also write every picture as a file of its own, unscaled."
    ),
]
From = Annotated[
    Path | None,
    _option(
        _OUT,
        "--from",
        metavar="PICTURE",
        help="Take all settings and seeds from a picture that nextscale wrote; other options override them.",
    ),
]
Zoom = Annotated[
    int | None,
    _option(_OUT, "--zoom", metavar="N", help="Enlarge pixels to N x N. Default: more for smaller pictures."),
]
