"""What `generate` and `compare` do before and after drawing: where files go, and what is stored in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale import __version__
from nextscale.cli import options, pictures, request, values
from nextscale.cli.models import ModelChoice, ModelOptions
from nextscale.cli.progress import note, working
from nextscale.cli.request import Pictures
from nextscale.cli.subjects import Subjects, Typed, subjects_of
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

    from nextscale.generation.request import GenerationOutput
    from nextscale.guidance.ssg import ScaledSpatialGuidance


@dataclass(frozen=True)
class CountOptions:
    """How many pictures, and from which random numbers."""

    count: options.Count = None
    seed: options.Seed = None
    batch_size: options.BatchSize = None

    def given(self) -> bool:
        """Whether any of them was."""
        return self != CountOptions()


@dataclass(frozen=True)
class FileOptions:
    """Files besides the picture itself, and how large it is shown."""

    separate: options.Separate = None
    from_: options.From = None
    zoom: options.Zoom = None

    def options(self) -> dict[str, Any]:
        """By the names they are typed with."""
        return {"--separate": self.separate, "--from": self.from_, "--zoom": self.zoom}


@dataclass(frozen=True)
class Setup:
    """What is known before a model is loaded.

    target: the picture to write. separate: the folder for single files, if any.
    earlier: the picture of ``--from``. stored: the settings in it; empty without.
    batch_size: given or stored; ``None`` is the pipeline's own.
    """

    command: str
    target: Path
    separate: Path | None
    stored: Mapping[str, Any]
    choice: ModelChoice
    batch_size: int | None
    earlier: Path | None = None

    def load(self, given: Mapping[str, Any], device: str | None, dtype: str | None) -> Job:
        """Load the model, and check what was given of its call's arguments against it."""
        pipe = self.choice.load(device, dtype or self.stored.get("dtype"))
        self._compare_weights(pipe)
        arguments = request.call_arguments(pipe, given, self.stored)
        batch_size = self.batch_size or request.default_batch(pipe)
        return Job(self, pipe, subjects_of(pipe), arguments, batch_size)

    def _compare_weights(self, pipe: Any) -> None:
        """Say so if the earlier picture was drawn by other weights under the same name."""
        drew = self.stored.get("weights")
        if drew is None:
            return
        dtype = str(pipe.dtype).removeprefix("torch.")
        if dtype != self.stored.get("dtype"):
            note(
                f"note: {self.earlier} was drawn in {self.stored.get('dtype')}, so it cannot be told whether "
                f"the weights of {self.choice} are those that drew it"
            )
        elif pipe.weights_digest() != drew:
            note(
                f"note: the weights of {self.choice} are others than those that drew {self.earlier}, so the "
                f"pictures will differ from it"
            )

    def stored_layout(self, count: int) -> Mapping[str, Any]:
        """Columns and zoom of the earlier picture, as far as they fit this number of pictures."""
        layout = dict(self.stored.get("layout", {}))
        if layout and len(self.stored["seeds"]) != count:
            layout.pop("columns", None)
        return layout


@dataclass(frozen=True)
class Job:
    """A setup with its model.

    subjects: what the model draws. arguments: for the pipeline's call, from options and earlier picture.
    """

    setup: Setup
    pipe: Any
    subjects: Subjects
    arguments: Mapping[str, Any]
    batch_size: int

    def choose(self, typed: Typed, how_many: CountOptions, **defaults: Any) -> Pictures:
        """See :func:`nextscale.cli.request.choose_pictures`."""
        stored = self.setup.stored
        return request.choose_pictures(
            self.subjects, typed, how_many.count, how_many.seed, stored, **defaults
        )

    def check_size(self, count: int, zoom: int | None, blocks: int = 1) -> None:
        """Raises InvalidArgumentError for more pictures than a file should hold, before they are drawn."""
        h, w = request.size_of(self.pipe, self.arguments)
        side = zoom or pictures.auto_zoom((w, h))
        pictures.check_size(h * w * side * side * count * blocks, count * blocks)

    def tokens(self, count: int) -> int:
        """How many tokens make that many pictures, for progress."""
        return count * request.schedule_of(self.pipe, self.arguments).num_tokens

    def prepare(self, wanted: Pictures) -> None:
        """What has to be done once, however often these pictures are drawn."""
        unwanted = self.arguments.get("negative_prompt")
        with working("encoding prompts"):
            self.subjects.prepare([*wanted.subjects, *([unwanted] if unwanted is not None else [])])

    def draw(
        self,
        wanted: Pictures,
        ssg: ScaledSpatialGuidance | None,
        advance: Callable[[int], None],
        batch_size: int | None = None,
    ) -> GenerationOutput:
        return request.draw(self.pipe, wanted, self.arguments, ssg, batch_size or self.batch_size, advance)

    def settings(self, out: GenerationOutput) -> dict[str, Any]:
        """What a file stores: the pipeline's settings, and what the command line needs besides them."""
        return {**out.settings, "command": self.setup.command, "source": self.setup.choice.to_json()}

    def save_single(self, image: Image, index: int, settings: Mapping[str, Any], suffix: str = "") -> None:
        """One picture as a file of its own, unscaled, that ``generate --from`` can make again."""
        folder = self.setup.separate
        if folder is None:
            return
        folder.mkdir(exist_ok=True)
        subject = self.subjects.name(settings[self.subjects.key][0])
        name = pictures.file_name(index, subject, settings["seeds"][0], suffix)
        alone = {**settings, "command": "generate", "layout": {"columns": 1, "zoom": 1}}
        pictures.save_png(image, folder / name, alone)


def prepare(
    command: str,
    default_name: str,
    output: Path | None,
    files: FileOptions,
    model: ModelOptions,
    how_many: CountOptions,
) -> Setup:
    """Check what can be checked at once; raises InvalidArgumentError before anything slow is done."""
    numbers = {"--count": how_many.count, "--batch-size": how_many.batch_size, "--zoom": files.zoom}
    values.require_positive(numbers)
    request.check_sheet(how_many.count or 1)
    if how_many.seed is not None:
        values.read_seeds(how_many.seed)
    given = model.choice()
    target = output or pictures.free_name(default_name)
    pictures.check_target(target)
    if files.separate is not None:
        pictures.check_separate(files.separate)
    stored = _read(files.from_, command) if files.from_ is not None else {}
    choice = given.over(ModelChoice.stored(stored.get("source", {})))
    batch = how_many.batch_size or stored.get("batch_size")
    return Setup(command, target, files.separate, stored, choice, batch, files.from_)


def _read(path: Path, command: str) -> dict[str, Any]:
    stored = pictures.read_settings(path)
    if stored["command"] != command:
        raise InvalidArgumentError(
            f"{str(path)!r} was written by nextscale {stored['command']}; "
            f"use nextscale {stored['command']} --from {path}"
        )
    if stored.get("nextscale") != __version__:
        note(f"note: {path} was made by nextscale {stored.get('nextscale')}, and this is {__version__}")
    pictures.note_version(path, stored)
    return stored
