"""The Inception network against the published one's outputs, from procedural weights at full size."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextscale.errors import CheckpointError, InvalidArgumentError, ModelNotFoundError
from nextscale.evaluation.inception import Inception, load_inception, resize_tensorflow1
from nextscale.evaluation.provenance import cached_download, file_digest


@pytest.fixture(scope="module")
def case(golden: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = golden / "eval" / "inception"
    return json.loads((folder / "config.json").read_text()), load_file(folder / "io.safetensors")


@pytest.fixture(scope="module")
def state(case: Any, procedural: Callable) -> dict[str, Tensor]:
    weights = case[0]["weights"]
    return procedural(weights["shapes"], weights["seed"], weights["rules"])


@pytest.fixture(scope="module")
def weight_file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the package's conversion script writes it: without counters."""
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def network(weight_file: Path) -> Inception:
    return load_inception(weight_file, sha256=file_digest(weight_file), device="cpu")


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest deviation in standard deviations of what is expected."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype == torch.float32
    return float((found - wanted).abs().max() / wanted.std())


@pytest.mark.slow
@pytest.mark.parametrize("group", "abcd")
def test_outputs(group: str, case: Any, network: Inception):
    config, io = case
    limit = config["tolerance"]["output_times_std"]
    resized = resize_tensorflow1(io[f"{group}.image"].permute(0, 3, 1, 2))
    at = io["resize_index"]
    sample = resized[:, :, at][:, :, :, at].permute(0, 2, 3, 1)
    assert (sample - io[f"{group}.resized_sample"]).abs().max() <= config["tolerance"]["resized_atol"]
    assert torch.allclose(
        resized.mean((2, 3)), torch.tensor(config["resized_mean"][group]), rtol=0, atol=2e-3
    )
    stages: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: stages.update({name: out}))
        for name, module in network.named_children()
        if name != "fc"
    ]
    with torch.inference_mode():
        out = network(resized)
    for hook in hooks:
        hook.remove()
    assert off(out["features"], io[f"{group}.pool"]) <= limit
    assert off(out["logits"], io[f"{group}.logits_unbiased"]) <= limit
    assert off(out["spatial"], io[f"{group}.spatial"]) <= limit
    for name, found in stages.items():
        assert list(found.shape[1:]) == config["stage_shapes"][name]
        if group == "b":
            assert off(found.mean((2, 3)), io[f"b.stage.{name}"]) <= limit, name


def test_resize(tensors: dict[str, Tensor], expected: dict[str, Any]):
    images = tensors["resize_in"].permute(0, 3, 1, 2)
    for name, size in {"resize_up_31x29": (31, 29), "resize_down_11x13": (11, 13)}.items():
        found = resize_tensorflow1(images, size).permute(0, 2, 3, 1)
        assert (found - tensors[name]).abs().max() <= expected["resize"]["atol"]
    assert torch.equal(resize_tensorflow1(images, images.shape[2:]), images.float())


def test_spatial_layout(tensors: dict[str, Tensor], case: Any):
    """The slice and order of sFID's features, as the network's forward takes them."""
    flat = tensors["spatial_map_nchw"][:, :7].permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(flat, tensors["spatial_flat"])
    assert case[1]["a.spatial"].shape[1] == tensors["spatial_flat"].shape[1] == 2023


def test_weight_files_with_counters(state: dict[str, Tensor], network: Inception, case: Any, tmp_path: Path):
    counters = {name: torch.tensor(0) for name in case[0]["weights"]["counters"]}
    assert len(counters) == 94 and len(state) == 472
    path = tmp_path / "weights.pth"
    torch.save({**state, **counters}, path)
    again = load_inception(path, sha256=file_digest(path), device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "weights.pth"
    with pytest.raises(CheckpointError, match="no such weight file"):
        load_inception(path)
    torch.save({"fc.bias": torch.zeros(1008)}, path)
    with pytest.raises(CheckpointError, match=r"expected 6726825d.*--feature-sha256"):
        load_inception(path)
    with pytest.raises(CheckpointError, match=r"missing.*Conv2d_1a_3x3"):
        load_inception(path, sha256=file_digest(path), device="cpu")
    with pytest.raises(InvalidArgumentError, match=r"\(1, 3, 32, 32\)"), torch.device("meta"):
        Inception()(torch.zeros(1, 3, 32, 32))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server with one file, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "weights.pth").write_bytes(b"what a server sends" * 100)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_downloads(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    digest = file_digest(tmp_path / "served" / "weights.pth")
    options = {"what": "weights", "remedy": "Give a path."}
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    told: list[str] = []
    with pytest.raises(
        CheckpointError, match=r"weights.pth sent has the SHA-256 .*expected 0000.*Give a path"
    ):
        cached_download(f"{server}/weights.pth", sha256="0" * 64, **options)
    assert list(folder.iterdir()) == []
    path = cached_download(f"{server}/weights.pth", sha256=digest, report=told.append, **options)
    assert file_digest(path) == digest and list(folder.iterdir()) == [path]
    assert cached_download(f"{server}/weights.pth", sha256=digest, report=told.append, **options) == path
    assert told == [f"downloading weights from {server}/weights.pth"]
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="Delete it to download it again"):
        cached_download(f"{server}/weights.pth", sha256=digest, **options)
    with pytest.raises(
        ModelNotFoundError, match=r"cannot download weights from .*missing: File not found. Give"
    ):
        cached_download(f"{server}/missing", sha256=None, **options)


def test_a_download_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("nextscale.evaluation.inception.URL", "http://127.0.0.1:9/weights.pth")
    with pytest.raises(ModelNotFoundError, match=r"Inception's weights .*refused.*--feature-weights FILE"):
        load_inception()
