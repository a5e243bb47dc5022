"""Precision, recall, density, coverage: golden cases, ties, and independence of blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.neighbours import ManifoldScores, manifold_scores, squared_radii

NAMES = ("precision", "recall", "density", "coverage")


def figures(scores: ManifoldScores) -> dict[str, float]:
    return {name: getattr(scores, name) for name in NAMES}


def directly(gen: Tensor, ref: Tensor, k: int, density_k: int, inclusive: bool) -> dict[str, float]:
    """The definitions, word by word, from all distances at once."""
    gen, ref = gen.double(), ref.double()

    def distances(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] - b).square().sum(-1)

    def radius(x: Tensor, nearest: int) -> Tensor:
        return distances(x, x).fill_diagonal_(torch.inf).sort(1).values[:, nearest - 1]

    across = distances(gen, ref)
    inside = across <= radius(ref, k) if inclusive else across < radius(ref, k)
    own = radius(gen, k)[:, None]
    recalled = across <= own if inclusive else across < own
    dense = across < radius(ref, density_k)
    return {
        "precision": float(inside.any(1).double().mean()),
        "recall": float(recalled.any(0).double().mean()),
        "density": float(dense.sum(1).double().mean()) / density_k,
        "coverage": float(dense.any(0).double().mean()),
    }


@pytest.mark.parametrize("block", [2048, 48])
def test_golden(block: int, tensors: dict[str, Tensor], expected: dict[str, Any]):
    gen, ref = tensors["gen"], tensors["ref"]
    for name, k in {"k3": 3, "k5": 5}.items():
        found = manifold_scores(gen, ref, k=k, density_k=k, block=block)
        assert figures(found) == pytest.approx(expected["manifold"][name], abs=expected["manifold"]["atol"])
    for points, name in ((ref, "radius2_ref_k3"), (gen, "radius2_gen_k3")):
        assert torch.allclose(squared_radii(points, (3,), block=block)[0], tensors[name], rtol=1e-10)


@pytest.mark.parametrize("block", [2048, 5])
@pytest.mark.parametrize("rule", ["inclusive", "strict"])
def test_ties(rule: str, block: int, tensors: dict[str, Tensor], expected: dict[str, Any]):
    inclusive, k = rule == "inclusive", expected["ties"]["k"]
    gen, ref = tensors["ties_gen"], tensors["ties_ref"]
    options = {"inclusive": inclusive, "density_inclusive": inclusive, "block": block}
    for scale in (1.0, 0.1):  # tenths are not exact in binary, and ties stay ties all the same
        found = manifold_scores(gen.double() * scale, ref.double() * scale, k=k, density_k=k, **options)
        assert figures(found) == pytest.approx(expected["ties"][rule], abs=expected["ties"]["atol"])


BLOCKS = st.sampled_from([7, 16, 64])

# Small whole numbers: full of ties and copies, and exact in any arithmetic.
whole = st.integers(1, 3).flatmap(
    lambda d: st.tuples(
        *(
            st.lists(st.lists(st.integers(-3, 3), min_size=d, max_size=d), min_size=6, max_size=25)
            for _ in "ab"
        )
    )
)


@given(whole, st.integers(1, 5), st.integers(1, 5), st.booleans(), BLOCKS)
def test_definitions_hold_for_ties_and_any_block(
    sets: Any, k: int, density_k: int, inclusive: bool, block: int
):
    gen, ref = (torch.tensor(rows, dtype=torch.float32) for rows in sets)
    options = {"k": k, "density_k": density_k, "inclusive": inclusive}
    found = manifold_scores(gen, ref, block=block, **options)
    assert figures(found) == pytest.approx(directly(gen, ref, **options), abs=1e-12)


@given(st.integers(0, 2**31), BLOCKS)
def test_order_shift_and_blocks_do_not_matter(seed: int, block: int):
    generator = torch.Generator().manual_seed(seed)
    gen, ref = (torch.randn(n, 5, generator=generator) for n in (30, 34))
    found = manifold_scores(gen, ref)
    orders = [torch.randperm(n, generator=generator) for n in (30, 34)]
    moved = manifold_scores(gen.double()[orders[0]] + 7, ref.double()[orders[1]] + 7, block=block)
    assert torch.equal(moved.precise, found.precise[orders[0]])
    assert torch.equal(moved.density_of, found.density_of[orders[0]])
    assert torch.equal(moved.recalled, found.recalled[orders[1]])
    assert torch.equal(moved.covered, found.covered[orders[1]])


@given(st.integers(0, 2**31), BLOCKS)
def test_identical_and_distant_sets(seed: int, block: int):
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)) + 50
    same = manifold_scores(rows, rows.clone(), block=block)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(1)  # itself and the nearer k - 1, of k
    far = manifold_scores(rows + 1000, rows, block=block)
    assert figures(far) == dict.fromkeys(NAMES, 0)


def test_copies_are_neighbours_at_distance_zero():
    rows = torch.tensor([[0.1, 0.2]]).repeat(5, 1)
    radii = squared_radii(torch.cat([rows, torch.tensor([[1.1, 0.2]])]), (1, 4, 5), centre=torch.zeros(2))
    assert radii[1][:5].abs().max() < 1e-15 and radii[2][:5] == pytest.approx(torch.ones(5).double())
    assert manifold_scores(rows, rows, density_k=3).precision == 1


def test_too_few_images():
    rows = torch.zeros(5, 2)
    with pytest.raises(InvalidArgumentError, match="neighbour 5 of 5 images does not exist"):
        manifold_scores(rows, torch.zeros(9, 2), k=5)
    with pytest.raises(InvalidArgumentError, match="neighbour 0"):
        squared_radii(rows, (0,))
    with pytest.raises(InvalidArgumentError, match="with the same d"):
        manifold_scores(rows, torch.zeros(5, 3))
