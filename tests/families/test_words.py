"""The encoder without weights."""

from __future__ import annotations

import unicodedata

import pytest
import torch

from nextscale.errors import InvalidArgumentError, NextscaleWarning
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
    with pytest.raises(InvalidArgumentError, match="length must be a whole number of at least 2"):
        WordEncoder(4, length=1)


def test_a_long_prompt_is_cut_and_the_warning_says_what_is_lost():
    words = [f"w{i}" for i in range(67)]
    with pytest.warns(NextscaleWarning, match="prompt 1 is too long: of its 67 words the first 64") as caught:
        text = WordEncoder(4)(["w0", " ".join(words)])
    assert "'w64 w65 w66'" in str(caught[0].message)
    whole = WordEncoder(4)([" ".join(words[:64])])
    assert text.lengths == [2, 65] and torch.equal(text.features[1:], whole.features)
    with pytest.warns(NextscaleWarning, match="of its 3 words the first 2"):
        assert WordEncoder(4, length=3)(["a red fox"]).lengths == [3]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_letters_may_be_composed_in_any_way(form: str):
    prompt = "ein Käfer auf grünem Gras"
    text = WordEncoder(4)([unicodedata.normalize(form, prompt)])
    assert text.lengths == [6] and torch.equal(text.features, WordEncoder(4)([prompt]).features)
