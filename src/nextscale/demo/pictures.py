"""Pictures as the page shows them: as data URIs, enlarged without blur, and as differences."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.Image import Resampling

Difference = Literal["signed", "absolute"]
DIFFERENCES: tuple[str, ...] = ("signed", "absolute")
GAINS = (1, 2, 4, 8)


def data_uri(image: Image.Image) -> str:
    """A picture inside of the page itself, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """At most ``side`` pixels a side; smaller pictures as they are."""
    if max(image.size) <= side:
        return image
    share = side / max(image.size)
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Resampling.LANCZOS)


def difference(plain: Image.Image, guided: Image.Image, kind: Difference, gain: int) -> Image.Image:
    """What changed, channel by channel, ``gain`` times as strong.

    signed: mid-grey (128) where nothing changed, lighter where ``guided`` is lighter. absolute: black where
    nothing changed. Beyond the range of 8 bits it is cut off.
    """
    change: Any = np.asarray(guided, dtype=np.int32) - np.asarray(plain, dtype=np.int32)
    shown = 128 + gain * change if kind == "signed" else gain * abs(change)
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def scale_of(kind: Difference, gain: int) -> str:
    """How to read a difference, in words."""
    if kind == "signed":
        return (
            f"guided minus plain, ×{gain}: mid-grey is no change, white is {127 / gain:.0f} or more of 255 "
            f"levels lighter, black as much darker"
        )
    return (
        f"size of the change, ×{gain}: black is none, full colour is {255 / gain:.0f} or more of 255 levels"
    )


def mean_change(plain: Image.Image, guided: Image.Image) -> float:
    """The mean absolute difference, in levels of 255."""
    change: Any = np.asarray(guided, dtype=np.int32) - np.asarray(plain, dtype=np.int32)
    return float(abs(change).mean())
