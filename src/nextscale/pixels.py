"""Pictures as 8-bit RGB: one rule for every kind that Pillow reads.

=====================================  =====================================================================
kind                                   what it becomes
=====================================  =====================================================================
8 bits a channel or fewer, palettes    as they are; grey in all three channels
transparency of any kind (RGBA, LA,    composed on white: what is not to be seen is white, whatever colour is
palettes, a transparent colour)        hidden there
16 bits a channel                      the upper 8 bits, so that 65535 is 255
12-bit grey TIFF, PGM of any maximum   scaled by the depth that the file states
grey where 0 is white (TIFF)           inverted
CMYK, YCbCr, LAB, HSV                  converted by Pillow's formula; colour profiles are not applied
EXIF orientation (also PNG, WebP, …)   applied
several frames or pages                the first one
16-bit grey with no value above 4095   refused: such files are mostly 12-bit data, and they do not say so
floating-point, 32-bit whole numbers   refused: no file says which number is white
=====================================  =====================================================================

Nothing is ever clipped. What is refused, cut off or broken raises DataError, which names the picture.
"""

from __future__ import annotations

import functools
import io
import struct
import textwrap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from nextscale.errors import DataError

BACKGROUND = (255, 255, 255)
LEAST_16_BIT = 4096  # a grey picture of 16 bits whose largest value is below holds 12 bits or fewer
ORIENTATION = 0x0112
MIRRORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
PHOTOMETRIC, BITS_PER_SAMPLE = 262, 258  # tags of a TIFF

# No pictures, or not without another program (Ghostscript runs what is in an EPS file), or upside down.
UNREAD = {"BUFR", "EPS", "FITS", "FPX", "GRIB", "HDF5", "IPTC", "MIC", "MPEG", "WMF"}
# Those that are known by their first bytes, for files whose names say nothing.
BY_CONTENT = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM", "AVIF")

# What Pillow's readers raise for bytes that are no picture, or a part of one.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError),
    *(ArithmeticError, RuntimeError, MemoryError, ImportError, struct.error, zlib.error),
    Image.DecompressionBombError,
)

Encoded = Path | bytes
"""A picture's file, or the bytes of one."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read, by Pillow's names, common ones first; those of plug-ins are among them."""
    Image.init()
    known = [name for name in Image.ID if name not in UNREAD]
    return tuple(sorted(known, key=lambda name: name not in BY_CONTENT))


@functools.cache
def suffixes() -> frozenset[str]:
    """The endings of their files, as in ``.jpeg``, in lower case."""
    known = formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def is_picture(path: Path) -> bool:
    """Tell pictures by their names, and files without a suffix by their first bytes."""
    if path.suffix:
        return path.suffix.lower() in suffixes()
    try:
        with Image.open(path, formats=[name for name in formats() if name in BY_CONTENT]):
            return True
    except DAMAGE:
        return False


def read_picture(source: Encoded, name: str | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB, by the rule of this module.

    name: for messages; a file's own by default.
    Raises DataError, naming it, for what is refused, cut off or broken.
    """
    name = name or str(source)
    try:
        with _open(source) as image:
            return to_rgb(image, name)
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"cannot read the picture {name}: {_reason(error, source)}") from None


def to_rgb(image: Image.Image, name: str = "it") -> Image.Image:
    """Convert a picture that Pillow has opened to 8-bit RGB, by the rule of this module.

    Raises DataError, naming it, for kinds that are refused.
    """
    check_kind(image, name)
    raw = _raw_mode(image)  # forgotten after loading
    image.load()
    orientation = _orientation(image)  # afterwards, because loading a TIFF applies it
    if _is_16_bit(image):
        found = _from_16_bit(image, raw, name)
    elif image.has_transparency_data:
        found = _on_background(_with_true_key(image, raw, name))
    else:
        found = image if image.mode == "RGB" else image.convert("RGB")
    return found.transpose(MIRRORED[orientation]) if orientation in MIRRORED else found


def check_kind(image: Image.Image, name: str) -> None:
    """Raise DataError for a kind of picture whose scale no file states; no pixels are needed for that."""
    if image.mode in (*PLAIN, *WITH_ALPHA) or _is_16_bit(image):
        return
    kinds = {"F": "floating-point numbers", "I": "32-bit whole numbers"}
    what = kinds.get(image.mode, f"pixels of the kind {image.mode!r}")
    raise DataError(
        f"{name} holds {what}, and no file says which of them is white; convert it to 8 or 16 bits first"
    )


def header_size(source: Encoded, name: str) -> tuple[tuple[int, int], bool]:
    """Read a picture's header: ``(width, height)`` as it will be read, and whether that settled it.

    What a header does not settle is whether the file is whole: JPEG, PNG, GIF and WebP say so at their end or
    beginning; of others, and of 16-bit grey, the pixels have to be read.
    Raises DataError as :func:`read_picture` does.
    """
    try:
        with _open(source) as image:
            check_kind(image, name)
            width, height = image.size
            if width != height and _header_orientation(image) >= 5:
                width, height = height, width
            return (width, height), _is_whole(image.format, source) and not _is_16_bit(image)
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"cannot read the picture {name}: {_reason(error, source)}") from None


# ---------------------------------------------------------------------------- kinds


def _open(source: Encoded) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats())


def _raw_mode(image: Image.Image) -> str:
    """How samples lie in the file, in Pillow's words (``"RGB;16B"``); nothing once it is loaded.

    Of a PGM it is their maximum (``"4095"``).
    """
    tiles = getattr(image, "tile", None)
    how = tiles[0][3] if tiles else ""
    if not isinstance(how, tuple):
        return str(how)
    return str(how[-1] if image.format == "PPM" else how[0]) if how else ""


def _is_16_bit(image: Image.Image) -> bool:
    """Whether its grey values have 16 bits; some readers of Pillow keep them in 32."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _from_16_bit(image: Image.Image, raw: str, name: str) -> Image.Image:
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    # A PGM with another maximum than 65535 has stated its scale, and Pillow has applied it.
    stated = bits != 16 or (image.format == "PPM" and raw not in ("", "I;16B", "65535"))
    if not stated and 0 < int(values.max()) < LEAST_16_BIT:
        raise DataError(
            f"{name} is 16-bit grey with no value above {int(values.max())}: probably data of 12 bits or "
            f"fewer, and whether {LEAST_16_BIT - 1} or 65535 is white cannot be known; scale it to 8 "
            f"bits, or to all of 16"
        )
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:
        grey = 255 - grey
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey = np.where(values == hidden, np.uint8(BACKGROUND[0]), grey)
    return Image.fromarray(grey).convert("RGB")


def _with_true_key(image: Image.Image, raw: str, name: str) -> Image.Image:
    """A picture whose transparent colour, if it has one, is in terms of its 8-bit values.

    A PNG states it in those of the file, where 2 bits end at 3.
    """
    key = image.info.get("transparency")
    if raw in ("L;2", "L;4") and isinstance(key, int):
        image = image.copy()
        image.info["transparency"] = key * 255 // (2 ** int(raw[-1]) - 1)
    if image.mode == "RGB" and isinstance(key, tuple) and (raw.startswith("RGB;16") or max(key) > 255):
        raise DataError(
            f"{name} has 16 bits a channel and a transparent colour, which cannot be told from its "
            f"neighbours in 8 bits; give it an alpha channel, or 8 bits"
        )
    return image


def _on_background(image: Image.Image) -> Image.Image:
    shown = image.convert("LA") if image.mode == "La" else image
    ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(ground, shown.convert("RGBA")).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """By EXIF; 1, which is upright, where there is none or it is damaged, as every viewer takes it."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except DAMAGE:
        return 1
    return found if isinstance(found, int) else 1


def _header_orientation(image: Image.Image) -> int:
    """Find it without reading pixels, behind which a PNG may have it; then the reading finds it."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1  # Pillow has turned the size of a TIFF
    return _orientation(image)


# ---------------------------------------------------------------------------- whole or not


def _is_whole(kind: str | None, source: Encoded) -> bool:
    """Whether a file's beginning or end says that nothing is missing; False is no proof."""
    if kind in ("JPEG", "MPO"):
        return _tail(source, 2) == b"\xff\xd9"
    if kind == "PNG":
        return _tail(source, 8)[:4] == b"IEND"
    if kind == "GIF":
        return _tail(source, 1) == b";"
    if kind == "WEBP":
        return int.from_bytes(_head(source, 8)[4:], "little") + 8 <= _length(source)
    return False


def _head(source: Encoded, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[:count]
    with source.open("rb") as file:
        return file.read(count)


def _tail(source: Encoded, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[-count:]
    with source.open("rb") as file:
        file.seek(-count, io.SEEK_END)
        return file.read()


def _length(source: Encoded) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _reason(error: BaseException, source: Encoded) -> str:
    if isinstance(error, UnidentifiedImageError):
        try:
            empty = _length(source) == 0
        except OSError:
            empty = False
        return "it is empty (0 bytes)" if empty else "it is no picture that Pillow reads"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return textwrap.shorten(reason, 200, placeholder=" …")
