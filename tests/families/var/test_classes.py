from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextscale.errors import InvalidArgumentError
from nextscale.families.var.classes import imagenet_classes, resolve_labels

PETS = ("cat", "dog", "Guinea pig", "crane (bird)", "crane (machine)")

# Spread over the list, so that a lost or an added line anywhere before the last one is noticed.
ANCHORS = {
    0: "tench",
    1: "goldfish",
    2: "great white shark",
    22: "bald eagle",
    88: "macaw",
    134: "crane (bird)",
    151: "Chihuahua",
    207: "Golden Retriever",
    281: "tabby cat",
    291: "lion",
    340: "zebra",
    388: "giant panda",
    417: "balloon",
    483: "castle",
    517: "crane (machine)",
    555: "fire engine",
    620: "laptop",
    671: "mountain bike",
    730: "plow",
    779: "school bus",
    805: "soccer ball",
    852: "tennis ball",
    895: "warplane",
    933: "cheeseburger",
    963: "pizza",
    980: "volcano",
    999: "toilet paper",
}


def resolve(labels: object) -> list[int]:
    return resolve_labels(labels, PETS, len(PETS))


def test_imagenet_has_a_thousand_different_plain_names():
    names = imagenet_classes()
    assert len(names) == 1000
    assert len({name.casefold().replace("-", " ") for name in names}) == 1000
    assert all(name.isascii() and name == name.strip() and len(name) >= 2 for name in names)
    assert not any(name.isdecimal() for name in names)
    assert imagenet_classes() is names


@pytest.mark.parametrize(("number", "name"), ANCHORS.items())
def test_imagenet_order(number: int, name: str):
    assert imagenet_classes()[number] == name


@given(st.integers(0, 999))
def test_every_imagenet_name_leads_back_to_its_number(number: int):
    name = imagenet_classes()[number]
    assert (
        resolve_labels([name, name.upper(), name.replace(" ", "_")], imagenet_classes(), 1000) == [number] * 3
    )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (1, [1]),
        ("dog", [1]),
        ("DOG", [1]),
        ("  guinea-PIG ", [2]),
        ("4", [4]),
        (" 4 ", [4]),
        (None, [5]),
        (-1, [5]),
        ("-1", [5]),
        ([0, "dog", "2", None, -1], [0, 1, 2, 5, 5]),
        ((3, 3), [3, 3]),
        (range(3), [0, 1, 2]),
        (np.int64(2), [2]),
        (np.array(2), [2]),
        (np.array([2, -1]), [2, 5]),
        (np.array(["dog", "cat"]), [1, 0]),
        ([np.int32(2), torch.tensor(1)], [2, 1]),
        (torch.tensor(3), [3]),
        (torch.tensor([3, 0], dtype=torch.int32), [3, 0]),
    ],
)
def test_ways_to_write_labels(labels: object, expected: list[int]):
    result = resolve(labels)
    assert result == expected
    assert all(type(number) is int for number in result)


@pytest.mark.parametrize(
    "label", [1.0, True, b"dog", {"dog": 1}, [[1, 2]], torch.tensor([1.5]), np.array([True]), object()]
)
def test_what_is_neither_number_nor_name(label: object):
    with pytest.raises(InvalidArgumentError, match="a label is a class number, a class name or None"):
        resolve(label)


@pytest.mark.parametrize("label", [5, -2, "17", 10**30])
def test_out_of_range(label: object):
    with pytest.raises(InvalidArgumentError, match=r"class -?\d+ is out of range: .* 0 to 4, and None or -1"):
        resolve([0, label])


@pytest.mark.parametrize(
    ("label", "suggested"),
    [("dgo", ["'dog'"]), ("crane", ["'crane (bird)'", "'crane (machine)'"]), ("pig", ["'Guinea pig'"])],
)
def test_unknown_names_get_suggestions(label: str, suggested: list[str]):
    with pytest.raises(InvalidArgumentError, match="did you mean") as caught:
        resolve(label)
    message = str(caught.value)
    assert repr(label) in message
    assert "0 to 4" in message
    assert all(name in message for name in suggested)


@pytest.mark.parametrize("label", ["qqqqqq", "", "1.0", "--1", "²", "٣"])
def test_unknown_names_without_suggestions(label: str):
    with pytest.raises(InvalidArgumentError, match="unknown class") as caught:
        resolve(label)
    assert repr(label) in str(caught.value)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("label", ["Käfer", "KÄFER", "Ångström", "한글", "カラス"])
def test_names_in_any_normal_form(form: str, label: str):
    names = ("käfer", "Ångström", "한글", "カラス", "e")
    wanted = [n.casefold() for n in names].index(label.casefold())
    assert resolve_labels(unicodedata.normalize(form, label), names, 5) == [wanted]
    stored = tuple(unicodedata.normalize(form, name) for name in names)  # as folders on some systems are
    assert resolve_labels(label, stored, 5) == [wanted]


def test_unknown_names_list_what_is_allowed():
    with pytest.raises(InvalidArgumentError) as caught:
        resolve("zebra")
    assert str(caught.value) == f"unknown class 'zebra'; this model's classes are {', '.join(PETS)} (0 to 4)"
    many = tuple(f"class number {i}" for i in range(1000))
    with pytest.raises(InvalidArgumentError, match=r"class number 19, … \(1,000 in all\) \(0 to 999\)$"):
        resolve_labels("zebra", many, 1000)


def test_no_labels():
    with pytest.raises(InvalidArgumentError, match="no labels"):
        resolve([])


def test_a_model_without_names():
    assert resolve_labels([0, "1", None], (), 2) == [0, 1, 2]
    with pytest.raises(
        InvalidArgumentError, match="'dog' is not a number, and this model's classes have no names"
    ):
        resolve_labels("dog", (), 2)


def test_a_name_made_of_digits_goes_before_the_number():
    assert resolve_labels(["1", "7", 1], ("7", "1"), 2) == [1, 0, 1]


def test_names_that_differ_only_in_case():
    names = ("Tank", "tank")
    assert resolve_labels(["Tank", "tank"], names, 2) == [0, 1]
    with pytest.raises(InvalidArgumentError, match=r"'TANK' is the name of the classes \[0, 1\]"):
        resolve_labels("TANK", names, 2)


def test_names_must_fit_the_model():
    with pytest.raises(InvalidArgumentError, match="5 class names do not fit 1000 classes"):
        resolve_labels(0, PETS, 1000)
