"""``nextscale generate --out``: many pictures as shards in a folder, alone or as one of several processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale import __version__
from nextscale.cli import pictures, request, values
from nextscale.cli.launch import join_launch
from nextscale.cli.models import ModelOptions
from nextscale.cli.progress import note, sampling, working
from nextscale.cli.request import DrawingOptions, SSGOptions
from nextscale.cli.setup import CountOptions
from nextscale.cli.subjects import SubjectOptions, Typed, read_lines, subjects_of
from nextscale.cli.values import read_seeds
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.sampling.drawing import RunPictures
    from nextscale.sampling.plan import RunPlan
    from nextscale.sampling.processes import Processes
    from nextscale.sampling.worker import Worker

PANEL = "Many pictures"
DEFAULT_FORMAT, DEFAULT_IMAGE_FORMAT, DEFAULT_SHARD = "tar", "png", 1000
MANY = 1000  # pictures from which on a word about idle cores is worth a line
ENCODED_AT_ONCE = 2000  # prompts; of more, the features would not fit beside the model

# What a pipeline reports of its settings that does not decide a picture, or stands elsewhere in a manifest.
_NOT_SAMPLING = (
    *("nextscale", "family", "model", "weights", "labels", "prompts", "seeds", "given_tokens", "tile"),
)


def _option(*names: str, metavar: str, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=PANEL, show_default=False)


@dataclass(frozen=True)
class RunOptions:
    """The options about runs; ``None`` is not given."""

    out: Annotated[
        Path | None,
        _option(
            "--out",
            metavar="DIR",
            help="Draw --count pictures as shards in this folder; picture i has the seed --seed + i, from 0. "
            "Further processes with the same command share the work; stopped runs go on.",
        ),
    ] = None
    labels: Annotated[
        Path | None,
        _option(
            "--labels",
            metavar="FILE",
            help="A class, by name or number, on every line; picture i shows line i, and after the last line "
            "the first again. Also of --prompts. Default count: the number of lines.",
        ),
    ] = None
    format: Annotated[
        str | None,
        _option(
            "--format",
            metavar="NAME",
            help="tar (WebDataset), parquet (as on the hub), folder, or npz (one ADM batch). Default: tar.",
        ),
    ] = None
    image_format: Annotated[
        str | None,
        _option("--image-format", metavar="NAME", help="png or webp, both without loss. Default: png."),
    ] = None
    shard_size: Annotated[
        int | None,
        _option(
            "--shard-size", metavar="N", help="Pictures in a shard, the most a kill loses. Default: 1000."
        ),
    ] = None

    def wanted(self) -> bool:
        """Whether this is about a run. Raises InvalidArgumentError for options that are, without a folder."""
        given = [name for name, value in vars(self).items() if value is not None]
        if given and self.out is None:
            raise InvalidArgumentError(f"{values.flag(given[0])} is about runs into a folder; add --out DIR")
        return self.out is not None

    def refuse(self, others: Mapping[str, Any]) -> None:
        """Raises InvalidArgumentError for options that a run has no use for, and numbers below 1."""
        named = [name for name, value in others.items() if value is not None]
        if named:
            raise InvalidArgumentError(
                f"{named[0]} is about a single file, and --out DIR makes shards in a folder"
            )
        values.require_positive({"--shard-size": self.shard_size})
        if self.image_format is not None and self.format == "npz":
            raise InvalidArgumentError("--image-format: an npz holds pixels, no picture files; leave it out")

    @property
    def folder(self) -> Path:
        """Where to, checked. Raises InvalidArgumentError for what cannot be a run's folder."""
        from nextscale.sampling.plan import MANIFEST, WORK

        folder = Path(self.out or "")
        if folder.exists() and not folder.is_dir():
            raise InvalidArgumentError(f"{str(folder)!r} is a file; --out takes a folder")
        pictures.check_folder(folder if folder.exists() else folder.absolute().parent)
        if folder.exists() and not (folder / MANIFEST).exists() and set(os.listdir(folder)) - {WORK}:
            raise InvalidArgumentError(
                f"{str(folder)!r} holds files and no {MANIFEST}; --out takes a new folder, or that of a run"
            )
        return folder


def sample(
    run: RunOptions,
    subjects: SubjectOptions,
    ssg: str | None,
    spatial: SSGOptions,
    how_many: CountOptions,
    shape: DrawingOptions,
    model: ModelOptions,
) -> None:
    """Begin a run, or help with one, and stay until it is complete.

    Raises InvalidArgumentError for options that do not fit the model, or another run in the folder.
    """
    from nextscale.sampling.drawing import RunPictures, fixed_arithmetic
    from nextscale.sampling.plan import check_shards
    from nextscale.sampling.signals import held_back
    from nextscale.sampling.worker import Worker, begin

    values.require_positive({"--count": how_many.count, "--batch-size": how_many.batch_size})
    check_shards(how_many.count or 1, run.shard_size or DEFAULT_SHARD)
    folder, choice, first = run.folder, model.choice(), _first_seed(how_many.seed)
    words = read_lines(run.labels, "--labels", "class") if run.labels is not None else []
    given, guidance, typed = shape.given(), spatial.build(ssg), subjects.typed()
    processes, model = join_launch(model)
    with working(f"loading {choice}"):
        pipe = choice.load(model.device, model.dtype)
        arguments = request.call_arguments(pipe, given, {})
        if arguments.get("sampler") == "multinomial":
            raise InvalidArgumentError(
                "--sampler multinomial draws for a batch as a whole, and a run's pictures must not depend on "
                "their batch; use paired or greedy"
            )
        arguments["ssg"] = request.with_model_default(pipe, guidance)
        kind = subjects_of(pipe)
        typed = Typed((*typed.words, *words), typed.prompts)
        shown = kind.read(typed) or kind.default()
        unwanted = arguments.get("negative_prompt")
        if kind.key == "labels" or len(set(shown)) <= ENCODED_AT_ONCE:
            kind.prepare([*shown, *([unwanted] if unwanted is not None else [])])
    source = RunPictures(pipe, kind.key, shown, first, arguments)
    batch = how_many.batch_size or request.default_batch(pipe)
    with fixed_arithmetic(pipe.device), held_back() as caught:
        with working("planning"):
            plan = begin(folder, _plan(source, run, how_many.count), source, batch, _note_of(processes))
        worker = Worker(folder, plan, source, batch, processes.rank, processes.count)
        worker.note, worker.stopping = _note_of(processes), lambda: bool(caught)
        _work(worker, processes)
    if processes.is_main:
        names = list(dict.fromkeys(kind.quoted(subject) for subject in shown[:100]))
        listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        print(f"{folder}: {plan.count:,} pictures of {listed}; {_seeds(plan)}; {_files(plan)}")
        print(request.describe({**plan.sampling, "model": pipe.name}))


def _work(worker: Worker, processes: Processes) -> None:
    plan, there = worker.plan, worker.done_pictures()
    if processes.is_main and there:
        note(f"going on: {there:,} of {plan.count:,} pictures are done")
    cores = os.cpu_count() or 1
    if plan.device == "cpu" and processes.count == 1 < cores and plan.count >= MANY:
        note(
            f"note: one thread draws; torchrun --nproc-per-node {cores} -m nextscale ... keeps all cores busy"
        )
    try:
        with sampling(f"drawing {plan.count:,} pictures", plan.count) as report:
            worker.report = lambda progress: report(progress.done, progress.rate)
            worker.run()
    except KeyboardInterrupt:
        if processes.is_main:
            whole = len(worker.published())
            note(f"stopped: {whole:,} of {plan.shards:,} shards are whole; the same command goes on")
        raise


def _plan(source: RunPictures, run: RunOptions, count: int | None) -> RunPlan:
    """What is asked for. One picture is drawn: the pipeline itself says what it makes of the options.

    Raises InvalidArgumentError if not even that one fits into memory.
    """
    from nextscale.families import family_of
    from nextscale.sampling.drawing import halved
    from nextscale.sampling.plan import RunPlan
    from nextscale.weights.digest import pipeline_digest, text_digest

    pipe = source.pipe
    try:
        out = pipe([source.subject(0)], seed=source.seed, output_type="pt", **source.arguments)
    except (RuntimeError, MemoryError) as error:
        halved(error, 1, pipe.device, note)
        raise
    return RunPlan(
        count=count or len(source.subjects),
        seed=source.seed,
        key=source.key,
        subjects=len(source.subjects),
        subjects_digest=text_digest(json.dumps(list(source.subjects))),
        model={"name": pipe.name, "family": family_of(pipe), "sha256": pipeline_digest(pipe)},
        sampling={k: v for k, v in out.settings.items() if k not in _NOT_SAMPLING},
        size=tuple(out.images.shape[2:]),
        device=pipe.device.type,
        format=run.format or DEFAULT_FORMAT,  # type: ignore[arg-type]
        image_format=run.image_format or DEFAULT_IMAGE_FORMAT,  # type: ignore[arg-type]
        shard_size=run.shard_size or DEFAULT_SHARD,
        nextscale=__version__,
    )


def _note_of(processes: Processes) -> Callable[[str], None]:
    who = f"process {processes.rank}: " if processes.count > 1 else ""
    return lambda text: note(f"note: {who}{text}")


def _seeds(plan: RunPlan) -> str:
    return f"seed {plan.seed}" if plan.count == 1 else f"seeds {plan.seed} to {plan.seed + plan.count - 1}"


def _files(plan: RunPlan) -> str:
    from nextscale.sampling.plan import JOINED

    return JOINED if plan.format == "npz" else "1 shard" if plan.shards == 1 else f"{plan.shards:,} shards"


def _first_seed(text: str | None) -> int:
    numbers = read_seeds(text) if text is not None else [0]
    if len(numbers) != 1:
        raise InvalidArgumentError("--seed: a run takes one number; picture i has that number + i")
    return numbers[0]
