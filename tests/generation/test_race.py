"""The race: exact distributions, and how often two of them agree."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.generation.noise import Noise, Stream
from nextscale.generation.race import draw_bits, race, race_filtered
from nextscale.generation.tokens import Drawer, Filters, filter_logits

COUNT = 120_000
SEEDS = [0, 1, 2**40 + 3]
ROW = torch.tensor([2.0, 1.5, 1.5, 0.3, -0.4, -1.0, -3.0, 0.9, 2.0, -7.0])
OFF: dict[str, Any] = dict(top_k=0, top_p=0.0, min_p=0.0)


def drawn(row: Tensor, seed: int, **limits: Any) -> Tensor:
    """Many draws from one row of logits, each from a cell of its own."""
    keys = Noise([seed]).keys(Stream.TOKENS, 2, COUNT).flatten()
    return race_filtered(row.expand(COUNT, -1).contiguous(), keys, **{**OFF, **limits})


def chi_squared(found: Tensor, shares: Tensor) -> float:
    """In standard deviations beyond what is expected; what must not be drawn is not."""
    counts = found.bincount(minlength=len(shares)).double()
    possible = shares > 0
    assert not counts[~possible].any()
    expected = shares[possible] * len(found)
    degrees = int(possible.sum()) - 1
    statistic = float(((counts[possible] - expected).square() / expected).sum())
    return (statistic - degrees) / math.sqrt(2 * degrees) if degrees else 0.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"top_k": 2},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"top_k": 8, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities(limits: dict[str, Any], seed: int):
    shares = filter_logits(ROW, **{**OFF, **limits}).double().softmax(-1)
    assert abs(chi_squared(drawn(ROW, seed, **limits), shares)) < 5


@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_frequencies_at_a_temperature(temperature: float):
    draw = Drawer("paired", Filters(temperature=temperature), [5], torch.device("cpu"))
    found = draw(ROW.expand(1, COUNT, -1), 0).flatten()
    assert abs(chi_squared(found, (ROW / temperature).double().softmax(-1))) < 5


@pytest.mark.parametrize("seed", SEEDS)
def test_rare_entries_have_their_odds(seed: int):
    """An entry of probability 1e-4 among a thousand likelier ones."""
    row = torch.zeros(1001)
    row[500] = math.log(0.1)
    keys = Noise([seed]).keys(Stream.TOKENS, 0, 20_000).flatten()
    hits = sum(
        int((race_filtered(row.expand(20_000, -1).contiguous(), keys + k, **OFF) == 500).sum())
        for k in range(3)
    )
    expected = 60_000 * 0.1 / 1000.1
    assert abs(hits - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("logit", [-3.0, -0.1, 0.0, 2.5])
def test_frequencies_of_bits(logit: float, seed: int):
    pairs = torch.tensor([0.5, 0.5 + logit]).expand(COUNT, 2)
    words = Noise([seed]).words(Stream.TOKENS, 1, COUNT, 1).flatten()
    share = torch.tensor(logit).double().sigmoid()
    assert abs(chi_squared(draw_bits(pairs, words), torch.stack([1 - share, share]))) < 5


def agreement(p: Tensor, q: Tensor) -> float:
    """How often races of two distributions agree that share their numbers (Moulton and Jiang, 2018)."""
    total = 0.0
    for v in range(len(p)):
        if p[v] > 0 and q[v] > 0:
            total += 1 / float(torch.maximum(p / p[v], q / q[v]).sum())
    return total


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("limits", [{}, {"top_k": 4}, {"top_p": 0.8}], ids=str)
def test_two_distributions_agree_as_often_as_races_do(spread: float, limits: dict[str, Any], seed: int):
    other = ROW + spread * torch.randn(len(ROW), generator=torch.Generator().manual_seed(seed % 1000))
    p, q = (filter_logits(x, **{**OFF, **limits}).double().softmax(-1) for x in (ROW, other))
    expected = agreement(p, q)
    found = float((drawn(ROW, seed, **limits) == drawn(other, seed, **limits)).double().mean())
    assert abs(found - expected) < 5 * math.sqrt(max(expected * (1 - expected), 1e-6) / COUNT)
    overlap = float(torch.minimum(p, q).sum())
    assert overlap / (2 - overlap) - 1e-9 <= expected <= overlap + 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_agree_as_often_as_can_be(seed: int):
    one, two = torch.tensor([0.0, 0.7]), torch.tensor([0.0, -0.4])
    words = Noise([seed]).words(Stream.TOKENS, 1, COUNT, 1).flatten()
    same = draw_bits(one.expand(COUNT, 2), words) == draw_bits(two.expand(COUNT, 2), words)
    overlap = float(torch.minimum(one.softmax(-1), two.softmax(-1)).sum())
    assert abs(float(same.double().mean()) - overlap) < 5 * math.sqrt(overlap * (1 - overlap) / COUNT)


def test_a_change_of_one_entry_moves_others_only_to_or_from_it():
    other = ROW.clone()
    other[3] += 1.0
    before, after = drawn(ROW, 0), drawn(other, 0)
    moved = before != after
    assert moved.any()
    assert (after[moved] == 3).all()


def test_numbers_are_computed_only_for_what_is_left(monkeypatch: pytest.MonkeyPatch):
    from nextscale.generation import race as module

    hashed: list[int] = []
    known = module.derive
    monkeypatch.setattr(module, "derive", lambda k, n: (hashed.append(n.numel()), known(k, n))[1])
    keys = Noise([0]).keys(Stream.TOKENS, 0, 7).flatten()
    logits = torch.randn(7, 100, generator=torch.Generator().manual_seed(0))
    race_filtered(logits, keys, top_k=5, top_p=0.0, min_p=0.0)
    assert hashed == [35]


def test_rows_that_are_no_numbers_and_removed_ones():
    keys = Noise([0]).keys(Stream.TOKENS, 0, 4).flatten()
    for fill in (math.nan, -math.inf):
        logits = torch.full((4, 9), fill)
        logits[2] = 0
        for limits in (OFF, {**OFF, "top_k": 3}, {**OFF, "top_p": 0.5}, {**OFF, "min_p": 0.1}):
            found = race_filtered(logits, keys, **limits)
            assert ((found >= 0) & (found < 9)).all()
            assert found[2] == race(filter_logits(logits[2:3], **limits), keys[2:3])[0]
