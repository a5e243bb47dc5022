"""The exceptions nextscale raises for conditions a caller can fix.

Every message names the value that was found and says what to do. Each class also derives from the
built-in exception a caller would expect, so ``except ValueError`` keeps working.
"""

from __future__ import annotations


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


class DataError(NextscaleError, ValueError):
    """Training or evaluation data cannot be read or has an unexpected layout."""
