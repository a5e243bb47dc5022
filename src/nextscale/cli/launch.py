"""Commands that several processes of a launch may run together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nextscale.cli.models import ModelOptions
from nextscale.cli.progress import note

if TYPE_CHECKING:
    from nextscale.sampling.processes import Processes


def join_launch(model: ModelOptions) -> tuple[Processes, ModelOptions]:
    """This process among those of its launch, and the model's options with the device that it has there."""
    from nextscale.sampling.processes import joined

    with joined(model.device, lambda text: note(f"note: {text}")) as processes:
        return processes, replace(model, device=processes.device or model.device)
