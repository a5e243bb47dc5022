"""Picture files: grids, settings in the PNG text chunk ``nextscale``, and files that are whole or absent."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.cli.progress import note
from nextscale.cli.subjects import are_subjects, stored_key
from nextscale.errors import InvalidArgumentError
from nextscale.generation.version import version_note

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = "nextscale"
WHITE = (255, 255, 255)


def check_target(path: Path) -> None:
    """Raises InvalidArgumentError if a PNG cannot be written there: asked before the work, not after it."""
    if path.suffix.lower() != ".png":
        raise InvalidArgumentError(
            f"pictures are PNG files; give a name that ends in .png, got {str(path)!r}"
        )
    if path.is_dir():
        raise InvalidArgumentError(f"{str(path)!r} is a folder; give the name of a file")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Raises InvalidArgumentError if a folder is missing or must not be written to."""
    if not folder.is_dir():
        raise InvalidArgumentError(f"the folder {str(folder)!r} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise InvalidArgumentError(f"the folder {str(folder)!r} cannot be written to")


def check_separate(folder: Path) -> None:
    """The same for a folder of single pictures, which is made if only its parent exists."""
    if folder.exists() and not folder.is_dir():
        raise InvalidArgumentError(f"{str(folder)!r} is a file; --separate takes a folder")
    check_folder(folder if folder.exists() else folder.absolute().parent)


def free_name(name: str) -> Path:
    """``a.png``, or ``a-2.png`` where that exists, and so on: a default overwrites nothing."""
    path, number = Path(name), 1
    while path.exists():
        number += 1
        path = Path(name).with_stem(f"{Path(name).stem}-{number}")
    return path


def save_png(image: Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a picture with its settings, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(CHUNK, json.dumps(settings))
    partial = path.with_name(f".{path.name}.partial")
    try:
        image.save(partial, format="PNG", pnginfo=text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a picture that nextscale wrote.

    Raises InvalidArgumentError if it is no picture, or holds none.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get(CHUNK)
            if text is None:  # other programs move text behind the pixels
                image.load()
                text = image.info.get(CHUNK)
    except FileNotFoundError:
        raise InvalidArgumentError(f"no such picture: {str(path)!r}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InvalidArgumentError(f"{str(path)!r} cannot be read as a picture: {error}") from None
    if text is None:
        raise InvalidArgumentError(
            f"{str(path)!r} holds no settings: it was not written by nextscale, or a program dropped its text"
        )
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(f"the settings in {str(path)!r} are damaged: {error}") from None
    wrong = _first_wrong(settings)
    if wrong:
        raise InvalidArgumentError(f"the settings in {str(path)!r} are damaged: {wrong}")
    return dict(settings)


def note_version(path: Path, settings: Mapping[str, Any]) -> None:
    """Say so, on the error stream, if the sampler of an earlier version drew a picture."""
    changed = version_note(settings)
    if changed is not None:
        note(f"note: {path}: {changed}")


_NEEDED = {
    "command": str,
    "source": dict,
    "seeds": list,
    "layout": dict,
    "guidance_scale": dict,
}


def _first_wrong(settings: object) -> str:
    if not isinstance(settings, dict):
        return "no JSON object"
    for name, kind in _NEEDED.items():
        if not isinstance(settings.get(name), kind):
            return f"{name} is {settings.get(name)!r}"
    if not isinstance(settings.get("ssg"), dict | None):
        return f"ssg is {settings['ssg']!r}"
    layout, source = settings.get("layout", {}), settings.get("source", {})
    if not isinstance(layout, dict) or not all(
        isinstance(n, int) and 0 < n < 10_000 for n in layout.values()
    ):
        return f"layout is {layout!r}"
    if not isinstance(source, dict) or any(
        type(v) is not (int if k == "depth" else str) for k, v in source.items()
    ):
        return f"source is {source!r}"
    if not isinstance(settings.get("batch_size", 1), int):
        return f"batch_size is {settings['batch_size']!r}"
    batch = settings.get("batch", settings)
    return _wrong_pictures(settings) or (_wrong_batch(settings, batch) if batch is not settings else "")


def _wrong_pictures(settings: Mapping[str, Any], key: str = "") -> str:
    """What a picture shows, under the name of the key or any, and a seed for each."""
    key = key or stored_key(settings)
    if not key:
        return "what it shows is missing"
    shown, seeds = settings.get(key), settings.get("seeds")
    if not are_subjects(key, shown):
        return f"{key} is {shown!r}"
    if not seeds or not isinstance(seeds, list) or not all(type(n) is int for n in seeds):
        return f"seeds is {seeds!r}"
    return ""


def _wrong_batch(settings: Mapping[str, Any], batch: object) -> str:
    if not isinstance(batch, dict):
        return f"batch is {batch!r}"
    key = stored_key(settings)
    wrong = _wrong_pictures(batch, key)
    if not wrong and batch.get("index") not in range(len(batch[key])):
        return f"index is {batch.get('index')!r}"
    return wrong


def auto_zoom(size: tuple[int, int]) -> int:
    """How much to enlarge pictures of this size to see something: 4 for 32 pixels, 1 from 128 on."""
    return max(1, 128 // max(size))


def auto_columns(count: int, per_label: int = 1) -> int:
    """Columns of a grid: a row per label where labels repeat, else as near to 2:1 as fills all rows."""
    if per_label > 1:
        return per_label
    if count <= 5:
        return count
    full = [c for c in range(1, count) if count % c == 0 and count <= c * c <= 4 * count]
    return full[0] if full else math.isqrt(count - 1) + 1


def enlarge(image: Image, zoom: int) -> Image:
    """Every pixel as ``zoom x zoom`` pixels."""
    from PIL.Image import Resampling

    return image.resize((image.width * zoom, image.height * zoom), Resampling.NEAREST) if zoom > 1 else image


def grid(images: Sequence[Image], *, columns: int, zoom: int) -> Image:
    """Pictures of one size, row by row, with white between them; a single one stands alone."""
    from PIL import Image

    tiles = [enlarge(image, zoom) for image in images]
    width, height = tiles[0].size
    gap = max(2, width // 32)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), WHITE)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet


def single_settings(settings: Mapping[str, Any], index: int, batch_size: int) -> dict[str, Any]:
    """The settings of one picture out of many.

    They name the batch it was made in, and its place there: the last bits of a product depend on the size of
    the matrices, and the multinomial sampler draws for the batch as a whole.
    """
    start = index - index % batch_size
    each = (stored_key(settings), "seeds")
    batch = {name: settings[name][start : start + batch_size] for name in each}
    return {
        **settings,
        **{name: [settings[name][index]] for name in each},
        "layout": {"columns": 1, "zoom": 1},
        "batch": {**batch, "index": index - start},
    }


def file_name(index: int, subject: str, seed: int, suffix: str = "") -> str:
    """``0003-cat-seed3.png``, in plain ASCII whatever is shown."""
    words = [f"{index:04d}", subject, f"seed{seed}", suffix]
    plain = [re.sub(r"[^a-z0-9.]+", "-", word.lower()).strip("-.") for word in words]
    return "-".join(word for word in plain if word) + ".png"
