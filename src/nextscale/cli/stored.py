"""The settings in a picture: read with bounds, since pictures come from anywhere.

Whatever a file says is checked here, before a model is loaded or anything is made as large as it asks for.
What a model allows is smaller, and checked by its pipeline.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nextscale.cli.checks import (
    LIMITS,
    MAX_BATCH,
    MAX_COLUMNS,
    MAX_PICTURES,
    MAX_PIXELS,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    shown,
)
from nextscale.cli.subjects import are_subjects, is_text, stored_key
from nextscale.cli.values import MAX_ZOOM
from nextscale.errors import InvalidArgumentError

CHUNK = "nextscale"
MAX_TEXT = 1 << 20  # characters of all settings
MAX_NAME = 4_096  # characters
MAX_DEPTH = 8  # of JSON in JSON; ours has four
MAX_BATCH_AGAIN = 1_024  # pictures of the batch that a single one was made in, which is drawn as a whole
MAX_CELLS = 1 << 16  # of all grids together
LEAST_PICTURE = 16  # pixels that a picture takes of its file


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a picture that nextscale wrote.

    Raises InvalidArgumentError if it is no picture, holds none, or settings that cannot be.
    """
    text, pixels = _text_of(path)
    try:
        settings = json.loads(text, parse_constant=_no_number)
        wrong = _first_wrong(settings, pixels)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else error
        raise InvalidArgumentError(f"the settings in {str(path)!r} are damaged: {reason}") from None
    if wrong:
        raise InvalidArgumentError(f"the settings in {str(path)!r} are damaged: {wrong}")
    return dict(settings)


def _text_of(path: Path) -> tuple[str, int]:
    """The text of our chunk, and how many pixels the picture has."""
    from PIL import Image, UnidentifiedImageError

    try:
        with _own_limit(), Image.open(path) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise InvalidArgumentError(
                    f"{str(path)!r} has {image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} "
                    f"of the largest picture that nextscale writes"
                )
            text = image.info.get(CHUNK)
            if text is None:  # other programs move text behind the pixels
                image.load()
                text = image.info.get(CHUNK)
    except FileNotFoundError:
        raise InvalidArgumentError(f"no such picture: {str(path)!r}") from None
    except InvalidArgumentError:
        raise
    except (
        *(UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError),
        *(EOFError, MemoryError, OverflowError),
    ) as error:
        raise InvalidArgumentError(f"{str(path)!r} cannot be read as a picture: {error}") from None
    if text is None:
        raise InvalidArgumentError(
            f"{str(path)!r} holds no settings: it was not written by nextscale, or a program dropped its text"
        )
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise InvalidArgumentError(f"the settings in {str(path)!r} are damaged: {len(text):,} characters")
    return text, pixels


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Without Pillow's warning of large pictures: ours are smaller, which is checked before they are read."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


# ---------------------------------------------------------------------------- kinds of values

Check = Callable[[Any], bool]


def _whole(least: int, most: int) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e9


def _text(value: Any) -> bool:
    return isinstance(value, str) and is_text(value)


def _name(value: Any) -> bool:
    """Tell whether a text can name a file or a kind: one line, short enough for any system."""
    return isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()


def _switch(value: Any) -> bool:
    return isinstance(value, bool)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _one_or_per_step(check: Check) -> Check:
    return lambda value: (
        0 < len(value) <= MAX_STEPS and all(map(check, value)) if isinstance(value, list) else check(value)
    )


def _per_picture(check: Check, most: int) -> Check:
    return lambda value: isinstance(value, list) and 0 < len(value) <= most and all(map(check, value))


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def _guidance(value: Any) -> bool:
    """Settings of a method: names with a text, a number, numbers per step, or nothing."""
    part = _either(_text, _one_or_per_step(_number), lambda v: v is None)
    return isinstance(value, dict) and len(value) <= 16 and all(map(part, value.values()))


def _grids(value: Any) -> bool:
    side = _whole(1, MAX_SIDE)
    if not isinstance(value, list) or not 0 < len(value) <= MAX_STEPS:
        return False
    pairs = [[grid, grid] if type(grid) is int else grid for grid in value]
    if not all(isinstance(p, list) and len(p) == 2 and all(map(side, p)) for p in pairs):
        return False
    return sum(math.prod(p) for p in pairs) <= MAX_CELLS


_COMMANDS = ("generate", "compare")  # those that store settings
# Everything else that names a model is a name.
_SOURCE = {"depth": _whole(1, LIMITS["depth"]), "averaged": _switch}
_LAYOUT = {"columns": _whole(1, MAX_COLUMNS), "zoom": _whole(1, MAX_ZOOM)}
_SEEDS = _per_picture(_whole(0, MAX_SEED), MAX_PICTURES)
_TOP_K = _one_or_per_step(_whole(0, 2**63 - 1))
_LAYER = _whole(-LIMITS["guidance_layer"], LIMITS["guidance_layer"])
_NEEDED: Mapping[str, Check] = {
    "command": lambda v: v in _COMMANDS,
    "source": lambda v: isinstance(v, dict) and all(_SOURCE.get(k, _name)(x) for k, x in v.items()),
    "seeds": _SEEDS,
    "layout": lambda v: isinstance(v, dict) and all(k in _LAYOUT and _LAYOUT[k](x) for k, x in v.items()),
    "guidance_scale": _guidance,
}
# What may be missing, or null. What stands in no table is not used.
_KNOWN: Mapping[str, Check] = {
    **dict.fromkeys(("nextscale", "family", "model", "dtype", "sampler", "pixels", "weights"), _name),
    **dict.fromkeys(("top_p", "min_p"), _number),
    **dict.fromkeys(("more_smooth", "residual"), _switch),
    **{name: _whole(1, LIMITS[name]) for name in ("height", "width", "tile", "mask_iterations")},
    "ssg": _guidance,
    "arms": _per_picture(lambda v: v is None or _guidance(v), 100),
    "top_k": _TOP_K,
    "temperature": _one_or_per_step(_number),
    "guidance_layer": _one_or_per_step(_LAYER),
    "aspect_ratio": _either(_text, _number),
    "schedule": _grids,
    "stop_after": _whole(1, MAX_STEPS),
    "negative_prompt": _either(_text, _per_picture(_text, MAX_PICTURES)),
    "batch_size": _whole(1, MAX_BATCH),
    "sampler_version": _whole(1, 1_000),
    "batch": _object,
}


def _first_wrong(settings: object, pixels: int) -> str:
    """Say what cannot be, or nothing if all can. pixels: of the picture that holds the settings."""
    if not isinstance(settings, dict):
        return "no JSON object"
    if _depth(settings) > MAX_DEPTH:
        return "too deep"
    for name, check in _NEEDED.items():
        if not check(settings.get(name)):
            return f"{name} is {shown(repr(settings.get(name)))}"
    for name, check in _KNOWN.items():
        if settings.get(name) is not None and not check(settings[name]):
            return f"{name} is {shown(repr(settings[name]))}"
    if len(settings["seeds"]) * LEAST_PICTURE > pixels:
        return f"{len(settings['seeds'])} pictures are in no file of {pixels} pixels"
    return _wrong_pictures(settings) or _wrong_batch(settings)


def _depth(value: object) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)


def _wrong_pictures(settings: Mapping[str, Any], key: str = "") -> str:
    """Check what a picture shows, under the name of the key or any, and a seed for each."""
    key = key or stored_key(settings)
    if not key:
        return "what it shows is missing"
    shows: Any = settings.get(key)
    seeds: Any = settings.get("seeds")
    if not are_subjects(key, shows) or len(shows) > MAX_PICTURES or not all(map(is_text, map(str, shows))):
        return f"{key} is {shown(repr(shows))}"
    if not _SEEDS(seeds):
        return f"seeds is {shown(repr(seeds))}"
    if len(shows) != len(seeds):
        return f"{len(seeds)} seeds are for {len(shows)} {key}"
    return ""


def _wrong_batch(settings: Mapping[str, Any]) -> str:
    batch = settings.get("batch")
    if batch is None:
        return ""
    key = stored_key(settings)
    wrong = _wrong_pictures(batch, key)
    if not wrong and len(batch["seeds"]) > MAX_BATCH_AGAIN:
        return f"a batch of {len(batch['seeds'])} pictures"
    if not wrong and (type(batch.get("index")) is not int or not 0 <= batch["index"] < len(batch["seeds"])):
        return f"index is {shown(repr(batch.get('index')))}"
    return wrong
