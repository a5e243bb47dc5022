"""Moving a pipeline: which device and dtype a caller means, and all its parts there or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from nextscale.errors import InvalidArgumentError
from nextscale.nn.placement import DTYPES, Placement, place
from nextscale.recording import Recordings

_DEVICES = "cpu, cuda, cuda:1, mps or auto"


def resolve(
    where: Sequence[Any], device: Any, dtype: Any, now_device: torch.device, now_dtype: torch.dtype
) -> Placement:
    """The place that the arguments of :meth:`~nextscale.families.pipeline.Pipeline.to` name.

    now_device, now_dtype: what stays where only the other is named.
    Raises InvalidArgumentError for anything that is neither, for two of a kind, and for nothing at all.
    """
    named: dict[str, Any] = {"device": device, "dtype": dtype}
    for value in where:
        kind = _kind(value, taken=named["device"] is not None)
        if named[kind] is not None:
            raise InvalidArgumentError(f"to() takes one {kind}, got {named[kind]!r} and {value!r}")
        named[kind] = value
    if all(value is None for value in named.values()):
        raise InvalidArgumentError(
            f"to() takes a device ({_DEVICES}), a dtype ({', '.join(DTYPES)}), or both; got nothing"
        )
    for name, value in named.items():
        if isinstance(value, bool):
            raise InvalidArgumentError(f"to() takes a {name}, got {value!r}")
    found = place(
        now_device if named["device"] is None else named["device"],
        now_dtype if named["dtype"] is None else named["dtype"],
    )
    if found.device.type == "meta" or now_device.type == "meta":
        raise InvalidArgumentError(
            "a pipeline on the device meta has no numbers that could be moved; load it where it should be"
        )
    return found


def _kind(value: Any, *, taken: bool) -> str:
    """Whether a value means a device or a dtype; ``taken`` says that there is a device already."""
    if isinstance(value, torch.dtype):
        return "dtype"
    if isinstance(value, torch.device) or (isinstance(value, int) and not isinstance(value, bool)):
        return "device"
    if isinstance(value, str):
        if value == "auto":
            return "dtype" if taken else "device"
        if isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype):
            return "dtype"
        if _is_device(value):
            return "device"
    raise InvalidArgumentError(
        f"to() takes a device ({_DEVICES}) or a dtype ({', '.join(DTYPES)}), got {value!r}"
    )


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True


def move(pipe: Any, target: Placement) -> None:
    """Move all models of a pipeline and its text encoder; if that fails, everything is where it was."""
    parts = [part for part in vars(pipe).values() if isinstance(part, nn.Module)]
    leaves = any(weight.device != target.device for part in parts for weight in part.parameters())
    encoder: Any = getattr(pipe, "text_encoder", None)
    # What is left behind takes no memory where it goes to. On the spot, nothing is kept twice.
    with restored_on_failure(parts) if leaves else nullcontext():
        for part in parts:
            part.to(target.device, target.dtype)
        if hasattr(encoder, "to"):
            encoder.to(target.device)
    # Recorded for weights that lie elsewhere now; they would only take memory there.
    for owner in (pipe, *parts):
        if hasattr(owner, "recordings"):
            owner.recordings = Recordings()


@contextmanager
def restored_on_failure(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it modules may be moved; if an exception passes, they hold the weights they held before."""
    within = [module for whole in modules for module in whole.modules()]
    # PyTorch replaces buffers, and parameters or what they hold, by the kinds of the two devices.
    before = [(module, dict(module._parameters), dict(module._buffers)) for module in within]
    numbers = [(weight, weight.data) for whole in modules for weight in whole.parameters()]
    try:
        yield
    except BaseException:
        for module, parameters, buffers in before:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        for weight, data in numbers:
            weight.data = data
        raise
