"""``nextscale sweep``: all combinations of the settings in a small file, measured alike; tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli import options, pictures, request, values
from nextscale.cli.evaluate import check_model
from nextscale.cli.help import NAMES, Command
from nextscale.cli.launch import join_launch
from nextscale.cli.models import ModelChoice, ModelOptions
from nextscale.cli.progress import drawing, note, working
from nextscale.cli.ruler import PANEL, BatchSize, RulerOptions, option
from nextscale.errors import InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from nextscale.evaluation.features import FeatureSpace
    from nextscale.evaluation.reference import MeasuredReference, Reference
    from nextscale.evaluation.sweep import Measurement, Results
    from nextscale.evaluation.sweep_file import Sweep
    from nextscale.evaluation.sweep_table import CellMean

OUT = "Output"
WORK, RESULTS = "work", "results"
FORMATS = ("svg", "pdf")

EPILOG = """\
nextscale sweep sweep.toml --dry-run
nextscale sweep sweep.toml --images 2000 --output sweep
nextscale sweep sweep.toml --model runs/model --heat-map temperature,beta --figure recall
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@dataclass(frozen=True)
class SweepOptions:
    """What replaces entries of the file; ``None`` is what the file says."""

    images: Annotated[
        int | None,
        option(PANEL, "--images", "-n", metavar="N", help="Pictures in every set. Default: as in the file."),
    ] = None
    sets: Annotated[
        int | None,
        option(PANEL, "--sets", metavar="N", help="Sets of pictures. Default: as in the file, or 3."),
    ] = None
    batch_size: BatchSize = None


@dataclass(frozen=True)
class FileOptions:
    """Where results go, and what is plotted."""

    output: Annotated[
        Path | None,
        option(
            OUT,
            "--output",
            "-o",
            metavar="DIR",
            help="The folder for results, tables and plots; a stopped sweep goes on in it. Default: the "
            "file's name without .toml.",
        ),
    ] = None
    heat_map: Annotated[
        str | None,
        option(
            OUT,
            "--heat-map",
            metavar="DOWN,ACROSS",
            help="The axes of the heat map. Default: the two with most values.",
        ),
    ] = None
    figure: Annotated[
        str | None,
        option(
            OUT,
            "--figure",
            metavar="NAME",
            help="What the heat map shows: fd, precision, recall, … Default: the Fréchet distance.",
        ),
    ] = None
    format: Annotated[
        str, option(OUT, "--format", metavar="NAME", help="Plots as svg or pdf, beside .png. Default: svg.")
    ] = "svg"
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list all cells; draw nothing.", rich_help_panel=OUT)
    ] = False

    def folder(self, file: Path) -> Path:
        """Raises InvalidArgumentError if results cannot be written."""
        folder = self.output or Path(file.with_suffix("").name)
        if folder.exists() and not folder.is_dir():
            raise InvalidArgumentError(f"{str(folder)!r} is a file; results need a folder (--output DIR)")
        pictures.check_folder(folder if folder.exists() else folder.absolute().parent)
        if self.format not in FORMATS:
            raise InvalidArgumentError(f"plots are written as {' or '.join(FORMATS)}, got {self.format!r}")
        return folder

    def axes(self) -> tuple[str, str] | None:
        """Down and across. Raises InvalidArgumentError for other than two names."""
        if self.heat_map is None:
            return None
        names = [name.strip() for name in self.heat_map.split(",")]
        if len(names) != 2:
            raise InvalidArgumentError(f"--heat-map takes two axes with a comma, got {self.heat_map!r}")
        return names[0], names[1]


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
@options.bundled
def sweep(
    *,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A sweep file; docs/evaluation.md says what is in it.")
    ],
    what: SweepOptions,
    ruler: RulerOptions,
    files: FileOptions,
    model: ModelOptions,
) -> None:
    """Measure every combination of the settings in a file, and write tables and plots.

    Every combination draws the same seeds. A stopped sweep goes on with the same command; a file with more
    in it draws only what is missing.
    """
    from nextscale.evaluation.sweep_file import Sweep
    from nextscale.evaluation.sweep_plots import check_axes

    counts = {"--images": what.images, "--sets": what.sets, "--batch-size": what.batch_size}
    values.require_positive(counts)
    plan = Sweep.read(file)
    output, chosen = files.folder(file), files.axes()
    if what.sets is not None:
        plan = plan.with_sets(what.sets)
    if chosen is not None:
        check_axes(plan.axes, chosen)
    processes, model = join_launch(model)
    job = _open(plan, what, ruler, model, output)
    if not processes.is_main:
        if not files.dry_run:
            job.help()
        return
    left = job.pictures_left()
    print(f"{file.name}: {job.summary()}; {left:,} pictures to draw")
    if files.dry_run:
        for cell in plan.cells:
            print(f"  {cell.name}")
        return
    try:
        job.measure(left)
    except KeyboardInterrupt:
        note(f"stopped; the same command goes on, with what is in {output}")
        raise
    _report(job, chosen, files.figure, files.format)


# ---------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Job:
    """All that a sweep needs."""

    sweep: Sweep
    measurements: Sequence[Measurement]
    pipe: Any
    space: FeatureSpace
    reference: Reference | None
    batch_size: int
    output: Path
    results: Results

    def missing(self) -> list[Measurement]:
        """Measurements without a result."""
        return list(self.results.missing(self.measurements))

    def pictures_left(self) -> int:
        """Pictures that have to be drawn."""
        from nextscale.evaluation.runner import generated_shards

        work = self.output / WORK
        return sum(generated_shards(m.protocol, work).left for m in self.missing())

    def summary(self) -> str:
        """The extent of the sweep, in some words."""
        cells, sets = len(self.sweep.cells), len(self.sweep.seeds)
        images = self.measurements[0].protocol.images
        return f"{_count(cells, 'cell')}, {_count(sets, 'set')} of {images:,} pictures each"

    def help(self) -> None:
        """Draw a share of the pictures for the process that writes results."""
        from nextscale.evaluation.runner import PipelineImages, generated_shards
        from nextscale.evaluation.shards import SHARD

        size = min(self.batch_size, SHARD)
        for one in self.missing():
            shards = generated_shards(one.protocol, self.output / WORK)
            shards.fill(PipelineImages(self.pipe, one.protocol), self.space, batch_size=size)

    def measure(self, left: int) -> None:
        """Everything that is missing; a line and a new table after every measurement."""
        from nextscale.evaluation.sweep_table import rows, write_csv

        missing, work = self.missing(), self.output / WORK
        if not missing:
            return
        work.mkdir(parents=True, exist_ok=True)
        if self.reference is not None:
            measured(self.reference, self.space, work)
        shared = (self.pipe, self.space, self.reference, work, self.batch_size)
        with drawing(f"drawing {left:,} pictures", max(left, 1)) as advance:
            for number, one in enumerate(missing, 1):
                self.results.measure(one, *shared, preset=self.sweep.preset, advance=advance)
                write_csv(rows(self.measurements, self.results), self.output / "sweep.csv")
                note(f"{number} of {len(missing)}: {one.cell.name}, from seed {one.protocol.seed}")


def _open(plan: Sweep, what: SweepOptions, ruler: RulerOptions, model: ModelOptions, output: Path) -> Job:
    from nextscale.evaluation.protocol import PRESETS
    from nextscale.evaluation.sweep import Results, plan_sweep

    preset, named = PRESETS[plan.preset], dict(plan.model)
    choice = model.choice().over(ModelChoice(model=named.pop("name", None), **named))
    with working(f"loading {choice}"):
        pipe = choice.load(model.device, model.dtype)
        check_model(pipe, preset)
    given = {name: value for name, value in vars(ruler).items() if value is not None}
    space, reference = RulerOptions(**{**plan.ruler, **given}).open(preset, pipe.image_size, model.device)
    images = what.images or plan.images or preset.images
    with drawing(f"planning {_count(len(plan.cells), 'cell')}", len(plan.cells)) as advance:
        sampling = request.call_arguments(pipe, preset.sampling, {})
        planned = plan_sweep(plan, pipe, images, space, reference, sampling=sampling, advance=advance)
    batch = what.batch_size or plan.batch_size or preset.batch_size
    return Job(plan, planned, pipe, space, reference, batch, output, Results(output / RESULTS))


def measured(reference: Reference, space: FeatureSpace, work: Path) -> MeasuredReference:
    """The reference in a feature space, with progress where its features have to be computed."""
    from nextscale.evaluation.reference import measure_reference
    from nextscale.evaluation.runner import reference_shards

    shards = reference_shards(reference, space, work)
    left = reference.count - len(shards) if reference.to_compute(space) else 0
    if not left:
        with working("reading the reference"):
            return measure_reference(reference, space, shards)
    with drawing(f"measuring {left:,} pictures of the reference", left) as advance:
        return measure_reference(reference, space, shards, advance)


# ---------------------------------------------------------------------------- reporting


def _report(job: Job, chosen: tuple[str, str] | None, figure: str | None, kind: str) -> None:
    from nextscale.evaluation.sweep_table import means, rows, write_csv, write_parquet

    table, averages = rows(job.measurements, job.results), means(job.measurements, job.results)
    written = ["sweep.csv", "means.csv"]
    write_csv(table, job.output / written[0])
    write_csv([mean.to_row() for mean in averages], job.output / written[1])
    try:
        write_parquet(table, job.output / "sweep.parquet")
        written.append("sweep.parquet")
    except MissingDependencyError as error:
        note(f"note: {error}")
    for line in _lines(averages):
        print(line)
    with working("plotting"):
        written += _plots(job, averages, chosen, figure, kind)
    print(f"{job.output}: {', '.join(written)}; single results are in {RESULTS}, features in {WORK}")


def _plots(
    job: Job, averages: Sequence[CellMean], chosen: tuple[str, str] | None, figure: str | None, kind: str
) -> list[str]:
    """Names of the plots that could be made; a note for those that could not, unless they were asked for."""
    from nextscale.evaluation import sweep_plots

    axes, distance = job.sweep.axes, sweep_plots.distance_of(averages)
    shown, pair, written = figure or distance, chosen or sweep_plots.longest_axes(axes), []
    if shown is None:
        note("note: no plots: distances, precision and recall need a reference")
        return []
    try:
        if pair is not None and (chosen or sweep_plots.few_panels(axes, pair)):
            name = f"heat-map-{shown}.{kind}"
            sweep_plots.heat_map(averages, axes, pair, shown, job.output / name)
            written.append(name)
        elif pair is not None:
            note("note: no heat map: too many combinations of the other axes; choose two with --heat-map")
        if distance is not None and all(n in averages[0].mean for n in sweep_plots.AGAINST):
            name = f"{distance}-precision-recall.{kind}"
            sweep_plots.curves(averages, axes, distance, job.output / name)
            written.append(name)
    except MissingDependencyError as error:
        note(f"note: no plots: {error}")
    return written


def _lines(averages: Sequence[CellMean]) -> list[str]:
    """The means as a table for a terminal."""
    from nextscale.evaluation.report import plain
    from nextscale.evaluation.sweep_plots import AGAINST, distance_of, title

    distance = distance_of(averages)
    names = [n for n in ([distance] if distance else []) + [*AGAINST, "accuracy"] if n in averages[0].mean]
    head = ("mean over the sets", *map(title, names), *(["minus SSG off"] if distance else []))
    body = []
    for mean in averages:
        cells = [_spread(mean.mean[n], mean.spread[n]) if n in mean.mean else "" for n in names]
        gain = mean.gains.get(distance) if distance else None
        shown = "" if gain is None else f"{gain.value:+.3f}"
        if gain is not None and gain.low is not None:
            shown += f" ({gain.low:+.3f} to {gain.high:+.3f})"
        body.append((mean.cell.name, *cells, *([shown] if distance else [])))
    return list(plain([head, *body]))


def _spread(value: float, spread: float | None) -> str:
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
