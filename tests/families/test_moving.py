"""``pipe.to``: where a pipeline goes, what comes along, and that nothing goes half way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.golden_models import FAMILIES, equal_tokens, golden_model
from torch import nn

from nextscale import VARPipeline
from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity.text import T5TextEncoder
from nextscale.families.moving import move
from nextscale.nn.placement import Placement
from nextscale.recording import Recordings

META = Placement(torch.device("meta"), torch.float32, "", "")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    """All tensors of all models, those that files do not hold among them."""
    parts = {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module)}
    return {
        f"{name}.{key}": tensor
        for name, part in parts.items()
        for key, tensor in (*part.named_parameters(), *part.named_buffers())
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_that_was_moved_is_as_if_loaded_there(family: str, dtype: torch.dtype, golden: Path):
    moved, loaded = golden_model(family, golden), golden_model(family, golden, dtype=dtype)
    moved(1)  # what a call may keep must not stay behind
    assert moved.pipe.to(dtype) is moved.pipe
    assert moved.pipe.dtype == dtype
    ours, theirs = weights(moved.pipe), weights(loaded.pipe)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    a, b = moved(2, ssg=0.6), loaded(2, ssg=0.6)
    assert equal_tokens(a, b)
    assert torch.equal(a.images, b.images)
    assert a.settings["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    "where",
    [
        (("cpu", "bfloat16"), {}),
        ((torch.bfloat16, torch.device("cpu")), {}),
        (("torch.bfloat16",), {}),
        ((), {"dtype": "bfloat16"}),
        (("cpu",), {"dtype": torch.bfloat16}),
        ((torch.bfloat16,), {"device": "cpu"}),
    ],
)
def test_ways_to_say_it(where: Any, golden: Path):
    pipe = golden_model("var", golden).pipe
    assert pipe.to(*where[0], **where[1]).dtype == torch.bfloat16


def test_what_is_not_named_stays(golden: Path):
    pipe = golden_model("var", golden, dtype="bfloat16").pipe
    assert pipe.to("cpu").dtype == torch.bfloat16
    assert pipe.to("cpu", "auto").dtype == torch.float32  # as on loading
    before = weights(pipe)
    pipe.to("cpu", torch.float32)
    assert all(tensor is before[name] for name, tensor in weights(pipe).items())


DEVICES = "device (cpu, cuda, cuda:1, mps or auto)"
DTYPES = "dtype (float32, bfloat16, float16)"
WRONG = [
    ((), f"to() takes a {DEVICES}, a {DTYPES}, or both; got nothing"),
    (("gpu",), f"to() takes a {DEVICES} or a {DTYPES}, got 'gpu'"),
    ((None,), "got None"),
    ((True,), "got True"),
    ((1.0,), "got 1.0"),
    (("cpu", "cpu"), "takes one device, got 'cpu' and 'cpu'"),
    ((torch.float16, "float32"), "takes one dtype, got torch.float16 and 'float32'"),
    ((torch.int8,), "unknown dtype 'int8'; known: auto, float32, bfloat16, float16"),
    (("float8_e4m3fn",), "unknown dtype 'float8_e4m3fn'"),
    (("cuda:99",), "cannot use the device 'cuda:99'"),
    (("meta",), "has no numbers that could be moved"),
]


@pytest.mark.parametrize(("where", "message"), WRONG, ids=str)
def test_places_that_are_none(where: Any, message: str, golden: Path):
    pipe = golden_model("var", golden).pipe
    before = weights(pipe)
    with pytest.raises(InvalidArgumentError) as caught:
        pipe.to(*where)
    assert message in str(caught.value)
    assert all(tensor is before[name] for name, tensor in weights(pipe).items())


class Failing(nn.Module):
    """A model for which there is no memory."""

    def to(self, *_: Any) -> Any:
        raise MemoryError("none left")


class Follower:
    """A text encoder that says where it was sent."""

    def __init__(self, *, fails: bool = False) -> None:
        self.device, self.fails = torch.device("cpu"), fails

    def to(self, device: torch.device) -> None:
        if self.fails:
            raise MemoryError("none left")
        self.device = device


@pytest.mark.parametrize("late", ["model", "encoder"])
def test_a_move_that_fails_leaves_everything_where_it_was(family: str, late: str, golden: Path):
    model = golden_model(family, golden)
    before, drawn = {n: t.clone() for n, t in weights(model.pipe).items()}, model(1)
    if late == "model":
        model.pipe.last_part = Failing()
    else:
        model.pipe.text_encoder = Follower(fails=True)
    with pytest.raises(MemoryError):
        move(model.pipe, META)
    after = weights(model.pipe)
    assert {t.device.type for t in after.values()} == {"cpu"}
    assert all(torch.equal(t, before[n]) for n, t in after.items())
    assert torch.equal(model(1).images, drawn.images)


def test_all_models_and_the_encoder_go(family: str, golden: Path):
    pipe = golden_model(family, golden).pipe
    pipe.text_encoder = Follower()
    move(pipe, META)
    assert {t.device.type for t in weights(pipe).values()} == {"meta"}
    assert pipe.text_encoder.device.type == "meta"
    assert pipe.device.type == "meta"


def test_recordings_do_not_outlive_a_move(golden: Path):
    pipe = golden_model("var", golden).pipe
    kept = pipe.recordings
    pipe.to(torch.bfloat16)
    assert isinstance(pipe.recordings, Recordings)
    assert pipe.recordings is not kept


def test_encoders_know_their_dtype_elsewhere(tmp_path: Path):
    """T5 runs in float16 on a GPU unless told, as in the official code; and what was told holds anywhere."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    automatic = T5TextEncoder(tmp_path, device="cpu")
    assert (automatic.dtype_on(cuda), automatic.dtype_on(cpu)) == (torch.float16, torch.float32)
    told = T5TextEncoder(tmp_path, device="cpu", dtype="bfloat16")
    assert told.dtype_on(cpu) == told.dtype == torch.bfloat16


def test_encoders_whose_dtype_changes_load_anew(tmp_path: Path):
    encoder = T5TextEncoder(tmp_path, device="cpu")
    encoder._model = part = nn.Linear(2, 2)
    encoder.to(torch.device("cpu"))
    assert encoder._model is part
    encoder.dtype = torch.float16  # as if it had been on a GPU
    encoder.to(torch.device("cpu"))
    assert encoder._model is None
    assert encoder.dtype == torch.float32


def test_copies_move_alone():
    pipe = VARPipeline.from_pretrained("cifar10", device="cpu")
    half = copy.deepcopy(pipe).to(torch.float16)
    assert (half.dtype, pipe.dtype) == (torch.float16, torch.float32)
