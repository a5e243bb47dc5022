"""Filters and the three samplers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.generation import tokens as module
from nextscale.generation.noise import Noise, Stream, uniform
from nextscale.generation.race import race
from nextscale.generation.tokens import Drawer, Filters, filter_logits

CPU = torch.device("cpu")

logits_of_a_row = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=24)
probabilities = st.floats(0.01, 0.99)


def kept(logits: Tensor) -> Tensor:
    return ~torch.isneginf(logits)


# ------------------------------------------------------------------ filters


def test_filters_agree_with_the_golden_masks(golden: Path):
    folder = golden / "var" / "sampling_filter"
    io, entries = (
        load_file(folder / "io.safetensors"),
        json.loads((folder / "config.json").read_text())["entries"],
    )
    assert len(entries) == 34
    for entry in entries:
        logits, keep = io[entry["logits"]], io[entry["keep"]]
        before = logits.clone()
        filtered = filter_logits(logits, top_k=entry["top_k"], top_p=entry["top_p"])
        assert torch.equal(kept(filtered), keep), entry
        assert torch.equal(filtered[keep], logits[keep])
        assert torch.equal(logits, before)
        assert torch.equal(Filters(top_k=entry["top_k"], top_p=entry["top_p"])(logits), filtered)
        count = keep.sum(-1)
        assert (int(count.min()), int(count.max())) == (entry["kept_per_row_min"], entry["kept_per_row_max"])


@given(logits_of_a_row, st.data())
def test_top_k_keeps_the_k_largest_and_their_ties(row: list[float], data: st.DataObject):
    k = data.draw(st.integers(1, len(row)))
    keep = kept(filter_logits(torch.tensor(row), top_k=k)).tolist()
    threshold = sorted(row, reverse=True)[k - 1]
    assert keep == [value >= threshold for value in row]
    assert sum(keep) >= k


@given(logits_of_a_row, probabilities)
def test_top_p_keeps_the_smallest_set_that_is_likely_enough(row: list[float], p: float):
    logits = torch.tensor(row)
    keep = kept(filter_logits(logits, top_p=p))
    shares = logits.softmax(-1).double()
    assert keep.any()
    assert bool(keep[logits.argmax()]) or bool((logits == logits.max())[keep].any())
    assert float(shares[keep].sum()) >= p - 1e-5
    assert keep.all() or float(logits[keep].min()) >= float(logits[~keep].max())  # no gaps
    smallest = float(shares[keep].min())
    assert float(shares[keep].sum()) - smallest <= p + 1e-5  # nothing that could be left out as well


@given(logits_of_a_row, probabilities)
def test_min_p_compares_with_the_likeliest(row: list[float], share: float):
    relative = [math.exp(value - max(row)) for value in row]
    assume(all(abs(r - share) > 1e-6 for r in relative))
    assert kept(filter_logits(torch.tensor(row), min_p=share)).tolist() == [r >= share for r in relative]


@given(logits_of_a_row, st.data())
def test_filters_only_remove_and_never_the_likeliest(row: list[float], data: st.DataObject):
    settings = dict(
        top_k=data.draw(st.integers(0, len(row))),
        top_p=data.draw(st.floats(0, 1)),
        min_p=data.draw(st.floats(0, 1)),
    )
    logits = torch.tensor(row)
    filtered = filter_logits(logits, **settings)
    keep = kept(filtered)
    assert torch.equal(filtered[keep], logits[keep])
    assert float(filtered.max()) == float(logits.max())
    by_k, by_min = ({**settings, "top_p": 0.0, other: 0} for other in ("min_p", "top_k"))
    for once in (by_k, by_min):  # removing again removes nothing more; top-p works on what is left, so it may
        result = filter_logits(logits, **once)
        assert torch.equal(filter_logits(result, **once), result)


def test_filters_that_are_off_change_nothing():
    logits = torch.randn(2, 3, 8)
    filtered = Filters()(logits)
    assert torch.equal(filtered, logits)
    assert filtered.data_ptr() != logits.data_ptr()
    for off in (Filters(top_k=8), Filters(top_p=1.0), Filters(top_k=0, top_p=0, min_p=0)):
        assert torch.equal(off(logits), logits)


def test_top_p_works_on_what_top_k_left():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(filter_logits(logits, top_p=0.75)).tolist() == [True, True, True, False]
    assert kept(filter_logits(logits, top_k=2, top_p=0.55)).tolist() == [True, False, False, False]


def test_top_p_that_is_reached_exactly_needs_no_more():
    assert kept(filter_logits(torch.zeros(4), top_p=0.5)).sum() == 2
    assert kept(filter_logits(torch.zeros(4), top_p=0.51)).sum() == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_filters_keep_the_dtype(dtype: torch.dtype):
    logits = torch.randn(3, 16, dtype=dtype)
    assert Filters(temperature=0.5, top_k=4, top_p=0.9, min_p=0.01)(logits).dtype == dtype


def test_temperature_comes_before_the_filters():
    logits = torch.tensor([2.0, 1.0, 0.0])
    filters = Filters(temperature=(1.0, 0.1, 10.0), min_p=0.3)
    assert [kept(filters(logits, step)).tolist() for step in range(3)] == [
        [True, True, False],
        [True, False, False],
        [True, True, True],
    ]
    torch.testing.assert_close(filters(logits, 2), (logits - 2) / 10)  # the largest is moved to 0


def test_settings_become_plain_numbers():
    filters = Filters(temperature=np.array([0.5, 1]), top_k=np.int64(3), top_p=np.float32(0.5), min_p=0)
    assert filters == Filters(temperature=[0.5, 1.0], top_k=3, top_p=0.5)
    assert json.loads(json.dumps([filters.temperature, filters.top_k, filters.top_p])) == [[0.5, 1.0], 3, 0.5]
    assert Filters(temperature=torch.tensor(2.0)).temperature == 2.0
    hash(filters)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(temperature=0), "temperature must be a positive number, got 0"),
        (dict(temperature=-1.0), "got -1.0"),
        (dict(temperature=math.nan), "got nan"),
        (dict(temperature=math.inf), "got inf"),
        (dict(temperature=True), "got True"),
        (dict(temperature=[1, "x"]), "got 'x'"),
        (dict(temperature=None), "got None"),
        (dict(top_k=-1), "top_k must be a whole number, 0 for no limit; got -1"),
        (dict(top_k=2.0), "got 2.0"),
        (dict(top_k=True), "got True"),
        (dict(top_p=1.01), r"top_p must be between 0 and 1 \(0 = off\), got 1.01"),
        (dict(min_p=math.nan), "min_p must be between 0 and 1"),
        (dict(min_p="0.5"), "got '0.5'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        Filters(**settings)


def test_settings_that_do_not_fit_the_model():
    Filters(top_k=10, temperature=[1.0, 2.0]).check(vocab_size=10, num_steps=2)
    with pytest.raises(InvalidArgumentError, match="top_k is 11, but the vocabulary has 10 tokens"):
        Filters(top_k=11).check(vocab_size=10, num_steps=2)
    with pytest.raises(InvalidArgumentError, match="temperature has 2 values, but the model takes 3 steps"):
        Filters(temperature=[1.0, 2.0]).check(vocab_size=10, num_steps=3)


# ------------------------------------------------------------------ the three samplers


def draw(sampler: Any, logits: Tensor, seeds: list[int], **settings: Any) -> Tensor:
    return Drawer(sampler, Filters(**settings), seeds, CPU)(logits, 0)


def test_paired_rows_depend_on_their_seed_alone():
    logits = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0)).expand(3, 7, 16)
    tokens = draw("paired", logits, [4, 9, 4], top_k=12)
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[1:2], draw("paired", logits[:1], [9], top_k=12))


def test_paired_takes_a_part_of_the_steps_numbers():
    logits = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    drawer = Drawer("paired", Filters(), [1, 2], CPU)
    whole = drawer(logits, 0)
    part = torch.tensor([4, 0, 5])
    assert torch.equal(drawer(logits[:, part], 0, part.expand(2, -1)), whole[:, part])


@given(
    k=st.integers(0, 40),
    p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    share=st.sampled_from([0.0, 0.01, 0.4, 1.0]),
    temperature=st.sampled_from([1.0, 0.7]),
    coarse=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_draws_are_the_race_of_what_the_filters_left(
    k: int, p: float, share: float, temperature: float, coarse: bool, seed: int
):
    logits = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if coarse else logits  # with many ties, and with zeros of both signs
    settings = dict(top_k=k, top_p=p, min_p=share, temperature=temperature)
    drawer = Drawer("paired", Filters(**settings), [seed, 1], CPU)
    keys = Noise([seed, 1]).keys(Stream.TOKENS, 3, 5)
    filtered = Filters(**settings)(logits)
    expected = race(filtered.flatten(0, 1), keys.flatten()).view(2, 5)
    assert torch.isfinite(filtered.gather(-1, expected[..., None])).all()
    before = logits.clone()
    assert torch.equal(drawer(logits, 3), expected)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_numbers_that_are_none_give_a_token_and_leave_others_alone(settings: dict[str, Any]):
    logits = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    expected = draw("paired", logits, [1], **settings)
    logits[0, 1], logits[0, 2, 5] = math.nan, math.nan
    found = draw("paired", logits, [1], **settings)
    assert torch.equal(found[:, [0, 3]], expected[:, [0, 3]])
    assert ((found >= 0) & (found < 16)).all()


def test_rows_are_drawn_in_portions(monkeypatch: pytest.MonkeyPatch):
    logits = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    whole = draw("paired", logits, [1, 2], top_k=5, top_p=0.9)
    monkeypatch.setattr(module, "ENTRIES_AT_ONCE", 3 * 16)
    assert torch.equal(draw("paired", logits, [1, 2], top_k=5, top_p=0.9), whole)


def test_several_bits_per_position():
    logits = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))  # 5 bits
    pairs = logits.view(2, 3, 5, 2)
    drawer = Drawer("paired", Filters(temperature=0.5), [1, 2], CPU, bits=True)
    words = Noise([1, 2]).words(Stream.TOKENS, 7, 3, 5)
    expected = uniform(words) < (pairs / 0.5).double().softmax(-1)[..., 1]
    assert torch.equal(drawer(logits, 7), expected.long())
    one = Drawer("paired", Filters(top_k=1), [1, 2], CPU, bits=True)
    assert torch.equal(one(logits, 0), pairs.argmax(-1))
    part = torch.tensor([[2, 0], [1, 2]])
    whole = drawer(logits, 7)
    some = drawer(logits.gather(1, part[..., None].expand(2, 2, 10)), 7, part)
    assert torch.equal(some, whole.gather(1, part[..., None].expand(2, 2, 5)))


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-30, 1e-8])
@pytest.mark.parametrize("size", [1.0, 1e38])
def test_the_coldest_draws_are_the_likeliest(temperature: float, size: float):
    logits = size * torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    assert torch.equal(draw("paired", logits, [1, 2], temperature=temperature), logits.argmax(-1))
    assert torch.equal(draw("multinomial", logits, [1, 2], temperature=temperature), logits.argmax(-1))
    bits = Drawer("paired", Filters(temperature=temperature), [1, 2], CPU, bits=True)(logits, 0)
    assert torch.equal(bits, logits.view(2, 6, 8, 2).argmax(-1))


@pytest.mark.parametrize("sampler", ["paired", "greedy", "multinomial"])
def test_given_tokens_take_the_place_of_drawn_ones(sampler: Any):
    logits = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    given = torch.arange(12).view(2, 2, 3)
    free = Drawer(sampler, Filters(), [1, 2], CPU)
    bound = Drawer(sampler, Filters(), [1, 2], CPU, given=[given])
    free(logits, 0)
    assert torch.equal(bound(logits, 0), given.flatten(1))
    assert torch.equal(bound(logits, 1), free(logits, 1))  # the multinomial stream has advanced as well
    part = torch.tensor([[5, 0], [1, 2]])
    assert torch.equal(bound(logits[:, :2], 0, part), torch.tensor([[5, 0], [7, 8]]))


def test_top_k_per_step():
    logits = torch.arange(5.0).view(1, 1, 5)
    filters = Filters(top_k=[1, 3])
    assert [int(torch.isfinite(filters(logits, k)).sum()) for k in (0, 1)] == [1, 3]
    filters.check(vocab_size=5, num_steps=2)
    with pytest.raises(InvalidArgumentError, match="top_k has 2 values, but the model takes 3 steps"):
        filters.check(vocab_size=5, num_steps=3)
    with pytest.raises(InvalidArgumentError, match="top_k is 3, but the vocabulary has 2"):
        filters.check(vocab_size=2, num_steps=2)
    with pytest.raises(InvalidArgumentError, match="got -1"):
        Filters(top_k=[2, -1])


def test_greedy():
    logits = torch.randn(2, 6, 16)
    assert torch.equal(draw("greedy", logits, [0, 1], temperature=3.0, top_p=0.5), logits.argmax(-1))


def test_multinomial_is_one_call_for_each_step():
    logits = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    drawer = Drawer("multinomial", Filters(top_k=10), [3, 77], CPU)
    generator = torch.Generator().manual_seed(3)
    for step in range(2):
        rows = filter_logits(logits, top_k=10).softmax(-1).view(12, 16)
        expected = torch.multinomial(rows, 1, replacement=True, generator=generator).view(2, 6)
        assert torch.equal(drawer(logits, step), expected)


def test_unknown_sampler():
    with pytest.raises(
        InvalidArgumentError, match="unknown sampler 'nucleus'; known: paired, greedy, multinomial"
    ):
        draw("nucleus", torch.zeros(1, 1, 2), [0])
