from __future__ import annotations

from typing import Any

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.nn.placement import DTYPES, place


def test_automatic_choices_say_why():
    chosen = place()
    assert chosen.device.type == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    assert "present" in chosen.device_reason
    assert chosen.dtype in DTYPES.values()
    assert chosen.dtype_reason not in ("", "given")


def test_off_cuda_the_automatic_dtype_is_the_reference_precision():
    chosen = place("cpu")
    assert (chosen.device, chosen.device_reason) == (torch.device("cpu"), "given")
    assert chosen.dtype == torch.float32
    assert "only when asked for" in chosen.dtype_reason


@pytest.mark.parametrize("name", DTYPES)
def test_given_dtypes_by_name_or_object(name: str):
    for dtype in (name, DTYPES[name]):
        chosen = place(torch.device("cpu"), dtype)
        assert (chosen.dtype, chosen.dtype_reason) == (DTYPES[name], "given")


@pytest.mark.parametrize("device", ["quantum", "cpu:x", "cuda:99", 3.5, None])
def test_devices_that_are_not_there(device: Any):
    with pytest.raises(InvalidArgumentError, match=f"cannot use the device '{device}'"):
        place(device)


@pytest.mark.parametrize("dtype", ["int8", "float64", torch.float64, torch.int32, "half", "", None])
def test_dtypes_that_models_do_not_run_in(dtype: Any):
    with pytest.raises(
        InvalidArgumentError, match=r"unknown dtype .*; known: auto, float32, bfloat16, float16"
    ):
        place("cpu", dtype)
