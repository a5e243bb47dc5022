"""Learning rate and weight decay against recorded values and the formulas of the published recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from nextscale.errors import InvalidArgumentError
from nextscale.training.schedule import learning_rate, weight_decay

END = 0.1
TURN = 0.4
MIDDLE = (1 + END + (1 - END) * (1 - TURN)) / 2

# What is left of the peak at u, the fraction of the iterations after warm-up.
FORMULAS: dict[str, Callable[[float], float]] = {
    "cos": lambda u: END + (1 - END) * (0.5 + 0.5 * math.cos(math.pi * u)),
    "lin": lambda u: 1 if u < 0.15 else END + (1 - END) * (1 - u) / 0.85,
    "lin0": lambda u: 1 if u < 0.05 else END + (1 - END) * (1 - u) / 0.95,
    "lin00": lambda u: END + (1 - END) * (1 - u),
    "exp": lambda u: 1 if u < 0.15 else END ** ((u - 0.15) / 0.85),
    f"lin{TURN}": lambda u: (
        1 + (MIDDLE - 1) * u / TURN if u < TURN else END + (MIDDLE - END) * (1 - u) / (1 - TURN)
    ),
}


def test_recorded_values(golden: Path):
    schedules = json.loads((golden / "var" / "lr_schedule" / "config.json").read_text())["schedules"]
    assert {s["sche"] for s in schedules} == {"lin0", "cos"}
    for s in schedules:
        for row in s["rows"]:
            found = learning_rate(
                row["it"],
                peak=s["peak_lr"],
                warmup=s["warmup_it"],
                total=s["max_it"],
                shape=s["sche"],
                start=s["wp0"],
                end=s["wpe"],
            )
            assert found == pytest.approx(row["lr"], rel=1e-9)
            decay = weight_decay(row["it"], start=s["wd"], end=s["wd_end"], total=s["max_it"])
            assert decay == pytest.approx(row["weight_decay"], rel=1e-9)


@pytest.mark.parametrize("shape", FORMULAS)
def test_every_shape_by_its_formula(shape: str):
    peak, warmup, total = 3e-4, 20, 221
    found = [
        learning_rate(i, peak=peak, warmup=warmup, total=total, shape=shape, end=END) for i in range(total)
    ]
    rising = [peak * (0.005 + 0.995 * i / warmup) for i in range(warmup)]
    falling = [peak * FORMULAS[shape](i / (total - 1 - warmup)) for i in range(total - warmup)]
    assert found == pytest.approx(rising + falling, rel=1e-9)
    assert found[0] == pytest.approx(0.005 * peak)
    assert found[warmup] == pytest.approx(peak)
    assert found[-1] == pytest.approx(END * peak)
    assert all(b <= a for a, b in zip(found[warmup:], found[warmup + 1 :], strict=False))


def test_weight_decay_goes_from_start_to_end():
    values = [weight_decay(i, start=0.05, end=0.08, total=101) for i in range(101)]
    assert (values[0], values[50], values[100]) == pytest.approx((0.05, 0.065, 0.08))
    assert values == sorted(values)


def test_short_runs():
    assert learning_rate(0, peak=1.0, warmup=0, total=1) == pytest.approx(1.0)
    assert weight_decay(0, start=0.05, end=0.08, total=1) == pytest.approx(0.05)


@pytest.mark.parametrize("shape", ["linear", "lin2", "lin-1", "step", "", "0.5", "linnan"])
def test_unknown_shapes(shape: str):
    with pytest.raises(InvalidArgumentError, match=r"unknown schedule .*; known: cos, lin, lin0"):
        learning_rate(5, peak=1.0, warmup=0, total=10, shape=shape)
