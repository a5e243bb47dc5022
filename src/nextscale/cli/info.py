"""``nextscale info``: what a model is, what is installed, and where it would run."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale import __version__
from nextscale.cli import options
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import ModelOptions
from nextscale.cli.pictures import note_version, read_settings
from nextscale.cli.progress import working
from nextscale.cli.request import short
from nextscale.cli.subjects import subjects_of
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.scales import ScaleSchedule

EPILOG = """\
nextscale info
nextscale info cifar10
nextscale info runs/model --json
nextscale info nextscale.png
nextscale info FoundationVision/var --depth 16
nextscale info FoundationVision/Infinity --variant 2b --dtype bfloat16
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Facts = dict[str, Any]


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
@options.bundled
def info(
    *,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="An embedded name, a folder, a hub id, official files, or a picture. "
            "Default: the installation.",
            show_default=False,
        ),
    ] = None,
    which: ModelOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Describe a model, a picture, or this installation.

    Also says which device and dtype "auto" stands for here, and why. Of a picture that nextscale wrote it
    prints the settings, as JSON.
    """
    if name is not None and name.lower().endswith(".png"):
        settings = read_settings(Path(name))
        note_version(Path(name), settings)
        print(json.dumps(settings, indent=2))
        return
    if name is not None and which.model is not None:
        raise InvalidArgumentError(f"{name} and --model {which.model} both name a model; give one of them")
    choice = replace(which, model=name or which.model).choice()
    facts: Facts = {}
    with working(f"loading {choice}" if choice else "looking around"):
        machine = _machine(which.device, which.dtype)
        if choice:
            facts = {"model": _model(choice.load(which.device, which.dtype))}
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


def _model(pipe: Any) -> Facts:
    from nextscale.families import family_of

    tokenizer = pipe.tokenizer.config
    return {
        "name": pipe.name,
        "family": family_of(pipe),
        "parameters": {
            "transformer": sum(p.numel() for p in pipe.transformer.parameters()),
            "tokenizer": sum(p.numel() for p in pipe.tokenizer.parameters()),
        },
        "image_size": list(pipe.image_size),
        "pictures": subjects_of(pipe).summary(),
        "schedule": [list(g) for g in pipe.schedule.grids],
        "tokens": pipe.schedule.num_tokens,
        "transformer": pipe.transformer.config.to_dict(),
        "tokenizer": {**tokenizer.to_dict(), "reduction": tokenizer.reduction},
        "defaults": pipe.defaults,
        **subjects_of(pipe).facts(),
        **_memory(pipe),
    }


def _memory(pipe: Any) -> Facts:
    """Bytes that one picture takes, of pipelines that know."""
    estimate = getattr(pipe, "memory_estimate", None)
    if estimate is None:
        return {}
    return {"memory": {"bytes": estimate(1).total, "dtype": str(pipe.dtype).removeprefix("torch.")}}


def _print_model(facts: Mapping[str, Any]) -> None:
    parts = facts["parameters"]
    sizes = {"transformer": _TRANSFORMER, "tokenizer": _TOKENIZER}
    height, width = facts["image_size"]
    _print_rows(
        [
            ("model", f"{facts['name']} ({facts['family']})"),
            ("pictures", f"{width} x {height} pixels, {facts['pictures']}"),
            *((n, f"{_count(parts[n])} parameters: {_sizes(facts[n], said)}") for n, said in sizes.items()),
            ("schedule", f"{len(facts['schedule'])} steps, {facts['tokens']} tokens"),
        ]
    )
    from nextscale.scales import ScaleSchedule

    for line in draw_schedule(ScaleSchedule(tuple((h, w) for h, w in facts["schedule"]))):
        print(f"{'':14}{line}")
    defaults = ", ".join(f"{k} {_default(value)}" for k, value in facts["defaults"].items())
    rows = [("defaults", defaults)]
    if "class_names" in facts:
        rows.append(("classes", shorten(facts["class_names"], 10) or "numbers only"))
    if "text_encoder" in facts:
        rows.append(("text encoder", facts["text_encoder"] or "none; name one with --text-encoder"))
    if "memory" in facts:
        memory = facts["memory"]
        rows.append(("memory", f"needs about {memory['bytes'] / 1e9:.2g} GB at batch 1 in {memory['dtype']}"))
    _print_rows(rows)


# How sizes are said, by their names in the configurations of all families.
_TRANSFORMER = {
    "depth": "depth {}",
    "embed_dim": "width {}",
    "num_heads": "{} heads",
    "text_dim": "text of {} channels",
    "context_dim": "text of {} channels",
}
_TOKENIZER = {
    "vocab_size": "{} codes",
    "z_channels": "{} channels",
    "bits": "{} bits",
    "reduction": "{} pixels a cell",
}


def _sizes(config: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The sizes of these names, and what is switched on."""
    said = [text.format(config[name]) for name, text in names.items() if name in config]
    return ", ".join(said + [name for name, value in config.items() if value is True])


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
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return short(value) if isinstance(value, list) else str(value)


def _count(number: int) -> str:
    if number >= 1e9:
        return f"{number / 1e9:.2f} billion"
    if number >= 1e6:
        return f"{number / 1e6:.1f} million"
    return f"{number:,}"
