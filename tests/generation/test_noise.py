"""Numbers that are a hash of where they are used."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextscale.generation.noise import (
    Noise,
    Stream,
    derive,
    exponential,
    scramble,
    signed,
    uniform,
)

WORD = 2**64 - 1
whole = st.integers(0, WORD)
WRITTEN = [
    [[0x5D2CF6555243B529, 0x1A6024B4FD013399], [0x9FBD1BF5668BC8D3, 0xDE24C04F2C9943BD]],
    [[0x10F786A8D78288C8, 0xA7405A372DD316F6], [0x6734B03860C890C7, 0xA37A3191423CAC65]],
    [[0x8A75B3E291A4BE5, 0x2509B74C4117D77F], [0xD65DD5A9E51BFBA9, 0xC996AEF82875A780]],
]


def mixed(x: int) -> int:
    """The finalizer of SplitMix64 in plain Python."""
    x &= WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def hashed(seed: int, *numbers: int) -> int:
    key = seed
    for number in (0, *numbers):
        key = mixed(key + 0x9E3779B97F4A7C15 * (number + 1))
    return key


# ------------------------------------------------------------------ the hash


def test_the_hash_begins_as_splitmix64_does():
    """Its first outputs from the state 0, as they are published with it."""
    found = derive(torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert [int(x) & WORD for x in found] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_numbers_written_out_once():
    words = Noise([0, 7, 2**64 - 1]).words(Stream.RESIDUAL, 4, torch.tensor([[0, 255]] * 3), 2)
    assert [[[int(x) & WORD for x in cell] for cell in image] for image in words] == WRITTEN


@given(whole, st.sampled_from(Stream), st.integers(0, 99), st.integers(0, 10**5), st.integers(0, 10**5))
def test_the_hash_in_plain_python(seed: int, stream: Stream, step: int, cell: int, entry: int):
    keys = Noise([seed]).keys(stream, step, torch.tensor([[cell]]))
    assert int(derive(keys, torch.tensor(entry))) & WORD == hashed(seed, stream, step, cell, entry)
    assert torch.equal(derive(keys, torch.tensor(entry)), derive(keys, entry))


@given(st.lists(whole, min_size=1, max_size=20, unique=True))
def test_different_words_stay_different(words: list[int]):
    found = scramble(torch.tensor([signed(w) for w in words]))
    assert len(set(found.tolist())) == len(words)


def test_every_bit_of_a_seed_counts():
    """Flipping any of its 64 bits flips about half of the bits that come of it."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        seed = int(torch.randint(-(2**63), 2**63 - 1, (), generator=generator)) & WORD
        seeds = [seed, *(seed ^ (1 << bit) for bit in range(64))]
        words = Noise(seeds).words(Stream.TOKENS, 0, 1, 64).flatten(1)
        flipped = (words[1:] ^ words[:1])[..., None] >> torch.arange(64) & 1
        share = flipped.double().mean((1, 2))
        assert ((share - 0.5).abs() < 6 * 0.5 / 64).all()


def test_all_cells_or_some():
    noise = Noise([3, 4])
    every = noise.words(Stream.TOKENS, 2, 6, 5)
    some = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(
        noise.words(Stream.TOKENS, 2, some, 5), every.gather(1, some[..., None].expand(2, 2, 5))
    )
    assert torch.equal(noise.words(Stream.TOKENS, 2, 6, 3), every[..., :3])


def test_an_image_alone_and_seeds_as_a_tensor():
    both = Noise([3, 2**63 + 4])
    assert torch.equal(
        Noise([2**63 + 4]).words(Stream.ORDER, 0, 4, 2)[0], both.words(Stream.ORDER, 0, 4, 2)[1]
    )
    assert torch.equal(Noise(both.seeds).words(Stream.ORDER, 0, 4, 2), both.words(Stream.ORDER, 0, 4, 2))


# ------------------------------------------------------------------ what is made of it


def test_the_ends_of_the_interval():
    words = torch.tensor([0, -1, 1, signed(1 << 63)])
    found = uniform(words)
    assert found.tolist() == [2**-53, 1 - 2**-53, 2**-53, 0.5 + 2**-53]
    assert exponential(words).tolist() == [-math.log(u) for u in found.tolist()]


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**64 - 1])
def test_uniform_exponential_and_normal_numbers(seed: int):
    words = Noise([seed]).words(Stream.TOKENS, 0, 400, 500).flatten()
    u = uniform(words)
    counts = torch.histc(u, 1000, 0, 1)
    assert float(((counts - 200).square() / 200).sum()) < 999 + 6 * math.sqrt(2 * 999)
    e = exponential(words)
    assert abs(float(e.mean()) - 1) < 6 / math.sqrt(len(e))
    n = Noise([seed]).normal(Stream.RESIDUAL, 0, 400, 500).double().flatten()
    assert n.dtype == torch.float64
    in_units = torch.histc((1 + torch.erf(n / math.sqrt(2))) / 2, 1000, 0, 1)
    assert float(((in_units - 200).square() / 200).sum()) < 999 + 6 * math.sqrt(2 * 999)


def rows_of_neighbours(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Uniform numbers, and those of a neighbour in one argument."""
    noise = Noise(range(seed, seed + 101))

    def numbers(stream: Stream = Stream.TOKENS, step: int = 3) -> Tensor:
        return uniform(noise.words(stream, step, 33, 33))

    own = numbers()
    return {
        "seed": (own[:-1], own[1:]),
        "stream": (own, numbers(stream=Stream.MIXTURES)),
        "step": (own, numbers(step=4)),
        "cell": (own[:, :-1], own[:, 1:]),
        "entry": (own[..., :-1], own[..., 1:]),
        "cell and entry": (own[:, 1:, :-1], own[:, :-1, 1:]),
    }


@pytest.mark.parametrize("seed", [0, 10**6, 2**63 - 50])
def test_neighbours_are_independent(seed: int):
    """Serial correlation, and a chi-squared of 16 x 16 fields, over about 100,000 pairs each."""
    for name, (x, y) in rows_of_neighbours(seed).items():
        x, y = x.flatten(), y.flatten()
        assert len(x) > 100_000
        correlation = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(len(x)), name
        fields = ((x * 16).long() * 16 + (y * 16).long()).bincount(minlength=256).double()
        expected = len(x) / 256
        statistic = float(((fields - expected).square() / expected).sum())
        assert abs(statistic - 255) < 5 * math.sqrt(2 * 255), name
