from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.training import recipes
from nextscale.training.cache import encode_dataset
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import ImageSource, to_float
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


def test_a_data_set_is_encoded_in_all_views(pictures: ImageSource) -> None:
    few = pictures.subset(torch.arange(5))
    images = to_float(few.batch(range(5)))
    eight = encode_dataset(lambda x: x, few, flip=True, turn=True, batch_size=2)
    assert eight.shape == (8, *images.shape)
    assert torch.equal(eight[0], images)
    assert torch.equal(encode_dataset(lambda x: x, few, flip=True)[1], images.flip(-1))
    assert torch.equal(encode_dataset(lambda x: x, few, flip=False, turn=True), eight[:4])
    for one in range(8):
        for other in range(one):
            assert not torch.equal(eight[one], eight[other])


def test_a_cache_of_other_views_is_not_taken(picture_folder: Path, tmp_path: Path) -> None:
    recipes.train_tokenizer(picture_folder, tmp_path / "t", recipe="tiny", images=32, report=lambda *_: None)
    tiny = recipes.tiny_transformer()
    for turn, flip, views in ((False, False, 1), (True, False, 4), (True, True, 8), (False, True, 2)):
        recipes.train_transformer(
            picture_folder,
            tmp_path / "m",
            tokenizer=tmp_path / "t",
            recipe=replace(tiny, turn=turn, flip=flip),
            images=16,
            resume=False,
            report=lambda *_: None,
        )
        kept = torch.load(tmp_path / "m" / "tokens.pt", weights_only=True)["tokens"]
        assert len(kept) == views
