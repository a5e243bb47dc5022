"""The reading of options' values: what a text means, or one line that names the option."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nextscale.cli.checks import LARGEST, MAX_SEED, shown
from nextscale.errors import InvalidArgumentError


def flag(name: str) -> str:
    """The option of a parameter."""
    return "--" + name.replace("_", "-")


def read_numbers(text: str, option: str) -> float | list[float]:
    """``"0.6"`` as a number, ``"0,0.3,0.6"`` as a list of them.

    Raises InvalidArgumentError naming the option and the text.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise InvalidArgumentError(
            f"{option} takes a number, or several separated by commas; got {shown(repr(text))}"
        )
    return values if len(values) > 1 else values[0]


def read_whole_numbers(text: str, option: str, most: int = LARGEST) -> list[int]:
    """``"7"`` or ``"7,3,5"``. Raises InvalidArgumentError naming the option and the text."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidArgumentError(
            f"{option} takes a whole number, or several separated by commas; got {shown(repr(text))}"
        ) from None
    for number in numbers:
        if abs(number) > most:
            raise InvalidArgumentError(f"{option} takes numbers up to {most:,}, got {shown(number)}")
    return numbers


def read_seeds(text: str) -> list[int]:
    """The numbers of ``--seed``. Raises InvalidArgumentError for what no seed can be, whatever is drawn."""
    numbers = read_whole_numbers(text, "--seed", MAX_SEED)
    if min(numbers) < 0:
        raise InvalidArgumentError(f"--seed: a seed is a whole number from 0 on, got {min(numbers)}")
    return numbers


def read_sides(text: str, option: str, most: int = LARGEST) -> list[int | tuple[int, int]]:
    """``"1,2x3"`` as ``[1, (2, 3)]``: sides of square grids, and height x width of others.

    Raises InvalidArgumentError naming the option and the text.
    """
    try:
        grids = [[int(side) for side in part.lower().split("x")] for part in text.split(",")]
        found = [sides[0] if len(sides) == 1 else _pair(sides) for sides in grids]
    except ValueError:
        raise InvalidArgumentError(
            f"{option} takes sides separated by commas, 1,2,3, or height x width, 1x1,1x4; got "
            f"{shown(repr(text))}"
        ) from None
    largest = max(side for sides in grids for side in sides)
    if largest > most:
        raise InvalidArgumentError(f"{option} takes numbers up to {most:,}, got {shown(largest)}")
    return found


def _pair(sides: list[int]) -> tuple[int, int]:
    height, width = sides
    return height, width


def read_pairs(text: str, option: str) -> dict[str, Any]:
    """``"num_heads=8,norm_eps=1e-5"``, or a JSON object, by name; values as JSON has them, else texts.

    Raises InvalidArgumentError naming the option and the text.
    """
    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text))
        pairs = [part.split("=", 1) for part in text.split(",")]
        return {name.strip(): _json(value.strip()) for name, value in pairs}
    except (ValueError, RecursionError):
        raise InvalidArgumentError(
            f"{option} takes NAME=VALUE, several separated by commas, or a JSON object; got {text!r}"
        ) from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


MAX_ZOOM = 64  # a sheet of larger tiles would not fit in memory, nor on a screen


def require_positive(numbers: Mapping[str, int | None]) -> None:
    """Raises InvalidArgumentError, naming the option, for a number below 1; ``None``, not given, is fine."""
    for option, value in numbers.items():
        if value is not None and value < 1:
            raise InvalidArgumentError(f"{option} must be at least 1, got {value}")
        if option == "--zoom" and value is not None and value > MAX_ZOOM:
            raise InvalidArgumentError(f"{option} must be at most {MAX_ZOOM}, got {value}")


def split_arms(texts: Sequence[str]) -> list[str]:
    """``["0", "0.3,0.6"]`` as ``["0", "0.3", "0.6"]``: the option may be repeated and may hold commas."""
    return [part.strip() for text in texts for part in text.split(",")]
