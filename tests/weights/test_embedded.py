"""What ships in the package: present, small enough, and usable without a network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from nextscale import ScaledSpatialGuidance, VARPipeline
from nextscale.evaluation.recognition import load_classifier, recognised
from nextscale.weights.layout import locate

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the embedded model must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_model_is_small_and_has_a_hierarchy() -> None:
    files = [p for p in Path(locate("cifar10")).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 25e6
    pipe = VARPipeline.from_pretrained("cifar10", dtype="float32")
    assert pipe.class_names == CLASSES
    assert pipe.image_size == (32, 32)
    assert pipe.schedule.num_steps >= 6
    assert all(p.dtype is torch.float32 for p in pipe.transformer.parameters())


def test_guided_and_unguided_pictures_are_pairs() -> None:
    pipe = VARPipeline.from_pretrained("cifar10")
    plain = pipe(["frog", "truck"], seed=5, output_type="pt")
    off = pipe(["frog", "truck"], seed=5, ssg=0.0, output_type="pt")
    guided = pipe(["frog", "truck"], seed=5, ssg=ScaledSpatialGuidance(), output_type="pt")
    assert torch.equal(plain.images, off.images)
    assert torch.equal(plain.tokens[0], guided.tokens[0])  # the first step is never guided
    assert not torch.equal(plain.tokens[-1], guided.tokens[-1])
    assert plain.images.isfinite().all()


def test_the_classifier_sees_more_than_chance_in_generated_pictures() -> None:
    pipe = VARPipeline.from_pretrained("cifar10")
    labels = [i % 10 for i in range(100)]
    images = pipe(labels, seed=0, batch_size=50, output_type="pt").images
    # A hundred pictures from fixed seeds: chance is 10, the measured share is in docs/models.md.
    assert int(recognised(load_classifier(), images, labels).sum()) >= 20
