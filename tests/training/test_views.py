from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.training import recipes
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import ImageSource
from nextscale.training.views import random_turns, turned


def test_all_turns_are_drawn_and_nothing_else() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 5, 5)
    known = [turned(image, k)[0] for k in range(4)]
    assert torch.equal(known[1][:, 0, 0], image[0, :, 0, -1])  # counter-clockwise
    which = [
        next(k for k in range(4) if torch.equal(x, known[k])) for x in random_turns(image.repeat(80, 1, 1, 1))
    ]
    assert set(which) == {0, 1, 2, 3}
    assert all(which.count(k) > 8 for k in range(4))


def test_turns_need_squares() -> None:
    with pytest.raises(InvalidArgumentError, match="needs square ones; got 7x5 pixels"):
        random_turns(torch.zeros(1, 3, 5, 7))


def test_the_classifier_sees_them(pictures: ImageSource) -> None:
    model = SmallClassifier(ClassifierConfig(num_classes=3, widths=(8, 8, 8)))
    images = torch.arange(32.0).view(1, 1, 32, 1).expand(64, 3, 32, 32)  # brighter from row to row

    def upright(turn: bool) -> list[bool]:
        torch.manual_seed(0)
        seen = ClassifierTask(model, pictures, pictures, turn=turn, shift=0)._augment(images)
        return [bool((x[0, :, 0] == images[0, 0, :, 0]).all()) for x in seen]

    assert all(upright(False)) and 4 < sum(upright(True)) < 40


def test_a_classifier_of_any_size_and_number_of_classes(picture_folder: Path, tmp_path: Path) -> None:
    model = recipes.train_classifier(
        picture_folder, tmp_path, recipe="tiny", size=48, images=32, report=lambda *_: None
    )
    assert model.size == (48, 48) and model.config.num_classes == 3
    with pytest.raises(
        InvalidArgumentError, match="3 stages needs pictures of 9 pixels a side or more, got the size"
    ):
        recipes.train_classifier(picture_folder, tmp_path, recipe="tiny", size=8, images=32)
    assert ClassifierConfig(size=40).size == (40, 40)
    assert ClassifierConfig().size == (32, 32)  # of the files from before sizes were stored
