from __future__ import annotations

import pytest

from nextscale.benchmark.arms import published_sizes
from nextscale.benchmark.counts import count
from nextscale.errors import InvalidArgumentError


def products(depth: int, tokens: int) -> int:
    """Of a block's four linear layers, 12 C^2 multiplications a token, and of the head."""
    width = 64 * depth
    return 2 * tokens * (12 * width * width * depth + 4096 * width)


@pytest.mark.parametrize(("guided", "rows"), [(True, 2), (False, 1)])
def test_steps_are_products_attention_and_the_embedding_of_what_comes_next(guided: bool, rows: int) -> None:
    depth, batch = 4, 3
    counts = count(*published_sizes(depth, 256), batch=batch, guided=guided)
    seen = 0
    for step in counts.steps:
        tokens = step.grid[0] * step.grid[1]
        seen += tokens
        attention = 2 * 2 * rows * batch * tokens * seen * 64 * depth * depth
        modulation = 2 * rows * batch * (64 * depth) * (2 * 64 * depth)  # of the norm before the head
        assert step.flops == products(depth, rows * batch * tokens) + attention + modulation
        assert step.cache_bytes == 4 * 2 * rows * batch * seen * 64 * depth * depth
    assert seen == 680
    assert counts.condition_flops == 2 * rows * batch * 6 * (64 * depth) ** 2 * depth


def test_the_published_d16_takes_what_is_known() -> None:
    counts = count(*published_sizes(16, 256))
    assert counts.transformer_flops == pytest.approx(0.58e12, rel=0.05)
    # 3x3 convolutions from fine to coarse, in units of 160^2 * 9 * 256^2 multiplications:
    # six, three halves and one more, one, three halves, one, and what is on grids of 32 and less.
    largest = 2 * 160 * 160 * 9 * 256 * 256
    assert counts.decoder_flops == pytest.approx(largest * (6 + 1.75 + 1 + 1.5 + 1 + 0.44 + 1.13), rel=0.02)
    assert counts.steps[0].weight_bytes / 4 == pytest.approx(208e6, rel=0.02)  # 310 M less the condition's


def test_sizes_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="size must be one of 256, 512"):
        published_sizes(16, 300)
    with pytest.raises(InvalidArgumentError, match="depth must be at least 1, got 0"):
        published_sizes(0, 256)
