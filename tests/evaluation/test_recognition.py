from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.features import open_space
from nextscale.evaluation.recognition import CLASSIFIER, load_classifier, recognised, share_interval
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.weights.layout import save_module


def test_pictures_are_judged_as_they_would_be_saved() -> None:
    torch.manual_seed(0)
    classifier = SmallClassifier(ClassifierConfig(widths=(8, 8, 8))).eval()
    images = torch.rand(7, 3, 32, 32)
    guesses = classifier((images * 255).round() / 127.5 - 1).argmax(-1)
    labels = guesses.clone()
    labels[2] = (labels[2] + 1) % 10
    assert recognised(classifier, images, labels, batch_size=3).tolist() == [i != 2 for i in range(7)]
    with pytest.raises(InvalidArgumentError, match=r"\(7, 3, 32, 32\) and 6"):
        recognised(classifier, images, labels[:6])


def test_wilson_interval() -> None:
    # 8 of 10: the textbook value.
    low, high = share_interval(8, 10)
    assert low == pytest.approx(0.4902, abs=5e-4)
    assert high == pytest.approx(0.9433, abs=5e-4)
    assert share_interval(0, 50)[0] == 0.0
    assert share_interval(50, 50)[1] == 1.0


def test_a_classifier_measures_pictures_of_its_own_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SmallClassifier(ClassifierConfig(num_classes=4, widths=(8, 8), size=(24, 40))).eval()
    save_module(model, model.config.to_dict(), tmp_path / "classifier")
    space = open_space(CLASSIFIER, tmp_path)  # the folder of a run
    found = space(torch.randint(256, (5, 3, 24, 40), dtype=torch.uint8))
    assert found["features"].shape == (5, 8) and found["logits"].shape == (5, 4) and space.classes == 4
    with pytest.raises(InvalidArgumentError, match="takes pictures of 40x24 pixels, not 24x40"):
        space.check_size((40, 24))
    images = torch.rand(5, 3, 24, 40)
    assert recognised(load_classifier(tmp_path), images, [0] * 5).shape == (5,)
    with pytest.raises(InvalidArgumentError, match=r"\(B, 3, 24, 40\)"):
        recognised(load_classifier(tmp_path), torch.rand(5, 3, 32, 32), [0] * 5)
