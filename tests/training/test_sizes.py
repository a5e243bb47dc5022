"""Sizes, scales and strides, from the arithmetic to models of pictures that are not square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextscale import InfinityPipeline, VARPipeline
from nextscale.errors import GridError, InvalidArgumentError
from nextscale.scales import PRESETS, ScaleSchedule
from nextscale.training import recipes
from nextscale.training.data import open_images
from nextscale.training.sizes import as_text, cells_of, fit_scales, height_width, scales_for


def quiet(record: dict, step: int, total: int) -> None:
    pass


def test_sizes_are_read() -> None:
    assert height_width(64) == (64, 64) and height_width((64, 48)) == (64, 48)
    assert height_width(np.int64(64)) == (64, 64)
    assert as_text(64) == "64x64" and as_text((64, 48)) == "64x48"
    for wrong in (0, -4, True, 2.5, (64,), (64, 0), (64, 48, 3), "64"):
        with pytest.raises(InvalidArgumentError, match="a size is a positive number of pixels"):
            height_width(wrong)  # type: ignore[arg-type]


def test_published_lists_are_found_by_size() -> None:
    for sides in PRESETS.values():
        assert scales_for((sides[-1], sides[-1])) == sides
    assert fit_scales(None, None, 4) == (32, PRESETS["cifar10"])
    assert fit_scales(256, None, 16) == (256, PRESETS["var-256"])


@given(h=st.integers(1, 90), w=st.integers(1, 90))
def test_any_latent_has_a_list_of_scales(h: int, w: int) -> None:
    schedule = ScaleSchedule.from_sides(scales_for((h, w)))
    assert schedule.final == (h, w)
    assert len(set(schedule.grids)) == schedule.num_steps <= 14
    assert schedule[0] == (1, 1)
    for a, b in schedule:  # of the latent's proportions, to the nearest cell
        assert abs(a * w - b * h) <= max(h, w)


def test_size_and_scales_must_fit_each_other_and_the_stride() -> None:
    assert fit_scales(None, [1, 2, (4, 3)], 8) == ((32, 24), (1, 2, (4, 3)))
    assert fit_scales((32, 24), [1, 2, (4, 3)], 8) == ((32, 24), (1, 2, (4, 3)))
    assert cells_of((32, 24), 8) == (4, 3)
    with pytest.raises(InvalidArgumentError, match=r"stride of 8 pixels, got 30x24; the nearest is 32x24"):
        fit_scales((30, 24), None, 8)
    with pytest.raises(
        InvalidArgumentError,
        match=r"end at 4x3 cells, which are 32x24 pixels .* size is 24x32; end them at 3x4, or give size 3",
    ):
        fit_scales((24, 32), [1, 2, (4, 3)], 8)
    with pytest.raises(GridError, match="must not shrink"):
        fit_scales(None, [1, 4, 2], 8)
    with pytest.raises(GridError, match="at least one grid"):
        fit_scales(None, [], 8)


def test_crops_have_the_shape_asked_for(picture_folder: Path) -> None:
    pictures = open_images(picture_folder, size=(20, 12))
    batch = pictures.batch([0, 5, 40])
    assert batch.shape == (3, 3, 20, 12)
    whole = open_images(picture_folder, size=32).batch([0, 5, 40]).float()
    # The middle of the picture, at 22.5 / 32 of its size.
    middle = torch.nn.functional.interpolate(whole, size=(22, 22), mode="area")[..., 1:21, 5:17]
    assert float((batch.float() - middle).abs().mean()) < 6
    assert open_images(picture_folder, size=(32, 32)).cache is not None


@pytest.mark.parametrize(
    ("recipe", "size", "scales", "pixels"),
    [
        ("tiny", (32, 24), None, (32, 24)),
        ("tiny", None, [1, (2, 1), (5, 3)], (20, 12)),
        ("tiny", 20, [2, 3, 5], (20, 20)),
        ("tiny-bits", (16, 24), None, (16, 24)),
        ("tiny-bits", None, [1, (2, 3), (3, 6)], (12, 24)),
    ],
)
def test_models_of_any_size(
    picture_folder: Path, tmp_path: Path, recipe: str, size: Any, scales: Any, pixels: tuple[int, int]
) -> None:
    options: dict[str, Any] = {"recipe": recipe, "images": 16, "batch_size": 8, "report": quiet}
    recipes.train_tokenizer(picture_folder, tmp_path / "t", size=size, scales=scales, **options)
    recipes.train_transformer(picture_folder, tmp_path / "m", tokenizer=tmp_path / "t", **options)
    kind: Any = InfinityPipeline if recipe.endswith("bits") else VARPipeline
    pipe = kind.from_pretrained(tmp_path / "m", device="cpu")
    assert pipe.image_size == pixels
    if scales is not None:
        assert pipe.schedule == ScaleSchedule.from_sides(scales)
    image = pipe("red", seed=0, output_type="pt").images
    assert image.shape == (1, 3, *pixels)


def test_a_transformer_on_other_scales_than_its_tokenizers(picture_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": "tiny", "images": 16, "batch_size": 8, "report": quiet}
    recipes.train_tokenizer(picture_folder, tmp_path / "t", **options)
    model = recipes.train_transformer(
        picture_folder, tmp_path / "m", tokenizer=tmp_path / "t", scales=[1, 3, (6, 4)], **options
    )
    assert model.schedule.grids == ((1, 1), (3, 3), (6, 4))
    assert VARPipeline.from_pretrained(tmp_path / "m", device="cpu").image_size == (24, 16)


def test_models_with_bits_begin_with_one_cell(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="begin with 1x1, got 2x2"):
        recipes.train_tokenizer(picture_folder, tmp_path / "t", recipe="tiny-bits", scales=[2, 4, 8])
    assert not (tmp_path / "t").exists()
