"""``nextscale verify``: whether every picture of a run is there, and whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextscale.cli import request
from nextscale.cli.help import NAMES, Command
from nextscale.cli.progress import drawing, note

if TYPE_CHECKING:
    from nextscale.sampling.plan import RunPlan
    from nextscale.sampling.verifying import FileState

INCOMPLETE = 1  # the exit code
LISTED = 20  # files with a line of their own

EPILOG = """\
nextscale verify samples
nextscale verify samples && echo complete
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a run, as it was given to generate --out.")
    ],
) -> None:
    """Read all pictures of a run: whether each is there, whole, and what the run asks for.

    Exit code 0: all are. 1: some are missing or damaged; a line says of each file what is wrong. 2: the
    folder holds no run.
    """
    from nextscale.sampling.verifying import check_files, run_of

    plan = run_of(folder)
    with drawing(f"reading {plan.count:,} pictures", plan.count) as advance:
        files = list(check_files(folder, plan, advance))
    broken = [file for file in files if file.problem]
    if not broken:
        what = f"{len(files):,} {'file' if len(files) == 1 else 'files'}"
        print(f"{folder}: {plan.count:,} pictures in {what}, all whole")
        print(request.describe({**plan.sampling, "model": plan.model["name"]}))
        return
    _list(broken)
    note(f"error: {_verdict(plan, files, broken)}")
    raise typer.Exit(INCOMPLETE)


def _list(broken: Sequence[FileState]) -> None:
    for file in broken[:LISTED]:
        print(f"{file.path}: missing" if file.is_missing else file.problem)
    if len(broken) > LISTED:
        print(f"… and {len(broken) - LISTED:,} more")


def _verdict(plan: RunPlan, files: Sequence[FileState], broken: Sequence[FileState]) -> str:
    """Say what is left of the run, and how to complete it."""
    missing = sum(file.is_missing for file in broken)
    damaged, whole = len(broken) - missing, sum(f.pictures for f in files if not f.problem)
    counts = [f"{n:,} {word}" for n, word in ((missing, "missing"), (damaged, "damaged")) if n]
    delete = "delete what is damaged, and " if damaged else ""
    return (
        f"{' and '.join(counts)} of {len(files):,} files, {whole:,} of {plan.count:,} pictures are whole; "
        f"{delete}give the command of the run again to make the rest"
    )
