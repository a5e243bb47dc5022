"""The exceptions nextscale raises for conditions a caller can fix, and its warnings.

Every message names the value that was found and says what to do. Each class also derives from the
built-in exception a caller would expect, so ``except ValueError`` keeps working.
"""

from __future__ import annotations

import sys
import warnings


class NextscaleError(Exception):
    """Base of every error that nextscale raises on purpose."""


class InvalidArgumentError(NextscaleError, ValueError):
    """A parameter has a value outside of what it accepts."""


class GridError(InvalidArgumentError):
    """Token grids do not fit each other or the logits they describe."""


class CheckpointError(NextscaleError, ValueError):
    """A weight file is not what it was said to be, or cannot be read safely."""


class ModelNotFoundError(NextscaleError, FileNotFoundError):
    """No model goes by this name: not embedded, not a local folder, not on the hub."""


class MissingDependencyError(NextscaleError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class TrainingError(NextscaleError, ArithmeticError):
    """A training run cannot go on: it diverged."""


class SamplingError(NextscaleError, ArithmeticError):
    """A sampling run cannot go on: its numbers are none."""


class NotFiniteError(SamplingError):
    """Something of a picture in the making is NaN or infinite.

    what: says what, before the picture is named. picture: which, from 0 in its call. cause: what is likely.
    """

    def __init__(self, what: str, picture: int, cause: str) -> None:
        super().__init__(what, picture, cause)
        self.what, self.picture, self.cause = what, picture, cause

    def __str__(self) -> str:
        return f"{self.what} picture {self.picture}; {self.cause}"

    def of(self, picture: int) -> NotFiniteError:
        """Make the same error for a picture that has another number."""
        return NotFiniteError(self.what, picture, self.cause)


class DataError(NextscaleError, ValueError):
    """Training or evaluation data cannot be read or has an unexpected layout."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was too little, in the words of CUDA, MPS and the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        words in text
        for words in ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
    )


class NextscaleWarning(UserWarning):
    """Something was done in another way than asked for; the message says what, and how to avoid it."""


def warn(message: str) -> None:
    """Issue a :class:`NextscaleWarning` that points at the line outside of this library which led to it."""
    frame, level = sys._getframe(1), 2
    # torch is in between where a method is decorated with torch.no_grad
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("nextscale", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, NextscaleWarning, stacklevel=level)
