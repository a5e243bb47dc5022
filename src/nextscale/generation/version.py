"""Which random numbers are behind a picture, and what to say of those that an earlier version drew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 2
"""Of the numbers behind an image, stored with its settings; raised when a seed comes to mean another picture.

1, which was not stored, drew by inverse CDF over sorted probabilities, from PyTorch's generators.
"""


def version_note(settings: Mapping[str, Any]) -> str | None:
    """Say why a picture with these settings cannot be made again to the bit, or None if it can.

    settings: as an output's, or as a file holds them, of any version of the library.
    """
    stored = settings.get("sampler_version", 1)
    elsewhere = settings.get("residual") or settings.get("mask_iterations", 1) not in (None, 1)
    mixed = settings.get("more_smooth") and settings.get("sampler") != "multinomial"
    if stored == VERSION or not (settings.get("sampler", "paired") == "paired" or elsewhere or mixed):
        return None
    return (
        f"its random numbers were drawn in another way (version {stored!r} of the sampler; this is "
        f"{VERSION}), so that it cannot be made again to the bit: the same settings and seeds give another "
        f"picture now"
    )
