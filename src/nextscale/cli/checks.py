"""Checks of everything that is typed, for all options of all commands, before any of it is used.

An empty value is a mistake, a shell variable that is not set most often, and never the same as leaving an
option out. A number that cannot be meant is refused here rather than by the memory of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nextscale.errors import InvalidArgumentError

MAX_PICTURES = 10_000  # of one sheet; runs into a folder make any number
MAX_COLUMNS = 9_999
MAX_BATCH = 65_536
MAX_IMAGES = 10_000_000
MAX_SEED = 2**64 - 1
MAX_SIDE = 1_024  # cells of a grid
MAX_STEPS = 64
MAX_PIXELS = 80_000_000  # of a picture file; Pillow warns of larger ones as attacks on memory
LARGEST = 2**31 - 1  # where nothing smaller is said

# The largest whole number that each option takes, by the name of its parameter. What a model, a file or
# another option allows is checked where that is known, and is smaller.
LIMITS: Mapping[str, int] = {
    "accumulate": MAX_BATCH,
    "batch_size": MAX_BATCH,
    "budget": 1_000_000_000,
    "columns": MAX_COLUMNS,
    "count": 1_000_000_000,
    "depth": 1_000,
    "guidance_layer": 1_000,
    "height": 65_536,
    "images": MAX_IMAGES,
    "mask_iterations": 65_536,
    "repeats": 10_000,
    "replicates": 1_000_000,
    "seed": MAX_SEED,
    "seed_sets": 1_000,
    "sets": 1_000,
    "shard_size": MAX_IMAGES,
    "size": 16_384,
    "ssg_start": 1_000,
    "ssg_stop": 1_000,
    "threads": 4_096,
    "tile": 65_536,
    "width": 65_536,
}
WORDING = ("words", "prompt", "negative_prompt")  # texts to draw; models say what they make of spaces
IN_TRAINING: Mapping[str, int] = {"images": 1_000_000_000_000}  # they are seen again and again


def check_texts(typed: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Refuse empty values.

    typed: what stands on the command line, by parameter, before it is read as numbers or paths. names: how
    each is called there. Raises InvalidArgumentError naming the option.
    """
    for parameter, value in typed.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        blank = (isinstance(v, str) and not (v if parameter in WORDING else v.strip()) for v in several)
        if parameter in names and any(blank):
            raise InvalidArgumentError(
                f"{names[parameter]} is empty; give it a value or leave it out (a shell variable that is not "
                f"set, perhaps)"
            )


def check_numbers(values: Mapping[str, Any], names: Mapping[str, str], *, training: bool = False) -> None:
    """Refuse numbers that cannot be meant: far too large, infinite, or none.

    values: as read, by parameter. training: whether the command trains.
    Raises InvalidArgumentError naming the option, the number and the largest one.
    """
    limits = {**LIMITS, **(IN_TRAINING if training else {})}
    for parameter, value in values.items():
        if isinstance(value, bool) or parameter not in names:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidArgumentError(f"{names[parameter]} must be a finite number, got {value}")
        most = limits.get(parameter, LARGEST)
        if isinstance(value, int) and abs(value) > most:
            least_or_most = f"at most {most:,}" if value > 0 else f"at least {-most:,}"
            raise InvalidArgumentError(f"{names[parameter]} must be {least_or_most}, got {shown(value)}")


def shown(value: object) -> str:
    """A value as a message quotes it: shortened, however long it is."""
    try:
        text = str(value)
    except ValueError:  # a number of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:20]}…{text[-10:]}"
