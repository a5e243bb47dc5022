"""Measurements stop at logits that are none, and name the picture by its number in the whole run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextscale import VARPipeline
from nextscale.errors import DataError, NotFiniteError
from nextscale.evaluation.features import open_space
from nextscale.evaluation.observation import ObservedImages, PictureStatistics, Plan
from nextscale.evaluation.runner import PipelineImages, plan


@pytest.fixture
def spoil(pipe: VARPipeline) -> Any:
    """Makes the logits of one label NaN at the third step, until the test ends."""
    handles: list[Any] = []

    def at(picture: int, batch: int) -> None:
        calls: list[None] = []

        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            calls.append(None)
            place, step = divmod(len(calls) - 1, pipe.schedule.num_steps)
            if step != 2 or place != picture // batch:
                return None
            output = output.clone()
            output[picture % batch] = math.nan
            return output

        handles.append(pipe.transformer.head.register_forward_hook(hook))

    yield at
    for handle in handles:
        handle.remove()


def read_all(images: Any) -> None:
    for start in (0, 4, 8):
        images.read(start, min(start + 4, 10))


@pytest.mark.parametrize("picture", [0, 3, 7, 9])
def test_an_evaluation(pipe: VARPipeline, spoil: Any, picture: int):
    protocol = plan(pipe, 10, open_space("pixels"), arguments={"guidance_scale": 0.0})
    images = PipelineImages(pipe, protocol)
    spoil(picture, 4)
    with pytest.raises(NotFiniteError, match=rf"at step 3 \(4 x 4\) of picture {picture};"):
        read_all(images)


@pytest.mark.parametrize("picture", [0, 3, 7, 9])
def test_spectra(pipe: VARPipeline, spoil: Any, picture: int):
    images = ObservedImages(Plan(pipe, list(range(10)), 10, {"guidance_scale": 0.0}), None)
    spoil(picture, 4)
    with pytest.raises(NotFiniteError, match=rf"at step 3 \(4 x 4\) of picture {picture};"):
        read_all(images)


def test_statistics_of_spectra_that_are_none(pipe: VARPipeline, tmp_path: Path):
    images = ObservedImages(Plan(pipe, list(range(10)), 4), None)
    statistics = PictureStatistics(images)
    pictures = images.read(0, 4)
    statistics(pictures)
    images.seen["latent"][2, 0, 0] = torch.nan
    with pytest.raises(DataError, match="the latent statistics of some pictures are NaN or infinite"):
        statistics(pictures)
