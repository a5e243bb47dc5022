"""A share of the fuzz job in every test run, and hypothesis on configurations.

``python -m tests.fuzz`` runs as many cases as one likes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.job import Counts, run
from tests.fuzz.targets import make_sharded, var

from nextscale.errors import NextscaleError
from nextscale.families import load_pretrained
from nextscale.sampling.plan import read_manifest
from nextscale.weights.official import read_official

CASES = 100


@pytest.mark.slow
def test_damaged_and_hostile_files_end_in_one_clear_error(tmp_path: Path):
    """Bounded in time and memory, nothing executed, nothing written: see ``job.py``, which counts as a fault
    whatever is not that."""
    counts = Counts()
    for target, outcome in run(CASES, folder=tmp_path):
        counts.add(target, outcome)
    print(counts)
    assert not counts.faults, "\n\n".join(f"{f.case}\n{f.what}" for f in counts.faults)
    assert counts.verdicts["refused"] >= 75


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    var().save_pretrained(folder)
    return folder


PARTS = ("config.json", "transformer/config.json", "tokenizer/config.json")


@settings(max_examples=100)
@given(part=st.sampled_from(PARTS), data=st.data(), value=JSON)
def test_any_value_in_a_configuration(model: Path, part: str, data: st.DataObject, value: Any):
    """A model loads, or says in a nextscale error why not."""
    path = model / part
    original = path.read_text()
    content = json.loads(original)
    name = data.draw(st.sampled_from([*content, "new"]))
    path.write_text(json.dumps({**content, name: value}))
    message = ""
    try:
        load_pretrained(model, device="cpu")
    except NextscaleError as error:
        message = str(error)
    finally:
        path.write_text(original)
    assert len(message) < 2000


@settings(max_examples=100)
@given(content=JSON)
def test_any_json_as_a_manifest(tmp_path_factory: pytest.TempPathFactory, content: Any):
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(NextscaleError, match="cannot be used"):
        read_manifest(folder)


@settings(max_examples=100)
@given(file=st.text() | JSON)
def test_any_name_of_a_shard(tmp_path_factory: pytest.TempPathFactory, file: Any):
    """No name leads out of the folder, in which there is only one other file."""
    folder = tmp_path_factory.getbasetemp() / "sharded"
    if not folder.exists():
        folder.mkdir()
        make_sharded(folder)
        shutil.copy(folder / "model-1.safetensors", folder.parent / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**names, next(iter(names)): file}}))
    with pytest.raises(NextscaleError):
        read_official(folder)
