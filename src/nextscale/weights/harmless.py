"""numpy's numbers, arguments and paths in PyTorch files, which trainers leave among what they save.

``weights_only=True`` refuses whatever is not a tensor or a plain value, and with one numpy number a file
whose tensors are fine. Nothing but tensors is wanted here, so stand-ins take the place of the constructors:
they look at nothing, do nothing, and the classes themselves are never called with what a file says.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class PassedOver:
    """Takes the place of a value that is not wanted, whatever it was made from."""

    def __init__(self, *given: Any) -> None:
        """Keep nothing."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


# By module and name, in numpy 2 and before. An array is a shape and, set afterwards, a dtype and bytes.
_MODULES = ("numpy._core.multiarray", "numpy.core.multiarray")
_NAMES = [
    *[(module, name) for module in _MODULES for name in ("scalar", "_reconstruct")],
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("argparse", "Namespace"),
    *[("datetime", name) for name in ("datetime", "date", "timedelta")],
    *[(module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")],
]
# PyTorch goes by the module and the name that a class says it has.
_STAND_INS: list[Any] = [type(name, (PassedOver,), {"__module__": module}) for module, name in _NAMES]


def numbers_passed_over() -> AbstractContextManager[object]:
    """Within it, ``torch.load(weights_only=True)`` reads past numpy's numbers and arrays, and arguments.

    Before PyTorch 2.5, which cannot be told for a while only, such files are refused as they were.
    """
    if not hasattr(torch.serialization, "safe_globals"):
        return nullcontext()
    passed: AbstractContextManager[object] = torch.serialization.safe_globals(_STAND_INS)
    return passed
