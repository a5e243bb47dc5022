"""What `generate` and `compare` do before and after drawing: where files go, and what is stored in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale import __version__
from nextscale.cli import pictures, request
from nextscale.cli.models import ModelChoice
from nextscale.cli.progress import note
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

    from nextscale.families.var.pipeline import VARPipeline
    from nextscale.generation.request import GenerationOutput


@dataclass(frozen=True)
class Setup:
    """What is known before a model is loaded.

    target: the picture to write. separate: the folder for single files, if any.
    stored: the settings in the picture of ``--from``; empty without.
    batch_size: given, stored or usual.
    """

    command: str
    target: Path
    separate: Path | None
    stored: Mapping[str, Any]
    choice: ModelChoice
    batch_size: int

    def settings(self, out: GenerationOutput) -> dict[str, Any]:
        """What a file stores: the pipeline's settings, and what the command line needs besides them."""
        source = self.choice.to_json()
        return {**out.settings, "command": self.command, "source": source, "batch_size": self.batch_size}

    def save_single(
        self, pipe: VARPipeline, image: Image, index: int, settings: Mapping[str, Any], suffix: str = ""
    ) -> None:
        """One picture as a file of its own, unscaled, that ``generate --from`` can make again."""
        if self.separate is None:
            return
        self.separate.mkdir(exist_ok=True)
        label = request.label_name(pipe, settings["labels"][0])
        name = pictures.file_name(index, label, settings["seeds"][0], suffix)
        alone = {**settings, "command": "generate", "layout": {"columns": 1, "zoom": 1}}
        pictures.save_png(image, self.separate / name, alone)

    def stored_layout(self, count: int) -> Mapping[str, Any]:
        """Columns and zoom of the earlier picture, as far as they fit this number of pictures."""
        layout = dict(self.stored.get("layout", {}))
        if layout and len(self.stored["labels"]) != count:
            layout.pop("columns", None)
        return layout


def prepare(
    command: str,
    default_name: str,
    output: Path | None,
    separate: Path | None,
    earlier: Path | None,
    given: ModelChoice,
    batch_size: int | None,
) -> Setup:
    """Check what can be checked at once; raises InvalidArgumentError before anything slow is done."""
    target = output or pictures.free_name(default_name)
    pictures.check_target(target)
    if separate is not None:
        pictures.check_separate(separate)
    stored = _read(earlier, command) if earlier is not None else {}
    choice = given or ModelChoice.stored(stored.get("source", {}))
    batch = batch_size or stored.get("batch_size") or request.DEFAULT_BATCH
    return Setup(command, target, separate, stored, choice, batch)


def _read(path: Path, command: str) -> dict[str, Any]:
    stored = pictures.read_settings(path)
    if stored["command"] != command:
        raise InvalidArgumentError(
            f"{str(path)!r} was written by nextscale {stored['command']}; "
            f"use nextscale {stored['command']} --from {path}"
        )
    if stored.get("nextscale") != __version__:
        note(f"note: {path} was made by nextscale {stored.get('nextscale')}, and this is {__version__}")
    return stored
