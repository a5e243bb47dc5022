"""``nextscale compare --images N``: figures without and with SSG, and their differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from nextscale.cli import pictures, request, values
from nextscale.cli.evaluate import WORK, check_model
from nextscale.cli.models import ModelOptions
from nextscale.cli.progress import drawing, note, working
from nextscale.cli.ruler import PANEL, RulerOptions, option
from nextscale.cli.setup import CountOptions
from nextscale.cli.sweep import measured
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.evaluation.comparison_report import Comparison
    from nextscale.evaluation.features import FeatureSpace
    from nextscale.evaluation.protocol import Preset, Protocol
    from nextscale.evaluation.reference import Reference
    from nextscale.guidance.ssg import ScaledSpatialGuidance

DEFAULT_NAME = "comparison.json"
DEFAULT_PRESET, DEFAULT_SETS, DEFAULT_REPLICATES = "cifar10", 3, 1000


@dataclass(frozen=True)
class MeasuringOptions:
    """What is measured instead of making a sheet of pictures; ``images`` decides between the two."""

    images: Annotated[
        int | None,
        option(
            PANEL,
            "--images",
            metavar="N",
            help="Measure instead of making a picture: draw N pictures of every arm and seed set, of all "
            "classes in turn.",
        ),
    ] = None
    seed_sets: Annotated[
        int | None,
        option(
            PANEL,
            "--seed-sets",
            metavar="N",
            help="Sets of N pictures from different seeds. Default: 3, the least that shows chance.",
        ),
    ] = None
    preset: Annotated[
        str | None,
        option(
            PANEL,
            "--preset",
            metavar="NAME",
            help="Features, reference and sampling, as for evaluate. Default: cifar10.",
        ),
    ] = None
    replicates: Annotated[
        int | None,
        option(PANEL, "--replicates", metavar="N", help="Resamples for the intervals. Default: 1000."),
    ] = None
    work: Annotated[
        Path | None,
        option(
            PANEL,
            "--work",
            metavar="DIR",
            help="Where features are kept, so that a stopped run goes on; evaluate can share it. Default: "
            "evaluation.work beside the result.",
        ),
    ] = None

    def only_here(self) -> dict[str, Any]:
        """Options that make sense with ``--images`` alone, and what was given for them."""
        return {values.flag(name): value for name, value in vars(self).items() if name != "images"}


def check_mode(images: int | None, here: Mapping[str, Any], elsewhere: Mapping[str, Any]) -> None:
    """Raises InvalidArgumentError for an option of the mode that was not chosen.

    here: options that only measuring has, elsewhere: those that only sheets of pictures have.
    """
    for name, value in (here if images is None else elsewhere).items():
        if value:
            raise InvalidArgumentError(
                f"{name} belongs to measuring; add --images 1000, say"
                if images is None
                else f"{name} belongs to sheets of pictures; with --images, all classes are drawn in turn "
                f"and measured"
            )


@dataclass(frozen=True)
class Task:
    """A comparison that can be run. arms: by name, the one without SSG first, a protocol per set."""

    pipe: Any
    arms: Mapping[str, Sequence[Protocol]]
    space: FeatureSpace
    reference: Reference | None
    batch_size: int
    replicates: int

    def run(self, work: Path) -> Comparison:
        """Draw what is missing, set by set, then compare."""
        self._draw(work)
        return self._compare(work)

    def _draw(self, work: Path) -> None:
        from nextscale.evaluation.runner import PipelineImages, draw, generated_shards

        # Set by set and arm by arm, so that a stopped run has pairs to show for its time.
        protocols = [p for together in zip(*self.arms.values(), strict=True) for p in together]
        done = [len(generated_shards(p, work)) for p in protocols]
        wanted = sum(p.images for p in protocols)
        left = wanted - sum(done)
        if sum(done):
            note(f"going on: {sum(done):,} of {wanted:,} pictures are done")
        with drawing(f"drawing {left:,} pictures", max(left, 1)) as advance:
            for protocol in protocols:
                images = PipelineImages(self.pipe, protocol)
                draw(protocol, images, self.space, work, batch_size=self.batch_size, advance=advance)

    def _compare(self, work: Path) -> Comparison:
        from nextscale.evaluation.comparison import RealSide, arm_figures, compare
        from nextscale.evaluation.comparison_report import ArmResult, Comparison
        from nextscale.evaluation.runner import PipelineImages, device_of, generated_shards

        real = None if self.reference is None else measured(self.reference, self.space, work)
        first = next(iter(self.arms.values()))[0]
        results: dict[str, ArmResult] = {}
        with working("measuring the reference"):
            side = RealSide.of(real, first)
        with drawing("computing figures", sum(map(len, self.arms.values()))) as advance:
            for name, protocols in self.arms.items():
                shards = [generated_shards(p, work) for p in protocols]
                figures = []
                for rows, protocol in zip(shards, protocols, strict=True):
                    figures.append(arm_figures(rows, real, protocol, real=side))
                    advance(1)
                results[name] = ArmResult(protocols, figures, [s.seconds() for s in shards])
        with working("resampling"):
            every = {name: result.figures for name, result in results.items()}
            gaps = compare(every, replicates=self.replicates)
        sampling = {k: v for k, v in (first.sampling or {}).items() if k != "ssg"}
        heading = request.describe({**sampling, "model": first.model["name"]}, ssg=False)
        where = device_of(PipelineImages(self.pipe, first))
        return Comparison(results, gaps, self.replicates, where, heading)


@dataclass(frozen=True)
class Measuring:
    """All options of a comparison, checked as far as can be done without the model."""

    images: int
    sets: int
    seed: int
    preset: Preset
    batch_size: int
    replicates: int
    target: Path
    work: Path

    @classmethod
    def of(cls, what: MeasuringOptions, how_many: CountOptions, output: Path | None) -> Measuring:
        """Raises InvalidArgumentError, naming the option, for what cannot be."""
        from nextscale.evaluation.protocol import PRESETS

        name = what.preset or DEFAULT_PRESET
        if name not in PRESETS:
            raise InvalidArgumentError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        numbers = {
            "--images": what.images,
            "--seed-sets": what.seed_sets,
            "--replicates": what.replicates,
            "--batch-size": how_many.batch_size,
        }
        values.require_positive(numbers)
        target = _target(output)
        return cls(
            images=what.images or 0,
            sets=what.seed_sets or DEFAULT_SETS,
            seed=_seed(how_many.seed),
            preset=PRESETS[name],
            batch_size=how_many.batch_size or PRESETS[name].batch_size,
            replicates=what.replicates or DEFAULT_REPLICATES,
            target=target,
            work=what.work or target.parent / WORK,
        )

    def plan(
        self,
        arms: Sequence[ScaledSpatialGuidance | None],
        given: Mapping[str, Any],
        ruler: RulerOptions,
        model: ModelOptions,
    ) -> Task:
        """Load model, features and reference. given: arguments of the pipeline's call."""
        from nextscale.evaluation.comparison import plan_arms
        from nextscale.evaluation.runner import plan

        choice = model.choice()
        with working(f"loading {choice}"):
            pipe = choice.load(model.device, model.dtype)
            check_model(pipe, self.preset)
            arguments = request.call_arguments(pipe, {**self.preset.sampling, **given}, {})
        chosen = list(dict.fromkeys(request.with_model_default(pipe, arm) for arm in arms))
        if len(chosen) < 2:
            raise InvalidArgumentError("there is nothing to compare with no SSG; add --ssg 0.6, say")
        space, reference = ruler.open(self.preset, pipe.image_size, model.device)
        with working("planning"):
            settings = {"arguments": arguments, "seed": self.seed, "batch_size": self.batch_size}
            base = plan(pipe, self.images, space, reference, **settings)  # type: ignore[arg-type]
            protocols = plan_arms(base, chosen, self.sets)
        names = [request.arm_name(p[0].sampling["ssg"] if p[0].sampling else None) for p in protocols]
        arms_by_name = dict(zip(names, protocols, strict=True))
        return Task(pipe, arms_by_name, space, reference, self.batch_size, self.replicates)


def measure(task: Task, measuring: Measuring) -> None:
    """Draw, measure, compare, write and print."""
    comparison = task.run(measuring.work)
    comparison.write(measuring.target)
    for line in comparison.lines():
        print(line)
    target = measuring.target
    print(f"{target}, {target.with_suffix('.md').name}; features are kept in {measuring.work}")


def _target(output: Path | None) -> Path:
    target = output or pictures.free_name(DEFAULT_NAME)
    if target.suffix.lower() != ".json":
        raise InvalidArgumentError(
            f"with --images figures are written; give a name that ends in .json, got {str(target)!r}"
        )
    if target.is_dir():
        raise InvalidArgumentError(f"{str(target)!r} is a folder; give the name of a file")
    pictures.check_folder(target.parent)
    return target


def _seed(text: str | None) -> int:
    numbers = values.read_seeds(text) if text is not None else [0]
    if len(numbers) > 1:
        raise InvalidArgumentError(
            f"--seed takes one number with --images, that of the first picture; got {text!r}"
        )
    return numbers[0]
