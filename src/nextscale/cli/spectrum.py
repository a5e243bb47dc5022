"""``nextscale spectrum``: what steps and guidance do to frequencies, as numbers, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli import options, pictures, request, values
from nextscale.cli.compare import read_arms
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import ModelOptions
from nextscale.cli.progress import drawing, note, working
from nextscale.cli.request import DrawingOptions, SSGOptions
from nextscale.cli.ruler import PANEL, FirstSeed, Replicates, RulerOptions, option
from nextscale.cli.subjects import Labels, SubjectOptions, Subjects, subjects_of
from nextscale.cli.sweep import measured
from nextscale.errors import InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from nextscale.evaluation.features import FeatureSpace
    from nextscale.evaluation.moments import Gaussian
    from nextscale.evaluation.observation import Plan
    from nextscale.evaluation.protocol import Preset
    from nextscale.evaluation.reference import Reference
    from nextscale.evaluation.spectrum_result import Arm, Real

DEFAULT_NAME, WORK, OUT = "spectrum", "work", "Output"
DEFAULT_COUNT, NO_FEATURES = 500, "none"

EPILOG = """\
nextscale spectrum --images 500 --output spectrum
nextscale spectrum --model cifar10 --ssg 0.3,0.6,1.2 --images 2000
nextscale spectrum --model runs/model --reference cifar10/test.parquet --matched-control
nextscale spectrum volcano fountain --model FoundationVision/var --depth 16 --reference imagenet.npz
nextscale spectrum --model my-infinity --prompts prompts.txt --images 200 --batch-size 4
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@dataclass(frozen=True)
class SpectrumOptions:
    """How many pictures, and how they are looked at."""

    images: Annotated[
        int,
        option(
            PANEL,
            "--images",
            "-n",
            metavar="N",
            help="Pictures of every arm, of all classes or prompts in turn. Default: 500.",
        ),
    ] = DEFAULT_COUNT
    seed: FirstSeed = 0
    batch_size: Annotated[
        int | None,
        option(
            PANEL,
            "--batch-size",
            "-b",
            metavar="N",
            help="Pictures drawn at once. Default: the pipeline's, 16 for VAR.",
        ),
    ] = None
    transform: Annotated[
        str, option(PANEL, "--transform", metavar="NAME", help="fft or dct. Default: fft.")
    ] = "fft"
    window: Annotated[
        str | None,
        option(
            PANEL,
            "--window",
            metavar="NAME",
            help="Of pictures before the transform: hann or none. Default: hann for fft.",
        ),
    ] = None
    matched_control: Annotated[
        bool,
        typer.Option(
            "--matched-control",
            help="Also compare blurred pictures with real ones that were blurred alike; needs real pictures.",
            rich_help_panel=PANEL,
        ),
    ] = False
    replicates: Replicates = 1000


@dataclass(frozen=True)
class SpectrumRuler(RulerOptions):
    """Reference and features; neither is needed."""

    def opened(
        self, preset: Preset, size: tuple[int, int], device: str | None
    ) -> tuple[FeatureSpace | None, Reference | None]:
        """Features only where they were asked for or are in the package."""
        from nextscale.evaluation.protocol import PRESETS

        if self.features == NO_FEATURES or (self.features is None and preset != PRESETS["cifar10"]):
            return None, self.open_reference(preset, size)
        return self.open(preset, size, device)


@dataclass(frozen=True)
class FileOptions:
    """Where results go."""

    output: Annotated[
        Path | None,
        option(
            OUT,
            "--output",
            "-o",
            metavar="DIR",
            help="The folder for spectrum.json, tables and plots. Default: spectrum, or spectrum-2 where "
            "that exists.",
        ),
    ] = None
    work: Annotated[
        Path | None,
        option(
            OUT,
            "--work",
            metavar="DIR",
            help="Where the rows of single pictures are kept, so that a stopped run goes on. Default: work "
            "in the folder.",
        ),
    ] = None

    def folder(self) -> Path:
        """Raises InvalidArgumentError if results cannot be written."""
        folder = self.output or pictures.free_name(DEFAULT_NAME)
        if folder.exists() and not folder.is_dir():
            raise InvalidArgumentError(f"{str(folder)!r} is a file; results need a folder (--output DIR)")
        pictures.check_folder(folder if folder.exists() else folder.absolute().parent)
        return folder


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
@options.bundled
def spectrum(
    *,
    subjects: SubjectOptions,
    ssg: Annotated[
        list[str] | None,
        typer.Option(
            "--ssg",
            metavar="STRENGTH",
            help="A strength, or several: repeated, or with commas; off for none; default is the model's. "
            "Pictures without SSG are always drawn too.",
            rich_help_panel="Scaled Spatial Guidance",
            show_default=False,
        ),
    ] = None,
    spatial: SSGOptions,
    what: SpectrumOptions,
    ruler: SpectrumRuler,
    shape: DrawingOptions,
    files: FileOptions,
    model: ModelOptions,
) -> None:
    """Analyse frequencies: latent, pictures, blur and the semantic residual, with and without SSG.

    All arms are drawn from the same seeds. Plots are .svg and .png, with the numbers beside them as JSON and
    CSV. A stopped run goes on where it was.
    """
    from nextscale.evaluation.spectrum_result import spectrum_result

    counts = {"--images": what.images, "--batch-size": what.batch_size, "--replicates": what.replicates}
    values.require_positive(counts)
    folder, typed, choice = files.folder(), subjects.typed(), model.choice()
    work = files.work or folder / WORK
    with working(f"loading {choice}"):
        given, guidance = shape.given(), read_arms(ssg, spatial)
        pipe = choice.load(model.device, model.dtype)
        arguments = request.call_arguments(pipe, given, {})
        shown = subjects_of(pipe)
    plan = _plan(pipe, shown, shown.read(typed) or _all(shown), arguments, what)
    images = _observed(plan, guidance)
    size = next(iter(images.values())).size
    space, reference = ruler.opened(_preset(pipe, size), size, model.device)
    _check_reference(reference, size, what.matched_control)
    arms = _draw(images, space if reference else None, what.batch_size, work)
    real = None if reference is None else _real(reference, space, plan, what.matched_control, work)
    with working("computing intervals"):
        result = spectrum_result(arms, real, replicates=what.replicates)
    _report(result, folder)


# ---------------------------------------------------------------------------- what is drawn


def _all(subjects: Subjects) -> list[Any]:
    """Every class; for prompts, those that are always drawn: none, which is an error."""
    return list(range(subjects.count)) if isinstance(subjects, Labels) else subjects.default()


def _plan(
    pipe: Any, subjects: Subjects, chosen: list[Any], arguments: Mapping[str, Any], what: SpectrumOptions
) -> Plan:
    from nextscale.evaluation.observation import Plan
    from nextscale.evaluation.spectra import AmplitudeRule

    rule = AmplitudeRule(what.transform, what.window)  # type: ignore[arg-type]
    unwanted = arguments.get("negative_prompt")
    with working("encoding prompts"):
        subjects.prepare([*chosen, *([unwanted] if unwanted is not None else [])])
    return Plan(pipe, chosen, what.images, arguments, what.seed, rule=rule)


def _observed(plan: Plan, guidance: Sequence[Any]) -> dict[str, Any]:
    """The arms by name, without SSG first; their residuals are of one prior, so that they can be compared."""
    from nextscale.evaluation.observation import ObservedImages

    arms = list(dict.fromkeys(request.with_model_default(plan.pipe, arm) for arm in guidance))
    prior = next((arm for arm in arms if arm is not None), None)
    with working("planning"):
        found = [ObservedImages(plan, arm, prior) for arm in arms]
    return {request.arm_name(images.settings["ssg"]): images for images in found}


def _draw(
    images: Mapping[str, Any], space: FeatureSpace | None, batch_size: int | None, work: Path
) -> list[Arm]:
    from nextscale.evaluation.observation import PictureStatistics
    from nextscale.evaluation.spectrum_result import Arm

    arms = []
    for name, observed in images.items():
        statistics = PictureStatistics(observed, space)
        arms.append(Arm(name, statistics, statistics.shards(work)))
    wanted, done = sum(arm.shards.count for arm in arms), sum(len(arm.shards) for arm in arms)
    if done:
        note(f"going on: {done:,} of {wanted:,} pictures are done")
    with drawing(f"drawing {wanted - done:,} pictures", max(wanted - done, 1)) as advance:
        for arm in arms:
            batch = batch_size or request.default_batch(arm.images.plan.pipe)
            arm.shards.fill(arm.images, arm.statistics, batch_size=batch, advance=advance)
    return arms


# ---------------------------------------------------------------------------- real pictures


def _preset(pipe: Any, size: tuple[int, int]) -> Preset:
    """Where reference and features come from if nobody says: the package, for pictures like CIFAR-10's."""
    from nextscale.evaluation.protocol import PRESETS

    usual = PRESETS["cifar10"]
    classes = pipe.transformer.config.num_classes if hasattr(pipe, "class_names") else None
    return usual if (size, classes) == (usual.size, usual.classes) else PRESETS["custom"]


def _real(
    reference: Reference,
    space: FeatureSpace | None,
    plan: Plan,
    control: bool,
    work: Path,
) -> Real:
    from nextscale.evaluation.spectrum_result import Real
    from nextscale.evaluation.stored_spectra import DETAIL, measure_pictures, stored_spectra

    work.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str] = {}
    if reference.images is not None:
        with drawing(f"looking at {reference.count:,} real pictures", reference.count) as advance:
            amplitude, detail = measure_pictures(reference.images, plan.rule, advance)
    else:
        stored = stored_spectra(reference.sha256)
        amplitude, detail = stored.get(plan.rule.name), stored.get(DETAIL)  # type: ignore[assignment]
        if not stored:
            left_out["ratios to real pictures"] = f"the reference {reference.name} holds no pictures"
    features = measured(reference, space, work).statistics["features"] if space is not None else None
    blurred = _blurred(reference, space, plan.sigmas, work) if control and space is not None else None
    return Real(reference.description(), amplitude, detail, features, blurred, left_out)


def _check_reference(reference: Reference | None, size: tuple[int, int], control: bool) -> None:
    """Raises InvalidArgumentError for one of another size, and for a control that it does not allow."""
    images = None if reference is None else reference.images
    name = "none" if reference is None else reference.name
    if images is None and control:
        raise InvalidArgumentError(
            f"--matched-control blurs real pictures, and the reference {name} holds none; give one with "
            f"pictures (--reference)"
        )
    if images is not None and images.size != size:
        raise InvalidArgumentError(
            f"the reference {name} has pictures of {images.size[1]}x{images.size[0]} pixels, and the model "
            f"draws {size[1]}x{size[0]}; a reference of the same size is needed"
        )


def _blurred(
    reference: Reference, space: FeatureSpace, sigmas: Sequence[float], work: Path
) -> dict[float, Gaussian]:
    """Statistics of the real pictures' features at every blur, for the matched control."""
    from nextscale.evaluation.blur import BlurredImages
    from nextscale.evaluation.moments import Moments
    from nextscale.evaluation.runner import reference_shards
    from nextscale.evaluation.shards import Shards

    if reference.images is None:
        return {}
    folder, found = reference_shards(reference, space, work).folder, {}
    total = reference.count * len(sigmas)
    with drawing(f"blurring {reference.count:,} real pictures", total) as advance:
        for sigma in sigmas:
            shards = Shards(folder.with_name(f"{folder.name}-blur{sigma:g}"), reference.count)
            shards.fill(BlurredImages(reference.images, sigma), space, advance=advance)
            found[sigma] = Moments.of(shards.tensor("features")).gaussian()
    return found


# ---------------------------------------------------------------------------- reporting


def _report(result: Mapping[str, Any], folder: Path) -> None:
    from nextscale.evaluation.files import finite, write_json, write_text
    from nextscale.evaluation.spectrum_plots import write_plots
    from nextscale.evaluation.spectrum_tables import csv_files, summary_lines

    folder.mkdir(exist_ok=True)
    stored = finite(result)
    tables = csv_files(stored)
    write_json(folder / "spectrum.json", stored)
    for name, text in tables.items():
        write_text(folder / name, text)
    written = ["spectrum.json", *tables]
    try:
        with working("drawing plots"):
            written += write_plots(stored, folder)
    except MissingDependencyError as error:
        note(f"note: no plots: {error}; the same command then draws them at once")
    sampling = {**stored["sampling"], "model": stored["model"]}
    print(request.describe(sampling, ssg=False))
    for line in summary_lines(stored):
        print(line)
    print(f"{folder}: {', '.join(written)}")
