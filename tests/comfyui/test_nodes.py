"""The node pack, loaded as ComfyUI loads one: by its folder, beside ComfyUI's own modules.

Those are not packages that could be installed, so small stand-ins take their place.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from nextscale import ScaledSpatialGuidance
from nextscale.errors import InvalidArgumentError, ModelNotFoundError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACK = Path(__file__).resolve().parents[2] / "nextscale-comfyui"

# The small models of all families are those of the command line's tests.
_spec = importlib.util.spec_from_file_location("cli_models", PACK.parent / "tests" / "cli" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_models)
model, wide_model = _models.model, _models.wide_model


class Interrupted(Exception):  # noqa: N818, as ComfyUI's
    """What ComfyUI raises where its user has cancelled."""


class Bar:
    bars: list[Bar] = []  # noqa: RUF012

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.bars.append(self)

    def update(self, value: int) -> None:
        self.done += value


class Comfy:
    """ComfyUI's modules. cancel_at: the step at which its user cancels."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir, self.cancel_at, self.steps = models_dir, -1, 0

    def modules(self) -> dict[str, ModuleType]:
        found = {n: ModuleType(n) for n in ("folder_paths", "comfy", "comfy.utils", "comfy.model_management")}
        found["folder_paths"].models_dir = str(self.models_dir)
        found["comfy.utils"].ProgressBar = Bar
        found["comfy.model_management"].throw_exception_if_processing_interrupted = self.interrupt
        found["comfy"].utils = found["comfy.utils"]
        found["comfy"].model_management = found["comfy.model_management"]
        return found

    def interrupt(self) -> None:
        self.steps += 1
        if self.steps == self.cancel_at:
            raise Interrupted


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comfy:
    comfy = Comfy(tmp_path / "models")
    for name, module in comfy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    Bar.bars.clear()
    return comfy


@pytest.fixture
def nodes(comfy: Comfy) -> Iterator[dict[str, type]]:
    """The classes by their names, from the folder, which has none that Python could import."""
    name = str(PACK).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    pack = importlib.util.module_from_spec(spec)
    sys.modules[name] = pack
    spec.loader.exec_module(pack)
    assert not set(pack.NODE_CLASS_MAPPINGS) ^ set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    yield pack.NODE_CLASS_MAPPINGS
    for module in [m for m in sys.modules if m.startswith(name)]:
        del sys.modules[module]


def run(node: type, **inputs: Any) -> Any:
    """As ComfyUI calls a node: an object of it, the function it names, only inputs it has, one tuple back."""
    kinds = node.INPUT_TYPES()
    assert set(inputs) <= {*kinds["required"], *kinds.get("optional", {})}
    for name, kind in kinds["required"].items():
        if name not in inputs:  # what the field shows at first
            inputs[name] = kind[0][0] if isinstance(kind[0], list) else kind[1]["default"]
    outputs = getattr(node(), node.FUNCTION)(**inputs)
    assert isinstance(outputs, tuple) and len(outputs) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    return outputs[0]


def test_pictures_are_those_of_the_library(nodes, comfy: Comfy):
    pipe = run(nodes["NextscaleLoad"])
    ssg = run(nodes["NextscaleGuidance"], beta=0.8, schedule="linear")
    assert ssg == ScaledSpatialGuidance(0.8, schedule="linear")
    images = run(
        nodes["NextscaleGenerate"], model=pipe, subjects="horse\n\n ship ", pictures=2, seed=3, ssg=ssg
    )
    assert images.shape == (4, 32, 32, 3) and images.dtype == torch.float32 and images.is_contiguous()
    assert images.min() >= 0 and images.max() <= 1
    expected = pipe(["horse", "horse", "ship", "ship"], seed=3, ssg=ssg, output_type="np").images
    assert np.array_equal(images.numpy(), expected)
    plain = run(nodes["NextscaleGenerate"], model=pipe, subjects="horse\nship", pictures=2, seed=3)
    assert not torch.equal(plain, images)
    assert [(bar.done, bar.total) for bar in Bar.bars] == [(6, 6)] * 2


def test_fields_reach_the_pipeline(nodes, comfy: Comfy, wide_model: Path):
    comfy.models_dir.joinpath("nextscale").mkdir(parents=True)
    comfy.models_dir.joinpath("nextscale", "tiny").symlink_to(wide_model)
    assert nodes["NextscaleLoad"].INPUT_TYPES()["required"]["model"][0] == ["cifar10", "tiny"]
    pipe = run(nodes["NextscaleLoad"], model="tiny")
    fields = {"guidance_scale": 2.0, "temperature": 0.9, "negative_prompt": " rain ", "aspect_ratio": "2:1"}
    images = run(nodes["NextscaleGenerate"], model=pipe, subjects="a fox", seed=1, **fields)
    fields["negative_prompt"] = "rain"
    assert np.array_equal(images.numpy(), pipe("a fox", seed=1, output_type="np", **fields).images)
    assert images.shape == (1, 44, 88, 3)
    assert run(nodes["NextscaleLoad"], other=f" {wide_model} ").name == str(wide_model)


def test_cancelling_in_comfyui_stops_the_loop(nodes, comfy: Comfy):
    pipe = run(nodes["NextscaleLoad"])
    comfy.cancel_at = 3
    with pytest.raises(Interrupted):
        run(nodes["NextscaleGenerate"], model=pipe, subjects="cat")
    assert comfy.steps == 3 and Bar.bars[-1].done == 2


def test_strengths_one_by_one(nodes):
    ssg = run(nodes["NextscaleGuidance"], per_step="0, 0.5,1", schedule="cosine")
    assert ssg == ScaledSpatialGuidance([0, 0.5, 1])
    with pytest.raises(InvalidArgumentError, match="per_step takes numbers"):
        run(nodes["NextscaleGuidance"], per_step="a,b")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"subjects": " \n"}, "1 to 64 pictures at a time, not 0"),
        ({"subjects": "cat\ndog", "pictures": 40}, "not 80"),
        ({"subjects": "unicorn"}, "unknown class 'unicorn'"),
        ({"negative_prompt": "rain"}, "this model has no negative_prompt"),
        ({"pixels": "1M"}, "this model has no pixels"),
        ({"top_k": 10**6}, "the vocabulary has"),
    ],
)
def test_what_cannot_be_made_is_said_by_name(nodes, inputs, message: str):
    pipe = run(nodes["NextscaleLoad"])
    with pytest.raises(InvalidArgumentError, match=message):
        run(nodes["NextscaleGenerate"], model=pipe, **inputs)


def test_only_models_that_are_there_are_loaded(nodes):
    for name in ("../secrets", "tiny"):
        with pytest.raises(InvalidArgumentError, match="unknown model"):
            run(nodes["NextscaleLoad"], model=name)
    with pytest.raises(ModelNotFoundError):
        run(nodes["NextscaleLoad"], other="/nowhere")


def test_choices_are_those_of_the_library(nodes):
    kinds = nodes["NextscaleGuidance"].INPUT_TYPES()["required"]
    for name in ("schedule", "prior", "norm", "remember"):
        for choice in kinds[name][0]:
            ScaledSpatialGuidance(0.5, **{name: choice})
    from nextscale.families.infinity.schedules import schedule_for

    sizes = nodes["NextscaleGenerate"].INPUT_TYPES()["optional"]
    for ratio in sizes["aspect_ratio"][0][1:]:
        for pixels in sizes["pixels"][0][1:]:
            schedule_for(ratio, pixels)


def test_the_registry_finds_what_it_asks_for():
    described = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"name", "version", "description", "license", "dependencies"} <= set(described["project"])
    assert {"PublisherId", "DisplayName", "Icon"} <= set(described["tool"]["comfy"])
    assert described["project"]["dependencies"] == (PACK / "requirements.txt").read_text().split()
