"""``nextscale bench``: how fast this machine draws, what SSG costs, and how far from the limits that is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextscale.cli import options, values
from nextscale.cli.allocator import keep_freed_memory
from nextscale.cli.help import NAMES, Command
from nextscale.cli.progress import drawing, working
from nextscale.errors import InvalidArgumentError

EPILOG = """\
nextscale bench
nextscale bench --depth 2 --repeats 3
nextscale bench --batch-size 4 --threads 2 --output bench.json
nextscale bench --batch-size 4 --official path/to/VAR
nextscale bench --depth 30 --batch-size 64 --device cuda --dtype bfloat16
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
def bench(
    *,
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", help="Layers of the VAR, 64 channels wide for each.")
    ] = 16,
    size: Annotated[int, typer.Option("--size", metavar="PIXELS", help="256, 512 or 1024.")] = 256,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", metavar="N", help="Pictures drawn at once.")
    ] = 1,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", help="Rounds; each runs everything once.")
    ] = 5,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", help="CPU threads. Default: as many as torch takes."),
    ] = None,
    official: Annotated[
        Path | None,
        typer.Option(
            "--official",
            metavar="FOLDER",
            help="A checkout of FoundationVision/VAR: its code is timed beside ours, with the same weights.",
        ),
    ] = None,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Also time --help and a first picture.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="All numbers and conditions, as JSON."),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Time a VAR of published shape with random weights, without and with SSG, in one run side by side.

    The default takes some minutes on two CPU cores and 3 GB of memory. Quotients are of neighbouring runs, so
    other work on the machine disturbs them less than the seconds; for both, a quiet machine is better.
    """
    values.require_positive(
        {"--depth": depth, "--batch-size": batch_size, "--repeats": repeats, "--threads": threads}
    )
    if official is not None and not (official / "models").is_dir():
        raise InvalidArgumentError(
            f"{str(official)!r} has no folder models, so it is no checkout of FoundationVision/VAR"
        )
    if output is not None and not output.parent.is_dir():
        raise InvalidArgumentError(f"there is no folder {str(output.parent)!r} for --output")
    with working("loading"):
        import torch

        from nextscale.benchmark import suite
        from nextscale.evaluation.files import write_json
        from nextscale.nn.placement import place

        keep_freed_memory()  # as all commands that draw do; the official code gains by it as well
        if threads is not None:
            torch.set_num_threads(threads)
        placement = place(device or "auto", dtype or "auto")
    workload = suite.Workload(depth, size, batch_size, repeats)
    total = suite.total_runs(workload, placement, with_official=official is not None)
    with drawing("timing", total) as advance:
        report = suite.run(workload, placement, checkout=official, start=start, advance=advance)
    print("\n".join(report.lines()))
    if output is not None:
        write_json(output, report.to_dict())
        print(f"\n{output}: every time, and the conditions")
