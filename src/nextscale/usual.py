"""PyTorch's defaults as they are when nobody changes them.

Programs set others for themselves: ``torch.set_default_device("cuda")``, ``torch.set_default_dtype``, or
``with torch.device(...)``. What this library computes depends on its arguments alone, so its entry points put
the usual ones back for as long as they work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def with_usual_defaults(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function run with new tensors on the CPU and in float32, whatever the caller's defaults are."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _usual_defaults():
            return function(*args, **kwargs)

    return call


@contextmanager
def _usual_defaults() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
