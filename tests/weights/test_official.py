"""What reading official checkpoints has in common: counting, requiring, and folders of several files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nextscale.errors import CheckpointError, GridError, ModelNotFoundError
from nextscale.nn.placement import place
from nextscale.weights.official import (
    INDEX,
    SINGLE,
    as_checkpoint_error,
    count,
    download_sharded,
    is_sharded,
    load_checked,
    read_official,
    require,
)


def test_counting():
    names = ["blocks.0.a", "blocks.0.b", "blocks.10.a", "x.blocks.3.a", "blocks.x.a"]
    assert count(names, r"blocks\.(\d+)\.") == 2
    assert count([], r"(.)") == 0


def test_requiring():
    shapes = {"a": torch.zeros(2, 3), "b": torch.zeros(0), "c": torch.zeros(())}
    path = Path("folder/file.pth")
    require(shapes, {"a": 2}, path, "a model")
    with pytest.raises(CheckpointError) as caught:
        require(shapes, {"a": 2, "x": 1, "y": 1}, path, "a model", cause="It looks like a fish")
    assert str(caught.value) == (
        "file.pth is not a model: it lacks x, y; its first names are a, b, c. It looks like a fish"
    )
    for name, axes in (("a", 3), ("b", 1), ("c", 1)):
        with pytest.raises(
            CheckpointError, match=f"not a model: {name} has the shape .* expected {axes} axes"
        ):
            require(shapes, {name: axes}, path, "a model")


def test_sizes_that_make_no_model():
    message = r"f\.pth holds sizes that do not make a model: odd"
    with pytest.raises(CheckpointError, match=message), as_checkpoint_error(Path("f.pth")):
        raise GridError("odd")


def test_nothing_is_read_before_the_shapes_are_right():
    asked: list[bool] = []

    def read(meta: bool) -> dict[str, Tensor]:
        asked.append(meta)
        return {"weight": torch.ones(3, 2, device="meta" if meta else "cpu"), "bias": torch.zeros(3)}

    with pytest.raises(
        CheckpointError, match=r"f does not fit: .*weight \(3, 2\) instead of \(5, 2\).*\. Hm\?"
    ):
        load_checked(lambda: nn.Linear(2, 5), read, place("cpu"), source="f", hint="Hm?")
    assert asked == [True]
    module = load_checked(lambda: nn.Linear(2, 3), read, place("cpu"), source="f", hint="")
    assert torch.equal(module.weight, torch.ones(3, 2))
    assert not module.training


# ------------------------------------------------------------------ folders of several files


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {"a": torch.randn(3, 2), "b": torch.arange(4), "c": torch.randn(1), "d": torch.ones(2)}


@pytest.fixture
def folder(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    """Two files and their index."""
    return write_shards(tensors, tmp_path / "weights")


def write_shards(tensors: dict[str, Tensor], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({n: tensors[n] for n in chosen}, folder / file)
    weight_map = {n: file for file, chosen in parts.items() for n in chosen}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("meta", [False, True])
def test_shards_are_read_as_one(meta: bool, folder: Path, tensors: dict[str, Tensor]):
    assert is_sharded(folder)
    found = read_official(folder, meta=meta)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert found[name].is_meta if meta else torch.equal(found[name], tensor)


def test_a_folder_with_one_file_and_a_plain_file(tensors: dict[str, Tensor], tmp_path: Path):
    assert not is_sharded(tmp_path)
    save_file(tensors, tmp_path / SINGLE)
    assert is_sharded(tmp_path)
    torch.save({"model": tensors}, tmp_path / "other.pth")
    for found in (read_official(tmp_path), read_official(tmp_path / "other.pth", unwrap=("model",))):
        assert all(torch.equal(found[n], t) for n, t in tensors.items())


def test_folders_without_weights(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no such weight file: .*model.safetensors"):
        read_official(tmp_path)


def test_damaged_folders(folder: Path):
    (shard,) = folder.glob("model-00002*")
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"no such weight file: .*00002-of-00002"):
        read_official(folder)
    shard.write_bytes(content[:20])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_official(folder)
    save_file({"b": torch.ones(1)}, shard)
    with pytest.raises(CheckpointError, match=r"00002.safetensors lacks d, which .*index.json says it holds"):
        read_official(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not the index of a sharded checkpoint"),
        ("{}", "is not the index .*weight_map"),
        ('{"weight_map": 3}', "is not the index of a sharded checkpoint"),
        ('{"weight_map": {}}', "lists no tensors"),
        ('{"weight_map": {"a": "../secret"}}', r"points to '../secret', which is no file of its folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "no file of its folder"),
        ('{"weight_map": {"a": "sub\\\\f"}}', "no file of its folder"),
        ('{"weight_map": {"a": ".."}}', "no file of its folder"),
        ('{"weight_map": {"a": ""}}', "no file of its folder"),
        ('{"weight_map": {"a": 3}}', "points to 3, which is no file of its folder"),
    ],
)
def test_indices_that_are_none(content: str, message: str, folder: Path):
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_official(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Offline, with an empty cache; calling it makes the folder of one cached repository."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def repository(name: str) -> Path:
        revision = "0123456789abcdef0123456789abcdef01234567"
        repo = cache / ("models--" + name.replace("/", "--"))
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(revision)
        snapshot = repo / "snapshots" / revision
        snapshot.mkdir(parents=True)
        return snapshot

    return repository


def test_shards_from_the_hub(hub: Callable, tensors: dict[str, Tensor]):
    snapshot: Any = hub("someone/model")
    folder = write_shards(tensors, snapshot / "big")
    found = download_sharded("someone/model", "big")
    assert found == folder
    assert read_official(found).keys() == tensors.keys()
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(ModelNotFoundError, match=r"cannot get big/model-00002-of-00002.safetensors of"):
        download_sharded("someone/model", "big")
    with pytest.raises(ModelNotFoundError, match=rf"cannot get other/{INDEX} of 'someone/model'"):
        download_sharded("someone/model", "other")
