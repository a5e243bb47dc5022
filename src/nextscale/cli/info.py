"""``nextscale info``: what a model is, what is installed, and where it would run."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale import __version__
from nextscale.cli import options
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import ModelChoice
from nextscale.cli.pictures import read_settings
from nextscale.cli.progress import working

if TYPE_CHECKING:
    from nextscale.families.var.pipeline import VARPipeline
    from nextscale.scales import ScaleSchedule

EPILOG = """\
nextscale info
nextscale info cifar10
nextscale info runs/model --json
nextscale info nextscale.png
nextscale info FoundationVision/var --depth 16
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Facts = dict[str, Any]


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="An embedded name, a folder, a hub id, official files, or a picture. "
            "Default: the installation.",
            show_default=False,
        ),
    ] = None,
    transformer: options.Transformer = None,
    tokenizer: options.Tokenizer = None,
    depth: options.Depth = None,
    patch_nums: options.PatchNums = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Describe a model, a picture, or this installation.

    Also says which device and dtype "auto" stands for here, and why. Of a picture that nextscale wrote it
    prints the settings, as JSON.
    """
    if model is not None and model.lower().endswith(".png"):
        print(json.dumps(read_settings(Path(model)), indent=2))
        return
    choice = ModelChoice.given(model, transformer, tokenizer, depth, patch_nums)
    facts: Facts = {}
    with working(f"loading {choice}" if choice else "looking around"):
        machine = _machine(device, dtype)
        if choice:
            facts = {"model": _model(choice.load(device, dtype))}
    facts |= {"installation": machine}
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    if "model" in facts:
        _print_model(facts["model"])
        print()
    _print_machine(machine)


def _machine(device: str | None, dtype: str | None) -> Facts:
    import torch

    from nextscale.nn.placement import place
    from nextscale.weights.layout import EMBEDDED

    placement = place(device or "auto", dtype or "auto")
    return {
        "nextscale": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "threads": torch.get_num_threads(),
        "device": str(placement.device),
        "device_name": torch.cuda.get_device_name(placement.device)
        if placement.device.type == "cuda"
        else None,
        "device_reason": placement.device_reason,
        "dtype": str(placement.dtype).removeprefix("torch."),
        "dtype_reason": placement.dtype_reason,
        "embedded_models": list(EMBEDDED),
    }


def _model(pipe: VARPipeline) -> Facts:
    config, tokenizer = pipe.transformer.config, pipe.tokenizer.config
    return {
        "name": pipe.name,
        "family": "var",
        "parameters": {
            "transformer": sum(p.numel() for p in pipe.transformer.parameters()),
            "tokenizer": sum(p.numel() for p in pipe.tokenizer.parameters()),
        },
        "image_size": list(pipe.image_size),
        "schedule": [list(g) for g in pipe.schedule.grids],
        "tokens": pipe.schedule.num_tokens,
        "transformer": config.to_dict(),
        "tokenizer": tokenizer.to_dict(),
        "defaults": pipe.defaults,
        "class_names": list(pipe.class_names),
        "num_classes": config.num_classes,
    }


def _print_model(facts: Mapping[str, Any]) -> None:
    parts, t, v = facts["parameters"], facts["transformer"], facts["tokenizer"]
    height, width = facts["image_size"]
    flags = [name for name in ("attn_l2_norm", "shared_aln") if t[name]]
    _print_rows(
        [
            ("model", f"{facts['name']} ({facts['family']})"),
            ("pictures", f"{width} x {height} pixels, {facts['num_classes']} classes"),
            (
                "transformer",
                f"{_count(parts['transformer'])} parameters: depth {t['depth']}, width {t['embed_dim']}, "
                f"{t['num_heads']} heads{''.join(f', {f}' for f in flags)}",
            ),
            (
                "tokenizer",
                f"{_count(parts['tokenizer'])} parameters: {v['vocab_size']} codes of "
                f"{v['z_channels']} channels, {2 ** (len(v['ch_mult']) - 1)} pixels a cell",
            ),
            ("schedule", f"{len(facts['schedule'])} steps, {facts['tokens']} tokens"),
        ]
    )
    from nextscale.scales import ScaleSchedule

    for line in draw_schedule(ScaleSchedule(tuple((h, w) for h, w in facts["schedule"]))):
        print(f"{'':14}{line}")
    defaults = ", ".join(f"{k} {_default(value)}" for k, value in facts["defaults"].items())
    _print_rows([("defaults", defaults), ("classes", shorten(facts["class_names"], 10) or "numbers only")])


def _print_machine(facts: Mapping[str, Any]) -> None:
    named = f" ({facts['device_name']})" if facts["device_name"] else ""
    _print_rows(
        [
            ("nextscale", f"{facts['nextscale']}, Python {facts['python']}, torch {facts['torch']}"),
            ("device", f"{facts['device']}{named}: {facts['device_reason']}"),
            ("dtype", f"{facts['dtype']}: {facts['dtype_reason']}"),
            ("threads", str(facts["threads"])),
            ("embedded", ", ".join(facts["embedded_models"])),
        ]
    )


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:14}{value}")


def draw_schedule(schedule: ScaleSchedule, width: int = 60) -> list[str]:
    """A small picture of the grids: a square of blocks for each step, and the sizes below.

    Grids too large for the width, and those of other shapes than squares, get their sizes alone.
    """
    sizes = [f"{h}x{w}" for h, w in schedule]
    shown = [(-(-h // 2), w) for h, w in schedule]  # two rows of cells per line of text
    columns = [max(w, len(size)) for (_, w), size in zip(shown, sizes, strict=True)]
    if sum(columns) + 2 * len(columns) > width:
        return [" ".join(sizes)]
    height = max(h for h, _ in shown)
    lines = []
    for row in range(height):
        cells = (
            _line_of_cells(grid, row - (height - lines_of)).ljust(column)
            for grid, (lines_of, _), column in zip(schedule, shown, columns, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return [*lines, "  ".join(s.ljust(c) for s, c in zip(sizes, columns, strict=True)).rstrip()]


def _line_of_cells(grid: tuple[int, int], line: int) -> str:
    """One line of text of a grid: two rows of cells, or one at the top of an odd grid."""
    h, w = grid
    if line < 0:
        return ""
    return ("▄" if h % 2 and line == 0 else "█") * w


def shorten(names: Sequence[str], limit: int) -> str:
    """The names, or the first of them and how many more."""
    more = f", … ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _default(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def _count(number: int) -> str:
    if number >= 1e9:
        return f"{number / 1e9:.2f} billion"
    if number >= 1e6:
        return f"{number / 1e6:.1f} million"
    return f"{number:,}"
