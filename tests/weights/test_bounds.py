"""Configurations that would take a machine days, and JSON that no program wrote for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextscale import VARPipeline
from nextscale.errors import CheckpointError
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.weights.files import read_json, some
from nextscale.weights.layout import read_config


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shared = {"vocab_size": 16, "z_channels": 4, "patch_nums": (1, 2)}
    transformer = VARTransformer(
        VARTransformerConfig(**shared, num_classes=3, depth=1, embed_dim=8, num_heads=2)
    )
    sizes = {"ch": 4, "ch_mult": (1, 1), "num_res_blocks": 1, "norm_groups": 4}
    VARPipeline(transformer, VARTokenizer(VARTokenizerConfig(**shared, **sizes))).save_pretrained(
        tmp_path / "m"
    )
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("transformer", "depth", 10**9),
        ("transformer", "depth", 1e308),
        ("transformer", "patch_nums", [1] * 10_000),
        ("tokenizer", "num_res_blocks", 2**62),
        ("tokenizer", "share_quant_resi", 10**9),
        ("tokenizer", "ch_mult", [1] * 10_000),
    ],
)
def test_more_parts_than_tensors_are_not_built(model: Path, part: str, name: str, value: Any):
    path = model / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(
        CheckpointError, match=rf"{name} is for .* parts, and model.safetensors has \d+ tensors"
    ):
        VARPipeline.from_pretrained(model, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": "abc"}, "class_names must be a list of names, got 'abc'"),
        ({"class_names": [1, 2, 3]}, "class_names must be a list of names"),
        ({"defaults": [1]}, "defaults must be settings by name"),
        ({"defaults": {"top_k": "900"}}, "with whole numbers for top_k"),
        ({"defaults": {"ssg": 0.6}}, "defaults must be settings by name"),
    ],
)
def test_what_pipelines_take_as_it_is_has_its_type(model: Path, change: dict[str, Any], message: str):
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        read_config(model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"9" * 10_000, "is not JSON"),
        (b"{", "is not JSON"),
    ],
)
def test_json_that_no_program_wrote_for_people(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(path)
    assert len(str(caught.value)) < 400
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_a_file_larger_than_any_is_not_read(tmp_path: Path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no space
    with pytest.raises(CheckpointError, match="larger than 64 MiB"):
        read_json(tmp_path / "a.json")


def test_names_in_messages_are_short():
    assert some(["a", "b"]) == "a, b"
    assert some(map(str, range(6))) == "0, 1, 2, 3, … (2 more)"
    assert len(some(["x" * 10_000] * 3)) < 400
