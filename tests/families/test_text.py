"""What the text-to-image families share: batches of text features, and prompts as callers write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.families.text import TextFeatures, encode_negative, encode_prompts


class Counting:
    """An encoder whose features are the places of the letters; it remembers what it was asked for."""

    width = 2

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        self.asked.append(list(prompts))
        rows = [torch.arange(len(p) + 1.0)[:, None].expand(-1, 2) for p in prompts]
        return TextFeatures.from_packed(torch.cat(rows), [len(r) for r in rows])

    def release(self) -> None:
        """Nothing to free."""


def some(lengths: list[int], seed: int = 0) -> TextFeatures:
    generator = torch.Generator().manual_seed(seed)
    return TextFeatures.from_packed(torch.randn(sum(lengths), 3, generator=generator), lengths)


def test_packed_rows_become_a_padded_batch():
    rows = torch.arange(12.0).view(6, 2)
    text = TextFeatures.from_packed(rows, torch.tensor([2, 1, 3]))
    assert text.lengths == [2, 1, 3]
    assert (len(text), text.width, tuple(text.features.shape)) == (3, 2, (3, 3, 2))
    assert torch.equal(text.features[text.mask], rows)
    with pytest.raises(InvalidArgumentError, match=r"\(6, 2\) for lengths \[2, 1\]"):
        TextFeatures.from_packed(rows, [2, 1])


def test_batches_can_be_joined_and_cut():
    a, b = some([2, 4]), some([5], seed=1)
    joined = TextFeatures.cat([a, b])
    assert joined.lengths == [2, 4, 5]
    assert torch.equal(joined.features[joined.mask], torch.cat([a.features[a.mask], b.features[b.mask]]))
    assert joined[1:].lengths == [4, 5]
    assert joined[[2, 0, 0]].lengths == [5, 2, 2]


def test_trimming_drops_what_is_padding_for_all():
    text = some([2, 4, 5])
    assert text.trim() is text
    short = text[:2].trim()
    assert short.features.shape == (2, 4, 3)
    assert torch.equal(short.features[short.mask], text[:2].features[text[:2].mask])
    left = TextFeatures(text.features.flip(1), text.mask.flip(1))[:1].trim()
    assert torch.equal(left.features[0].flip(0), text.features[0, :2])


@pytest.mark.parametrize(
    ("features", "mask"),
    [
        (torch.ones(2, 3), torch.ones(2, 3).bool()),
        (torch.ones(2, 3, 4).long(), torch.ones(2, 3).bool()),
        (torch.ones(2, 3, 4), torch.ones(2, 3)),
        (torch.ones(2, 3, 4), torch.ones(2, 4).bool()),
    ],
)
def test_features_that_do_not_fit_their_mask(features: Any, mask: Any):
    with pytest.raises(InvalidArgumentError, match=r"floats \(B, T, W\) with a bool mask"):
        TextFeatures(features, mask)


def test_a_prompt_without_a_token():
    with pytest.raises(InvalidArgumentError, match="prompt 1 has no text token"):
        TextFeatures(torch.ones(2, 2, 1), torch.tensor([[True, False], [False, False]]))


def test_prompts_as_callers_write_them():
    encoder = Counting()
    for given in ("a cat", ["a cat"], ("a cat",)):
        texts, features = encode_prompts(given, encoder)
        assert (texts, features.lengths) == (["a cat"], [6])
    assert encoder.asked == [["a cat"]] * 3
    assert encode_prompts(features, None) == (None, features)


@pytest.mark.parametrize("given", [[], (), None, 3, {"a": 1}])
def test_prompts_that_are_none(given: Any):
    with pytest.raises(InvalidArgumentError, match="prompts must be a text, several, or TextFeatures"):
        encode_prompts(given, Counting())


def test_strings_need_an_encoder():
    with pytest.raises(InvalidArgumentError, match="pass TextFeatures"):
        encode_prompts("a cat", None)
    for wrong in (["a", None], ["a", 3]):
        with pytest.raises(InvalidArgumentError, match="words must be texts, but one is"):
            encode_prompts(wrong, Counting(), name="words")  # type: ignore[arg-type]


def test_negative_prompts_are_none_one_or_one_each():
    encoder = Counting()
    assert encode_negative(None, 3, encoder) == (None, None)
    texts, features = encode_negative("grey", 3, encoder)
    assert texts == ["grey"] and features is not None
    assert features.lengths == [5, 5, 5]
    assert encoder.asked == [["grey"]]  # encoded once, not three times
    texts, features = encode_negative(["a", "bc", ""], 3, encoder)
    assert features is not None and features.lengths == [2, 3, 1]
    with pytest.raises(InvalidArgumentError, match="2 negative prompts for 3 images"):
        encode_negative(["a", "b"], 3, encoder)
