"""Numbers that are none stop a call of any family, with step, grid, picture and what is likely wrong."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextscale import HARTPipeline, InfinityPipeline, VARPipeline
from nextscale.errors import NotFiniteError
from nextscale.families.text import TextFeatures

# The small models of all families are those of the command line's tests.
_spec = importlib.util.spec_from_file_location(
    "cli_models", Path(__file__).parents[1] / "cli" / "conftest.py"
)
assert _spec is not None and _spec.loader is not None
_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_models)
model, text_model, hart_model = _models.model, _models.text_model, _models.hart_model
language_model = _models.language_model

FAMILIES = ["var", "infinity", "hart"]
UNGUIDED = {"var": 0.0, "infinity": 1.0, "hart": 0.0}
GUIDED = {"var": 2.0, "infinity": 3.0, "hart": 2.0}
BAD = [math.nan, math.inf, -math.inf]


@pytest.fixture(scope="module")
def pipes(model: Path, text_model: Path, hart_model: Path) -> dict[str, Any]:
    return {
        "var": VARPipeline.from_pretrained(model, device="cpu"),
        "infinity": InfinityPipeline.from_pretrained(text_model, device="cpu"),
        "hart": HARTPipeline.from_pretrained(hart_model, device="cpu"),
    }


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pipe(family: str, pipes: dict[str, Any]) -> Any:
    """A pipeline of its own for every test, which may damage it."""
    return copy.deepcopy(pipes[family])


def hart_text(count: int = 3) -> TextFeatures:
    """Random features of 6 tokens, padded in front."""
    features = torch.randn(count, 6, 16, generator=torch.Generator().manual_seed(0))
    return TextFeatures(features, torch.arange(6) >= torch.arange(count)[:, None] + 1)


def subjects(family: str, count: int) -> Any:
    if family == "hart":
        return hart_text(count)
    return list(range(count)) if family == "var" else ["a red fox", "the blue bird", "a sky"][:count]


def draw(pipe: Any, family: str, count: int = 3, **options: Any) -> Any:
    options = {"guidance_scale": UNGUIDED[family], "seed": 7, "batch_size": 2, **options}
    return pipe(subjects(family, count), **options)


@contextmanager
def spoiled(module: nn.Module, call: int, row: int, value: float) -> Iterator[None]:
    """One number of one row of a module's output, the so many'th time it is called."""
    calls: list[None] = []

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        calls.append(None)
        if len(calls) - 1 != call:
            return None
        output = output.clone()
        output[row, -1, 1] = value
        return output

    handle = module.register_forward_hook(hook)
    yield
    handle.remove()


@pytest.mark.parametrize("sampler", ["paired", "greedy", "multinomial"])
@pytest.mark.parametrize("value", BAD)
def test_logits(pipe: Any, family: str, sampler: str, value: float):
    steps, (h, w) = pipe.schedule.num_steps, pipe.schedule.grids[2]
    # The second batch holds the third picture alone.
    with (
        spoiled(pipe.transformer.head, steps + 2, 0, value),
        pytest.raises(
            NotFiniteError, match=rf"NaN or infinite at step 3 \({h} x {w}\) of picture 2;"
        ) as found,
    ):
        draw(pipe, family, sampler=sampler)
    assert "weights may be damaged" in str(found.value) and "float32" not in str(found.value)


@pytest.mark.parametrize("output_type", ["pil", "pt", "np"])
def test_whoever_looks_on_changes_nothing(pipe: Any, family: str, output_type: str):
    seen: list[int] = []
    with (
        spoiled(pipe.transformer.head, 1, 1, math.nan),
        pytest.raises(NotFiniteError, match=r"step 2 \(2 x 2\) of picture 1;"),
    ):
        draw(pipe, family, output_type=output_type, on_step=lambda info: seen.append(info.index))
    assert seen == list(range(pipe.schedule.num_steps))  # nobody looks before the end of a batch


@pytest.mark.parametrize("value", BAD)
def test_the_unconditional_branch_alone(pipe: Any, family: str, value: float):
    """Its rows come after those of the condition."""
    with (
        spoiled(pipe.transformer.head, 2, 3, value),
        pytest.raises(NotFiniteError, match=r"at step 3 .* of picture 1;"),
    ):
        draw(pipe, family, guidance_scale=GUIDED[family], ssg=0.5)


def test_infinite_weights_of_a_transformer(pipe: Any, family: str):
    with torch.no_grad():
        pipe.transformer.head.weight[0, 0] = math.inf
    with pytest.raises(NotFiniteError, match=r"at step 1 \(1 x 1\) of picture 0;"):
        draw(pipe, family)


def test_mixtures_of_codes(pipe: Any, family: str):
    if family == "infinity":
        return  # which has none
    with (
        spoiled(pipe.transformer.head, 1, 0, math.nan),
        pytest.raises(NotFiniteError, match=r"at step 2 .* of picture 0;"),
    ):
        draw(pipe, family, more_smooth=True)


def test_the_second_part_of_a_grid(pipes: dict[str, Any]):
    pipe = pipes["hart"]
    with (
        spoiled(pipe.transformer.head, 4, 0, math.nan),
        pytest.raises(NotFiniteError, match=r"at step 4 \(4 x 4\) of picture 0;"),
    ):
        draw(pipe, "hart", mask_iterations=3)


def last_convolution(pipe: Any) -> nn.Conv2d:
    return [m for m in pipe.tokenizer.decoder.modules() if isinstance(m, nn.Conv2d)][-1]


@pytest.mark.parametrize("value", BAD)
def test_pixels(pipe: Any, family: str, value: float):
    """An infinite one would be clamped to a colour."""
    bias = last_convolution(pipe).bias
    assert bias is not None
    with torch.no_grad():
        bias[1] = value
    for output_type in ("pil", "pt", "np"):
        with pytest.raises(NotFiniteError, match="pixels are NaN or infinite, though no logits are, in pict"):
            draw(pipe, family, output_type=output_type)
    h, w = pipe.image_size
    with pytest.raises(NotFiniteError, match="pixels are NaN or infinite in picture 0; the tokenizer's"):
        pipe.reconstruct(torch.zeros(1, 3, h, w))


def test_pixels_of_a_later_picture(pipe: Any, family: str):
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if calls.pop():
            output = output.clone()
            output[-1, 0, 0, 0] = math.nan
        return output

    calls = [True, False, False] if family != "var" else [True, False]  # pictures or batches, from the end
    pipe.tokenizer.decoder.register_forward_hook(hook)
    with pytest.raises(NotFiniteError, match="in picture 2;"):
        draw(pipe, family)


def test_the_residual_head(pipes: dict[str, Any]):
    """Its predicted noise is clamped on the way."""
    for value in BAD:
        pipe = copy.deepcopy(pipes["hart"])
        with torch.no_grad():
            last = [m for m in pipe.transformer.diffloss.net.modules() if isinstance(m, nn.Linear)][-1]
            last.bias[0] = value
        with pytest.raises(NotFiniteError, match="pixels are NaN or infinite, though no logits are"):
            draw(pipe, "hart")


def test_a_narrow_type_is_named(pipe: Any, family: str):
    for part in (pipe.transformer, pipe.tokenizer):
        part.to(torch.bfloat16)
    with torch.no_grad():
        pipe.transformer.head.weight[:] = math.nan
    with pytest.raises(NotFiniteError, match="the dtype bfloat16 too small for them: try float32"):
        draw(pipe, family)


def test_likelihoods(pipes: dict[str, Any]):
    pipe = copy.deepcopy(pipes["var"])
    images = torch.zeros(2, 3, 32, 32)
    assert pipe.log_likelihood(images, [0, 1]).isfinite().all()
    with torch.no_grad():
        pipe.transformer.class_emb.weight[1] = math.nan
    with pytest.raises(NotFiniteError, match="likelihoods are NaN or infinite for picture 1;"):
        pipe.log_likelihood(images, [0, 1])


# ------------------------------------------------------------------ text


@pytest.fixture
def features(pipes: dict[str, Any]) -> Callable[[str], TextFeatures]:
    """Of three prompts of different lengths, with padding."""
    words = ["a red fox in the sky", "bird", "the fox"]
    return lambda family: hart_text() if family == "hart" else pipes[family].encode_prompts(words)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("family", ["infinity", "hart"])
def test_text_features(
    pipes: dict[str, Any], family: str, value: float, features: Callable[[str], TextFeatures]
):
    text = features(family)
    token = int(text.mask[1].nonzero()[-1])
    text.features[1, token, 2] = value
    with pytest.raises(NotFiniteError, match=f"text features are NaN .* at token {token} for picture 1;"):
        pipes[family](text, seed=0)


def test_negative_text_features(pipes: dict[str, Any], features: Callable[[str], TextFeatures]):
    text, unwanted = features("infinity"), features("infinity")
    unwanted.features[2, 0, 0] = math.nan
    with pytest.raises(NotFiniteError, match=r"negative text features are NaN .* at token 0 for picture 2;"):
        pipes["infinity"](text, negative_prompt=unwanted, seed=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_padding_that_is_masked_may_be_anything(
    pipes: dict[str, Any], guidance: float, features: Callable[[str], TextFeatures]
):
    text = features("infinity")
    assert not text.mask.all()
    wild = replace(text, features=text.features.masked_fill(~text.mask[..., None], math.nan))
    options: dict[str, Any] = {"guidance_scale": guidance, "seed": 3, "batch_size": 3, "output_type": "pt"}
    wanted, found = (pipes["infinity"](t, **options) for t in (text, wild))
    torch.testing.assert_close(found.images, wanted.images, rtol=0, atol=0)


def test_padding_that_a_model_reads_is_looked_at(
    pipes: dict[str, Any], features: Callable[[str], TextFeatures]
):
    text = features("hart")
    padding = int((~text.mask[1]).nonzero()[0])
    text.features[1, padding, 0] = math.inf
    with pytest.raises(NotFiniteError, match=f"at token {padding} for picture 1;"):
        pipes["hart"](text, seed=0)


def test_an_encoder_that_overflows(pipes: dict[str, Any]):
    pipe = copy.deepcopy(pipes["infinity"])
    words = pipe.text_encoder

    class Overflowing:
        width = words.width

        def __call__(self, prompts: Any) -> TextFeatures:
            text = words(prompts)
            return replace(text, features=text.features * math.inf)

    pipe.text_encoder = Overflowing()
    with pytest.raises(NotFiniteError, match="text encoder's weights may be damaged, or its dtype too small"):
        pipe("a fox", seed=0)
