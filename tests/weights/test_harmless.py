"""What trainers leave among tensors and is no code: read past, and nothing of it is called."""

from __future__ import annotations

import argparse
import datetime
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextscale.errors import CheckpointError
from nextscale.weights.files import read_file, read_weights

HARMLESS = [
    np.float64(0.25),
    np.float32(1e-4),
    np.int64(7),
    np.bool_(True),
    np.str_("cosine"),
    np.array([1.0, 2.0]),
    np.arange(6).reshape(2, 3),
    np.dtype("float16"),
    {"rng": np.random.RandomState(0).get_state(), "list": [np.float64(1), (np.int8(2),)]},
    argparse.Namespace(lr=1e-4, path=Path("data"), best=np.float64(2.0), nested=argparse.Namespace(a=[1])),
    Path("runs") / "one",
    datetime.datetime(2026, 1, 2, 3, 4, 5),
    datetime.timedelta(minutes=3),
]


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("value", HARMLESS, ids=lambda value: type(value).__name__)
def test_read_past(value: Any, meta: bool, new: bool, tmp_path: Path):
    path, weight = tmp_path / "last.pth", torch.arange(4.0)
    content = {"w": weight, "args": value, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    assert read_file(path, meta=meta)["epoch"] == 3
    found = read_weights(path, meta=meta)
    assert list(found) == ["w"]
    assert found["w"].shape == weight.shape
    assert meta or torch.equal(found["w"], weight)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "function", [os.system, os.remove, eval, np.load, np.fromfile], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("beside", [False, True])
def test_code_is_refused_all_the_same(function: Any, beside: bool, tmp_path: Path):
    kept = tmp_path / "kept"
    kept.touch()
    call = Calls(function, str(kept))
    path = tmp_path / "last.pth"
    torch.save({"w": torch.ones(1), "args": [np.float64(1.0), call] if beside else call}, path)
    with pytest.raises(CheckpointError, match=r"would run code from the file .* save its state dict alone"):
        read_weights(path)
    assert kept.exists()


def test_afterwards_torch_reads_as_before(tmp_path: Path):
    path = tmp_path / "last.pth"
    torch.save({"w": torch.ones(1), "args": argparse.Namespace(a=1)}, path)
    read_weights(path)
    with pytest.raises(Exception, match="argparse"):
        torch.load(path, weights_only=True)
