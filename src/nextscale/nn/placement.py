"""Which device and dtype a model runs on, and why: automatic choices can be read, never guessed at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nextscale.errors import InvalidArgumentError

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """A device and dtype with the reason for each."""

    device: torch.device
    dtype: torch.dtype
    device_reason: str
    dtype_reason: str


def place(device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> Placement:
    """Resolve ``"auto"``, names, or torch objects.

    Raises InvalidArgumentError for a device that this machine or this torch does not have, or an unknown
    dtype.
    """
    chosen, why = _device(device)
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        kind, because = _auto_dtype(chosen)
        return Placement(chosen, kind, why, because)
    if name not in DTYPES:
        raise InvalidArgumentError(f"unknown dtype {name!r}; known: auto, {', '.join(DTYPES)}")
    return Placement(chosen, DTYPES[name], why, "given")


def _device(device: str | torch.device) -> tuple[torch.device, str]:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA GPU is present"
        if torch.backends.mps.is_available():
            return torch.device(
                "cpu"
            ), "no CUDA GPU is present; an Apple GPU is used only when asked for (mps)"
        return torch.device("cpu"), "no GPU that this torch can use is present"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgumentError(f"cannot use the device {str(device)!r}: {reason}") from None
    return chosen, "given"


def _auto_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "this GPU multiplies bfloat16 natively"
    if device.type == "cuda":
        return torch.float16, "this GPU has no native bfloat16"
    return torch.float32, "the reference precision; off CUDA half precision is used only when asked for"
