"""The frozen description, its hashes, presets, and published figures."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.features import SPACES
from nextscale.evaluation.paper import COLUMNS, published
from nextscale.evaluation.protocol import PRESETS, Protocol, Rules, to_uint8
from nextscale.evaluation.reference import EMBEDDED

PROTOCOL = Protocol(
    images=100,
    size=(32, 32),
    model={"name": "a", "family": "var", "depth": 4, "sha256": "m"},
    features={"name": "pixels", "classes": None, "dtype": "float32"},
    reference={"name": "r.npz", "sha256": "r", "images": 50},
    sampling={"guidance_scale": {"scale": 1.5}, "ssg": None, "top_p": 0.96, "dtype": "float32"},
    classes=10,
    seed=7,
)


def test_the_hash_is_the_same_everywhere_and_always():
    # If this fails the meaning of stored hashes has changed; FORMAT says so to those who read them.
    assert PROTOCOL.hash == "aeced5e26e0d06bbf8c4f17a83b0ecbea135af1b56b6de4ccd42e37c7c9c8035"
    again = Protocol.from_dict(json.loads(json.dumps(PROTOCOL.to_dict())))
    assert again == PROTOCOL and again.hash == PROTOCOL.hash
    with pytest.raises(FrozenInstanceError):
        PROTOCOL.images = 5  # type: ignore[misc]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    # What is changed, and which of the hashes must notice: all, the ruler, the pictures.
    "another name": ({"model": {**PROTOCOL.model, "name": "b"}}, ""),
    "reference elsewhere": ({"reference": {"name": "s.npz", "sha256": "r", "images": 50}}, ""),
    "weights": ({"model": {**PROTOCOL.model, "sha256": "n"}}, "hash pictures"),
    "sampling": ({"sampling": {**PROTOCOL.sampling, "ssg": {"beta": 0.6}}}, "hash pictures"),
    "seed": ({"seed": 8}, "hash pictures"),
    "more pictures": ({"images": 101}, "hash ruler"),
    "reference": ({"reference": {"name": "r.npz", "sha256": "s", "images": 50}}, "hash ruler"),
    "no reference": ({"reference": None}, "hash ruler"),
    "rules": ({"rules": Rules(k=5)}, "hash ruler"),
    "features": ({"features": {"name": "dinov2"}}, "hash ruler pictures"),
    "rounding": ({"rounding": "truncate"}, "hash ruler pictures"),
    "classes": ({"classes": 9}, "hash ruler pictures"),
    "size": ({"size": (64, 64)}, "hash ruler pictures"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_hash_notices_what_it_is_about(name: str):
    change, noticed = CHANGES[name]
    other = replace(PROTOCOL, **change)
    found = [h for h in ("hash", "ruler", "pictures") if getattr(other, h) != getattr(PROTOCOL, h)]
    assert found == noticed.split()


def test_classes_take_turns():
    labels = [PROTOCOL.label(i) for i in range(100)]
    assert [labels.count(c) for c in range(10)] == [10] * 10 and PROTOCOL.per_class == 10
    with pytest.raises(InvalidArgumentError, match="no known classes"):
        replace(PROTOCOL, classes=None).label(0)


def test_values_out_of_range():
    for change, text in [
        ({"images": 1}, "at least 2 pictures"),
        ({"rounding": "up"}, "unknown rounding 'up'; known: round, truncate"),
        ({"seed": 2**64 - 50}, "from 0 up to 2"),
        ({"seed": -1}, "from 0 up to 2"),
    ]:
        with pytest.raises(InvalidArgumentError, match=text):
            replace(PROTOCOL, **change)
    with pytest.raises(InvalidArgumentError, match="has the format 99, expected 1"):
        Protocol.from_dict({**PROTOCOL.to_dict(), "format": 99})
    with pytest.raises(InvalidArgumentError, match=r"no protocol of this version.*surprise"):
        Protocol.from_dict({**PROTOCOL.to_dict(), "surprise": 1})


def test_rules_fit_what_there_is():
    assert Rules().fitted(50_000, 10_000) == Rules()
    small = Rules().fitted(300, 200)
    assert (small.kernel_size, small.smallest) == (200, 150)
    assert Rules().fitted(300, 0).kernel_size == 300


def test_eight_bit():
    values = torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5 / 255, 1.6 / 255, 254.6 / 255, 1.0, 1.1])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 2, 255, 255, 255]
    assert to_uint8(values, "truncate").tolist() == [0, 0, 0, 0, 1, 254, 255, 255]


def test_presets():
    assert {"cifar10", "imagenet256-adm", "imagenet512-adm"} < set(PRESETS)
    for name, preset in PRESETS.items():
        assert preset.name == name and preset.space in SPACES
        if preset.reference is not None and not preset.reference.startswith("https://"):
            assert preset.reference in EMBEDDED
    adm = PRESETS["imagenet256-adm"]
    assert (adm.images, adm.classes, adm.size, adm.space) == (50_000, 1000, (256, 256), "inception")
    assert adm.sampling["guidance_scale"] == 1.5 and adm.sampling["top_k"] == 900


def test_published_figures_stand_where_they_belong():
    var = {"family": "var", "depth": 16}
    plain, guided = (published("imagenet256-adm", var, ssg=ssg) for ssg in (False, True))
    assert plain is not None and guided is not None
    assert plain.figures == dict(zip(COLUMNS, (3.42, 8.70, 275.6, 0.84, 0.51), strict=True))
    assert guided.figures["fid"] == 3.27 and "with SSG" in guided.source
    large = published("imagenet512-adm", {"family": "var", "depth": 36}, ssg=False)
    assert large is not None and large.figures == {"fid": 2.63} and "README" in large.source
    nothing = [
        ("cifar10", var, False),
        ("imagenet256-adm", {"family": "var", "depth": 36}, False),
        ("imagenet256-adm", {"family": "samples"}, False),
        ("imagenet512-adm", {"family": "var", "depth": 36}, True),
    ]
    assert [published(p, m, ssg=s) for p, m, s in nothing] == [None] * 4
