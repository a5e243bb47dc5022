"""What messages call the arguments of a training: by Python's names, or as options of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_OPTIONS = {
    **{name: f"--{name}" for name in ("recipe", "size", "scales", "tokenizer", "initial", "seed", "lr")},
    **{name: f"--{name}" for name in ("perceptual", "adversarial")},
    "batch_size": "--batch-size",
    "data": "DATA",
    "output": "--output",
    "resume=False": "--no-resume",
    "kind": "nextscale train",
}

_as_options: ContextVar[bool] = ContextVar("as_options", default=False)


@contextmanager
def options_named() -> Iterator[None]:
    """Let messages name options, while a command runs a training."""
    token = _as_options.set(True)
    try:
        yield
    finally:
        _as_options.reset(token)


def named(argument: str) -> str:
    """Name an argument as messages call it; what is no option has one name."""
    return _OPTIONS.get(argument, argument) if _as_options.get() else argument


def remedy() -> str:
    """Say what to do about a checkpoint that cannot be gone on from."""
    return f"use another {named('output')} folder, or start afresh with {named('resume=False')}"
