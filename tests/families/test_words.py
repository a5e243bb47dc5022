"""The encoder without weights."""

from __future__ import annotations

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.families.words import WordEncoder


def test_a_row_for_each_word_and_one_for_the_end():
    text = WordEncoder(32)(["a photo of a horse", "", "Ship!"])
    assert text.features.shape == (3, 6, 32) and text.lengths == [6, 1, 2]
    assert text.width == 32


def test_words_decide_and_their_order_does():
    encode = WordEncoder(32)
    pair = encode(["A horse, a ship", "a  HORSE a ship"])
    assert torch.equal(pair.features[0], pair.features[1])
    turned = encode(["horse ship", "ship horse"]).features
    assert not torch.equal(turned[0], turned[1])


def test_prompts_do_not_depend_on_their_neighbours():
    encode = WordEncoder(16)
    both, alone = encode(["one", "one two three"]), encode(["one"])
    assert torch.equal(both.features[0][both.mask[0]], alone.features[0])


def test_vectors_stay_what_they_are():
    """Shipped weights depend on them."""
    row = WordEncoder(2)(["horse"]).features[0, 0]
    torch.testing.assert_close(row, torch.tensor([0.7954863, 0.8069741]), rtol=0, atol=1e-6)


def test_refused():
    with pytest.raises(InvalidArgumentError, match="width must be a positive whole number, got 0"):
        WordEncoder(0)
    with pytest.raises(InvalidArgumentError, match="may have 64 words, this one has 65"):
        WordEncoder(4)(["w " * 65])
