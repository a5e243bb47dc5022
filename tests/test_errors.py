"""Warnings point at the caller's line, however deep inside of the library they arise."""

from __future__ import annotations

import pytest
import torch

from nextscale.errors import NextscaleWarning, warn
from nextscale.families.infinity.request import resolve_schedule


def test_a_warning_points_at_the_line_outside_of_the_library():
    with pytest.warns(NextscaleWarning, match="is no size of this model") as caught:
        resolve_schedule("1M", height=1000, width=1000)
    assert caught[0].filename == __file__


def test_decorators_of_torch_are_passed_over():
    with pytest.warns(NextscaleWarning) as caught:
        torch.no_grad()(resolve_schedule)("1M", height=1000, width=1000)
    assert caught[0].filename == __file__


def test_a_warning_from_here_points_here():
    with pytest.warns(NextscaleWarning, match="something") as caught:
        warn("something")
    assert caught[0].filename == __file__
