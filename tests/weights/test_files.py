"""Reading and checking weight files, whatever model they belong to."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nextscale.errors import CheckpointError
from nextscale.weights.files import build, check_shapes, read_weights
from nextscale.weights.hub import is_repo_id


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {
        "weight": torch.randn(3, 2),
        "bias": torch.randn(3).to(torch.bfloat16),
        "count": torch.arange(4),
        "flag": torch.tensor([True, False]),
    }


def save(tensors: dict[str, Tensor], path: Path, form: str) -> Path:
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ""])
def test_content_decides_not_the_suffix(form: str, suffix: str, tensors: dict[str, Tensor], tmp_path: Path):
    path = save(tensors, tmp_path / f"model{suffix}", form)
    found = read_weights(str(path))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_shapes_and_types_without_the_numbers(form: str, tensors: dict[str, Tensor], tmp_path: Path):
    found = read_weights(save(tensors, tmp_path / "model", form), meta=True)
    assert {v.device.type for v in found.values()} == {"meta"}
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in tensors.items()
    }


FLOAT8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.parametrize("form", ["safetensors", "zip"])
@pytest.mark.parametrize("kind", [name for name in FLOAT8 if hasattr(torch, name)])
def test_eight_bits_of_every_kind(kind: str, form: str, tmp_path: Path):
    dtype = getattr(torch, kind)
    path = save({"weight": torch.tensor([[1.0, 2.0, 0.5]]).to(dtype)}, tmp_path / "model", form)
    shapes, found = read_weights(path, meta=True)["weight"], read_weights(path)["weight"]
    assert (shapes.dtype, shapes.shape, shapes.device.type) == (dtype, (1, 3), "meta")
    assert found.dtype == dtype
    assert found.float().tolist() == [[1.0, 2.0, 0.5]]


def test_unwrapping_stops_where_a_key_is_missing(tmp_path: Path):
    path = tmp_path / "model.pth"
    inner = {"weight": torch.ones(1)}
    for content in (inner, {"model": inner}, {"model": {"ema": inner}}):
        torch.save(content, path)
        assert list(read_weights(path, unwrap=("model", "ema"))) == ["weight"]
    torch.save({"other": inner}, path)
    with pytest.raises(CheckpointError, match="no tensors at its top level; its keys are other"):
        read_weights(path, unwrap=("model",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_always_a_checkpoint_error(tensors: dict[str, Tensor], tmp_path: Path):
    """Whatever bytes are wrong: other exceptions would be tracebacks for a user."""
    chance = random.Random(0)
    path = tmp_path / "model"
    for form in ("safetensors", "zip", "legacy"):
        whole = save(tensors, tmp_path / form, form).read_bytes()
        for attempt in range(40):
            damaged = bytearray(whole[: chance.randrange(len(whole))] if attempt % 2 else whole)
            for _ in range(0 if attempt % 2 else 12):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            path.write_bytes(damaged)
            for meta in (True, False):  # by chance a file may still be readable
                with suppress(CheckpointError):
                    read_weights(path, meta=meta)


def test_everything_wrong_is_listed_with_the_hint():
    found = {
        "weight": torch.zeros(2, 3),
        "bias": torch.zeros(3, dtype=torch.int64),
        **{f"extra{i}": torch.zeros(1) for i in range(6)},
    }
    module = nn.Sequential()
    module.register_parameter("weight", nn.Parameter(torch.zeros(3, 2)))
    module.register_parameter("bias", nn.Parameter(torch.zeros(3)))
    module.register_parameter("gain", nn.Parameter(torch.zeros(1)))
    with pytest.raises(CheckpointError) as caught:
        check_shapes(module, found, source="a.pth", hint="Is it whole?")
    assert str(caught.value) == (
        "a.pth does not fit: 1 missing: gain; 6 unexpected: extra0, extra1, extra2, extra3, … (2 more); "
        "1 of another shape: weight (2, 3) instead of (3, 2); 1 of another type: bias int64. Is it whole?"
    )


def test_building_a_module(tensors: dict[str, Tensor]):
    given = {"weight": tensors["weight"], "bias": tensors["bias"]}
    made: list[nn.Linear] = []

    def make() -> nn.Linear:
        made.append(nn.Linear(2, 3))
        return made[-1]

    cpu = torch.device("cpu")
    module = build(make, given, source="x", dtype=torch.float16, device=cpu)
    assert module is made[-1]
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    assert torch.equal(module.weight, given["weight"].half())
    with pytest.raises(CheckpointError, match="1 missing: bias"):
        build(make, {"weight": given["weight"]}, source="x", dtype=torch.float32, device=cpu)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True),
        ("black-forest-labs/FLUX.1-dev", True),
        ("a/b-v1.0", True),
        ("cifar10", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("./b", False),
        ("../b", False),
        ("a/var_d16.pth", False),
        ("a/model.SafeTensors", False),
        ("a b/c", False),
        ("", False),
    ],
)
def test_names_on_the_hub(name: str, expected: bool):
    assert is_repo_id(name) is expected
