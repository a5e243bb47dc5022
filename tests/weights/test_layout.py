"""The folders of models: their default settings."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from nextscale.errors import CheckpointError, ModelNotFoundError
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.weights.layout import is_embedded, locate, write_default_ssg

TUNED = ScaledSpatialGuidance(0.4, schedule="linear").to_dict()


@pytest.mark.parametrize("defaults", [{"defaults": {"top_k": 9, "ssg": {"beta": 2}}}, {"defaults": None}, {}])
def test_a_default_is_written_and_all_else_stays(defaults: dict, tmp_path: Path):
    config = {"family": "var", "class_names": ["frog"], **defaults}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_default_ssg(tmp_path, TUNED)
    stored = json.loads((tmp_path / "config.json").read_text())
    others = {k: v for k, v in (config.get("defaults") or {}).items() if k != "ssg"}
    assert {k: v for k, v in stored["defaults"].items() if k != "ssg"} == others
    assert {k: v for k, v in stored.items() if k != "defaults"} == {"family": "var", "class_names": ["frog"]}
    assert ScaledSpatialGuidance.from_dict(stored["defaults"]["ssg"]).to_dict() == TUNED
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_folders_that_are_none(tmp_path: Path):
    with pytest.raises(ModelNotFoundError):
        write_default_ssg(tmp_path, TUNED)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError):
        write_default_ssg(tmp_path, TUNED)
    assert (tmp_path / "config.json").read_text() == "{"


def test_what_is_in_the_package_is_told_apart(tmp_path: Path):
    assert is_embedded(locate("cifar10"))
    assert not is_embedded(tmp_path) and not is_embedded(Path("cifar10"))
    assert not is_embedded(Path(str(resources.files("nextscale"))))
