"""Models of any family: which one files belong to, and loading them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextscale import families
from nextscale.errors import CheckpointError
from nextscale.families import is_layout, is_official, official_family, recognise
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.weights.official import INDEX

PLACES = {"hart": "hart/tiny_a", "infinity": "infinity/square_d16", "var": "var/a_basic"}


@pytest.fixture(scope="module")
def transformers(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file with the names of a transformer of every family."""
    folder = tmp_path_factory.mktemp("official")
    sizes = {"vocab_size": 8, "z_channels": 4, "depth": 1, "embed_dim": 8, "num_heads": 1}
    var = VARTransformer(VARTransformerConfig(**sizes, num_classes=2, patch_nums=(1, 2)))
    torch.save({"trainer": {"var_wo_ddp": var.state_dict()}}, folder / "ckpt.pth")
    ours = {f: golden / PLACES[f] / "transformer.safetensors" for f in ("hart", "infinity")}
    return {"var": folder / "ckpt.pth", **ours}


def test_every_family_is_complete():
    assert families.families() == ("hart", "infinity", "var")
    repos = families.official_repos()
    assert repos["var"] == "FoundationVision/var" and len(set(repos.values())) == 3
    for family in families.families():
        pipeline = families.pipeline_class(family)
        assert {"tokenizer", "device", "dtype"} <= families.official_options(family)
        assert {"device", "dtype"} <= families.pretrained_options(family)
        assert families.family_of(pipeline.__new__(pipeline)) == family
    with pytest.raises(CheckpointError, match="unknown model family 'none'; known: hart, infinity, var"):
        families.pipeline_class("none")


@pytest.mark.parametrize("family", ["hart", "infinity", "var"])
def test_files_are_recognised_by_their_names(family: str, transformers: dict[str, Path]):
    assert recognise(transformers[family]) == (family,)
    assert official_family(transformers[family]) == family
    assert is_official(transformers[family])


def test_other_files(golden: Path, tmp_path: Path):
    tokenizer = golden / PLACES["infinity"] / "tokenizer.safetensors"
    assert recognise(tokenizer) == ()
    with pytest.raises(CheckpointError, match="holds no transformer of a known family"):
        official_family(tokenizer)
    (tmp_path / "notes.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"notes\.pth is not a PyTorch or safetensors weight file"):
        recognise(tmp_path / "notes.pth")
    assert recognise(tmp_path) == () and not is_official(tmp_path)


def test_folders_are_searched_and_options_decide(transformers: dict[str, Path], tmp_path: Path):
    (tmp_path / "notes.pth").write_text("no weights")
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "ema_model.bin").write_bytes(transformers["hart"].read_bytes())
    assert official_family(tmp_path) == "hart" and is_official(tmp_path)
    (tmp_path / "var_d16.pth").write_bytes(transformers["var"].read_bytes())
    assert recognise(tmp_path) == ("hart", "var")
    assert official_family(tmp_path, ["depth"]) == "var"
    with pytest.raises(CheckpointError, match=r"holds models of several families \(hart, var\)"):
        official_family(tmp_path)
    # A folder in the library's layout is never taken for one of official files.
    (tmp_path / "config.json").write_text(json.dumps({"family": "var"}))
    assert is_layout(tmp_path) and not is_official(tmp_path)


def test_shards_count_together(transformers: dict[str, Path], tmp_path: Path):
    tensors = load_file(transformers["infinity"])
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    weights = tmp_path / "infinity_8b_weights"
    weights.mkdir()
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, weights / file)
    index = {n: file for file, part in parts.items() for n in part}
    (weights / INDEX).write_text(json.dumps({"weight_map": index}))
    assert recognise(weights) == recognise(tmp_path) == ("infinity",)


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert official_family("foundationvision/infinity") == "infinity"
    assert is_official("mit-han-lab/hart-0.7b-1024px") and not is_official("someone/model")
    assert official_family("someone/copy", ["depth", "tokenizer"]) == "var"
    assert official_family("someone/copy", ["system_prompt"]) == "hart"
    with pytest.raises(CheckpointError, match="none of the hub ids of official files: mit-han-lab/hart"):
        official_family("someone/copy", ["tokenizer"])
