"""What a visitor may ask for, checked on the server, whatever the page in the browser allows."""

from __future__ import annotations

import math
import re
from typing import Any

from nextscale.errors import InvalidArgumentError

PICTURES = 8
"""Pictures of one page; each is drawn without and with SSG."""
PROMPT = 400
"""Characters of one prompt."""
QUERY = 8000
"""Characters of all settings together, as a URL holds them."""
STEPS = 64
"""Strengths that may be given one by one; a model may have fewer steps, and then asks for fewer."""
BETA, GUIDANCE_SCALE, TOP_K = 20.0, 50.0, 1_000_000
TEMPERATURE = (0.01, 20.0)
QUEUE = 200
"""Requests that may wait at once; further ones are turned away with a message."""
UPLOAD = 16 * 2**20
"""Bytes of a picture that is opened."""
GALLERY = 40
"""Entries of one visit's gallery."""
VISITS = 200
"""Visits whose pictures are kept; the one that was idle longest goes first."""

_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,40}\s*")  # not 7_3, which Python reads as 73


def number(value: Any, name: str, least: float, most: float, words: str = "") -> float:
    """A finite number between two, both included, from a number or its text.

    words: what else the setting may be, for the message.
    Raises InvalidArgumentError, naming the value and the range.
    """
    try:
        found = float(value) if not isinstance(value, bool) and "_" not in str(value) else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not least <= found <= most:  # false for NaN too
        raise InvalidArgumentError(
            f"{name} is a number from {least:g} to {most:g}{words}, got {shown(value)}"
        )
    return found


def whole(value: Any, name: str, least: int, most: int) -> int:
    """The same for whole numbers, up to the last digit."""
    found = value if isinstance(value, int) and not isinstance(value, bool) else None
    is_text = isinstance(value, str) and _WHOLE.fullmatch(value)
    if is_text or (isinstance(value, float) and value.is_integer()):
        found = int(value)
    if found is None or not least <= found <= most:
        raise InvalidArgumentError(f"{name} is a whole number from {least} to {most}, got {shown(value)}")
    return found


def one_of(value: Any, name: str, known: tuple[str, ...]) -> str:
    """One of some words. Raises InvalidArgumentError, listing them."""
    if value not in known:
        raise InvalidArgumentError(f"unknown {name} {shown(value)}; choose one of {', '.join(known)}")
    return str(value)


def text(value: Any, name: str, most: int = PROMPT) -> str:
    """A text of a bounded length. Raises InvalidArgumentError for anything else."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} is a text, got {shown(value)}")
    if len(value) > most:
        raise InvalidArgumentError(f"{name} has {len(value)} characters; the page takes at most {most}")
    return value


def shown(value: Any) -> str:
    """A value as a message quotes it: in one line, and shortened."""
    line = repr(value)
    return line if len(line) <= 60 else f"{line[:57]}…"
