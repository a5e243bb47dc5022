"""What a training does beside training, and does not end for: figures on held-out data, and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from nextscale.errors import warn
from nextscale.training.log import Log


def measure(
    evaluate: Callable[[], dict[str, float]],
    sample: Callable[[Path], None],
    step: int,
    folder: Path,
    log: Log,
) -> dict[str, float]:
    """Figures on held-out data for the log, and a picture for the folder, after some step.

    What fails, and figures that are not finite, are reported as warnings. Returns the figures, none if they
    failed.
    """
    figures: dict[str, float] = {}
    failure = attempt(lambda: figures.update(evaluate()), f"figures on held-out data at step {step}")
    log.write({"step": step, "eval": figures} if failure is None else {"step": step, "failed": failure})
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        warn(f"figures on held-out data at step {step} are not finite: {', '.join(bad)}")
    attempt(lambda: sample(folder / f"sample-{step:07d}.png"), f"picture of step {step}")
    return figures


def attempt(work: Callable[[], None], what: str) -> str | None:
    """Do something that nothing depends on; returns why it failed, if it did."""
    try:
        work()
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".removesuffix(": ")
        warn(f"no {what} ({reason}); the training goes on")
    else:
        return None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # it may have been too large for the device
    return reason
