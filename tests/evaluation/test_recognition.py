from __future__ import annotations

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.recognition import recognised, share_interval
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier


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
