"""Other defaults of PyTorch's, which a program may have set for itself, change nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import hart_model, language_model, model, text_model  # noqa: F401 - fixtures

from nextscale.families import load_pretrained
from nextscale.guidance import scaled_spatial_guidance
from nextscale.usual import with_usual_defaults


@pytest.fixture(params=["meta", "float64", "float16", "within"])
def changed(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "meta":
        torch.set_default_device("meta")
    elif request.param == "within":
        with torch.device("meta"):
            yield request.param
        return
    else:
        torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def outcome(folder: Path, subject: object, **options: object) -> dict[str, torch.Tensor]:
    pipe = load_pretrained(folder, device="cpu")
    out = pipe([subject, subject], seed=[1, 2**64 - 1], ssg=0.6, output_type="pt", **options)
    found = {"images": out.images, "tokens": torch.cat([t.flatten() for t in out.tokens])}
    found["again"] = pipe.reconstruct(out.images * 2 - 1, output_type="pt")
    if hasattr(pipe, "log_likelihood"):
        found["likelihood"] = pipe.log_likelihood(out.images * 2 - 1, [subject, subject])
    return found


@pytest.fixture(scope="module")
def expected(request: pytest.FixtureRequest) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: outcome(request.getfixturevalue(name), *CALLS[name][:1], **CALLS[name][1]) for name in CALLS
    }


CALLS: dict[str, tuple[object, dict[str, object]]] = {
    "model": (3, {"more_smooth": True}),
    "text_model": ("a fox", {"negative_prompt": "a bird"}),
    "hart_model": ("a red fox", {}),
}


@pytest.mark.filterwarnings("ignore:HART's weights were trained with a system prompt")
@pytest.mark.parametrize("name", CALLS)
def test_pictures_are_those_of_the_usual_defaults(name: str, expected, request, changed: str):
    subject, options = CALLS[name]
    found = outcome(request.getfixturevalue(name), subject, **options)
    with torch.device("cpu"):
        for what, value in expected[name].items():
            assert found[what].dtype == value.dtype and torch.equal(found[what], value), what
    if changed in ("meta", "within"):
        assert torch.empty(1).device.type == "meta"  # afterwards the defaults are the caller's again
    else:
        assert str(torch.get_default_dtype()) == f"torch.{changed}"


@pytest.mark.parametrize("prior", ["dse", "dct", "bilinear"])
def test_the_arithmetic_of_guidance_alone(prior: str, changed: str):
    def guided() -> torch.Tensor:
        with torch.device("cpu"):
            generator = torch.Generator("cpu").manual_seed(0)
            now = torch.randn(2, 16, 8, generator=generator, device="cpu", dtype=torch.float32)
            before = torch.randn(2, 9, 8, generator=generator, device="cpu", dtype=torch.float32)
        return scaled_spatial_guidance(now, before, coarse=(3, 3), fine=(4, 4), beta=0.6, kind=prior)

    found, usual = guided(), with_usual_defaults(guided)()
    assert found.dtype == usual.dtype and bool((found == usual).all())


def test_a_function_keeps_what_is_known_of_it():
    @with_usual_defaults
    def function(a: int, *, b: str = "x") -> str:
        """Say it."""
        return b * a

    assert list(inspect.signature(function).parameters) == ["a", "b"] and function.__doc__ == "Say it."
    assert function(2) == "xx"
