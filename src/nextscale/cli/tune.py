"""``nextscale tune``: finds the strength and schedule of SSG for a model, and makes them its default."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli import options, pictures, request, values
from nextscale.cli.evaluate import ClassDrawing, check_model
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import ModelChoice, ModelOptions
from nextscale.cli.progress import drawing, note, working
from nextscale.cli.ruler import PANEL, BatchSize, FirstSeed, Replicates, RulerOptions, option
from nextscale.cli.sweep import measured
from nextscale.cli.values import read_numbers
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.evaluation.halving import Budget, Ranking
    from nextscale.evaluation.tuning import Bench, Outcome
    from nextscale.guidance.ssg import ScaledSpatialGuidance

DEFAULT_BUDGET, LEAST_REPLICATES = 20_000, 10
DEFAULT_BETAS, DEFAULT_SCHEDULES = "0.15,0.3,0.6,1.2", "constant,bandwidth"
DEFAULT_NAME, WORK = "tuning.json", "tuning.work"
SSG, OUT = "Scaled Spatial Guidance", "Output"

EPILOG = """\
nextscale tune --model runs/model
nextscale tune --model runs/model --budget 60000 --beta 0.1,0.2,0.4,0.8 --schedule constant,linear
nextscale tune --model my-var --preset imagenet256-adm --budget 200000 --beta 0.3,0.6,1.2
nextscale tune --model cifar10 --dry-run
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@dataclass(frozen=True)
class CandidateOptions:
    """What is tried."""

    beta: Annotated[
        str, option(SSG, "--beta", metavar="B,…", help=f"Strengths to try. Default: {DEFAULT_BETAS}.")
    ] = DEFAULT_BETAS
    schedule: Annotated[
        str,
        option(
            SSG,
            "--schedule",
            metavar="NAME,…",
            help="Schedules to try each of them with: constant, linear, cosine, bandwidth. Default: "
            f"{DEFAULT_SCHEDULES}.",
        ),
    ] = DEFAULT_SCHEDULES
    prior: options.Prior = None
    norm: options.Norm = None
    remember: options.Remember = None
    ssg_start: options.Start = None
    ssg_stop: options.Stop = None

    def build(self) -> list[ScaledSpatialGuidance | None]:
        """No guidance, and every strength with every schedule. Raises InvalidArgumentError for bad values."""
        from nextscale.guidance.ssg import ScaledSpatialGuidance

        numbers = read_numbers(self.beta, "--beta")
        betas = numbers if isinstance(numbers, list) else [numbers]
        if 0 in betas:
            raise InvalidArgumentError("--beta: 0 is no guidance, which always takes part; leave it out")
        fixed = {k: getattr(self, k) for k in ("prior", "norm", "remember")}
        fixed |= {"start": self.ssg_start, "stop": self.ssg_stop}
        named: dict[str, Any] = {k: v for k, v in fixed.items() if v is not None}
        schedules = [name.strip() for name in self.schedule.split(",")]
        pairs = dict.fromkeys((beta, schedule) for schedule in schedules for beta in betas)
        settings = ({"beta": beta, "schedule": schedule, **named} for beta, schedule in pairs)
        return [None, *map(ScaledSpatialGuidance.from_dict, settings)]


@dataclass(frozen=True)
class TuneOptions:
    """How much is spent, on which pictures."""

    budget: Annotated[
        int,
        option(
            PANEL,
            "--budget",
            metavar="N",
            help="Pictures to draw at most, half of them to compare the best with no SSG. Default: "
            f"{DEFAULT_BUDGET}.",
        ),
    ] = DEFAULT_BUDGET
    preset: Annotated[
        str,
        option(
            PANEL,
            "--preset",
            metavar="NAME",
            help="cifar10, imagenet256-adm, imagenet512-adm or custom: features, reference and sampling. "
            "Default: cifar10.",
        ),
    ] = "cifar10"
    seed: FirstSeed = 0
    batch_size: BatchSize = None
    replicates: Replicates = 1000


@dataclass(frozen=True)
class FileOptions:
    """Where results go."""

    output: Annotated[
        Path | None,
        option(
            OUT,
            "--output",
            "-o",
            metavar="FILE",
            help="The report, a .json. Default: tuning.json, or tuning-2.json where that exists.",
        ),
    ] = None
    work: Annotated[
        Path | None,
        option(
            OUT,
            "--work",
            metavar="DIR",
            help="Where features are kept, so that a stopped run goes on. Default: tuning.work beside the "
            "report.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Measure and report, but leave the model as it is.",
            rich_help_panel=OUT,
        ),
    ] = False

    def target(self) -> Path:
        """Raises InvalidArgumentError if the report cannot be written."""
        target = self.output or pictures.free_name(DEFAULT_NAME)
        if target.suffix.lower() != ".json" or target.is_dir():
            raise InvalidArgumentError(f"give the name of a file that ends in .json, got {str(target)!r}")
        pictures.check_folder(target.parent)
        return target


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
@options.bundled
def tune(
    *,
    what: TuneOptions,
    tried: CandidateOptions,
    ruler: RulerOptions,
    shape: ClassDrawing,
    files: FileOptions,
    model: ModelOptions,
) -> None:
    """Find the strength and schedule of SSG that suit a model, and make them its default.

    All candidates draw the same seeds, and in every round the better half stays. The best one is compared
    with no SSG on fresh seeds. Without a gain there, the default becomes a strength of 0, which changes
    nothing. The default is written to the model's folder: SSG without arguments uses it.
    """
    from nextscale.evaluation.files import write_json
    from nextscale.evaluation.tuning import tune as run
    from nextscale.weights.layout import write_default_ssg

    values.require_positive({"--budget": what.budget, "--batch-size": what.batch_size})
    if what.replicates < LEAST_REPLICATES:
        raise InvalidArgumentError(f"--replicates must be at least {LEAST_REPLICATES}, got {what.replicates}")
    target, choice, candidates = files.target(), model.choice(), tried.build()
    work = files.work or target.parent / WORK
    folder = None if files.dry_run else _own_folder(choice)
    budget, bench = _prepare(what, candidates, ruler, shape.given(), model, work)
    print(
        f"{len(candidates)} candidates, {len(budget.rounds)} rounds, then {budget.sets} fresh sets of "
        f"{budget.images:,}: at most {budget.total:,} pictures"
    )
    if budget.images <= (dimensions := len(bench.gaussian.mean)):
        note(
            f"note: sets of {budget.images:,} pictures give no interval in {dimensions} dimensions, so no "
            f"gain can be shown; a larger --budget is needed"
        )
    if folder is None and not files.dry_run:
        note(
            f"note: {choice} is not a model folder of yours, so nothing will be written to it; nextscale "
            f"convert or save_pretrained make one"
        )
    try:
        outcome = run(bench, candidates, budget, seed=what.seed, replicates=what.replicates, progress=drawing)
    except KeyboardInterrupt:
        note(f"stopped; the same command goes on, with what is in {work}")
        raise
    before = bench.pipe.defaults.get("ssg")
    report = {**outcome.to_dict(), "written_to": None if folder is None else str(folder)}
    write_json(target, report)
    if folder is not None:
        write_default_ssg(folder, outcome.default().to_dict())
    _print(outcome)
    _print_default(outcome, folder, before)
    print(f"{target}; features are kept in {work}")


def _prepare(
    what: TuneOptions,
    candidates: Sequence[ScaledSpatialGuidance | None],
    ruler: RulerOptions,
    given: Mapping[str, Any],
    model: ModelOptions,
    work: Path,
) -> tuple[Budget, Bench]:
    """Everything loaded and checked; nothing is drawn yet but a picture to plan with."""
    from nextscale.evaluation.halving import plan_budget
    from nextscale.evaluation.protocol import PRESETS
    from nextscale.evaluation.runner import class_subjects, plan
    from nextscale.evaluation.tuning import Bench

    if what.preset not in PRESETS:
        raise InvalidArgumentError(f"unknown preset {what.preset!r}; known: {', '.join(PRESETS)}")
    if given.get("sampler", "paired") != "paired":
        raise InvalidArgumentError(
            f"--sampler {given['sampler']}: candidates are compared by paired pictures"
        )
    preset, choice = PRESETS[what.preset], model.choice()
    with working(f"loading {choice}"):
        pipe = choice.load(model.device, model.dtype)
        check_model(pipe, preset)
        arguments = request.call_arguments(pipe, {**preset.sampling, **given}, {})
    budget = plan_budget(len(candidates), what.budget, classes=len(class_subjects(pipe)))
    grids = request.schedule_of(pipe, arguments).grids
    for ssg in candidates:
        if ssg is not None:
            ssg.betas(grids)  # raises for what the model's grids do not allow, before anything is drawn
    space, reference = ruler.open(preset, pipe.image_size, model.device)
    if reference is None:
        raise InvalidArgumentError("tuning compares with real pictures; name some with --reference")
    with working("planning"):
        protocol = plan(pipe, budget.images, space, reference, arguments=arguments, seed=what.seed)
    real = measured(reference, space, work)
    return budget, Bench(protocol, pipe, space, real, work, what.batch_size or preset.batch_size)


def _own_folder(choice: ModelChoice) -> Path | None:
    """The folder whose default is to be written; ``None`` for models that are not a folder of the user's.

    Raises InvalidArgumentError for one that cannot be written to.
    """
    from nextscale.families import is_layout
    from nextscale.weights.layout import CONFIG, is_embedded

    folder = Path(choice.source)
    if choice.is_official or not folder.is_dir() or not is_layout(folder) or is_embedded(folder):
        return None
    if not (os.access(folder, os.W_OK) and os.access(folder / CONFIG, os.W_OK)):
        raise InvalidArgumentError(f"{str(folder)!r} cannot be written to; use --dry-run, or a copy")
    return folder


# ---------------------------------------------------------------------------- reporting


def _print(outcome: Outcome) -> None:
    from nextscale.evaluation.figures import NAMES, OTHERS
    from nextscale.evaluation.report import plain
    from nextscale.evaluation.sweep_plots import title
    from nextscale.evaluation.tuning import candidate_name

    name = NAMES.get(outcome.bench.space.name, OTHERS)["frechet"]
    head = (title(name), *(f"{r.images:,} pictures" for r in outcome.rounds))
    body = [
        (candidate_name(ssg), *(_score(r, i) for r in outcome.rounds))
        for i, ssg in enumerate(outcome.candidates)
    ]
    for line in plain([head, *body]):
        print(line)
    print(outcome.verdict())
    if outcome.comparison is not None:
        for name, gap in outcome.comparison.gaps.items():
            print(f"{title(name)} set by set: {', '.join(f'{d:+.3g}' for d in gap.per_set)}")


def _score(ranking: Ranking, candidate: int) -> str:
    """Its distance in a round; a star for those that went on."""
    if candidate not in ranking.scores:
        return ""
    return f"{ranking.scores[candidate]:.3f}{'*' if candidate in ranking.kept else ' '}"


def _print_default(outcome: Outcome, folder: Path | None, before: Mapping[str, Any] | None) -> None:
    default = outcome.default()
    said = "off (strength 0)" if default.beta == 0 else request.arm_name(default.to_dict())
    details = request.ssg_details(default.to_dict())
    settings = f"{said}, {details}" if details else said
    if folder is None:
        print(f"as this model's default, that would be: {settings}; nothing was written to the model")
        return
    earlier = "" if before is None else f"; before, it was {request.arm_name({'beta': None, **before})}"
    print(f"{folder}: SSG without arguments is now {settings}{earlier}")
