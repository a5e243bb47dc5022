"""Every kind of picture becomes the 8-bit RGB that the rule says, or is refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from nextscale.errors import DataError
from nextscale.pixels import header_size, is_picture, read_picture, suffixes, to_rgb

WHITE, RED = [255, 255, 255], [255, 0, 0]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source: bytes | Path) -> np.ndarray[Any, Any]:
    image = read_picture(source, "p")
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, for what Pillow does not write; rows without their filter bytes."""
    step = len(rows) // height
    filtered = b"".join(b"\0" + rows[i * step : (i + 1) * step] for i in range(height))
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(filtered)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    values: bytes,
    width: int,
    height: int,
    bits: int,
    *,
    order: str = "<",
    photometric: int = 1,
    kind: int = 1,
) -> bytes:
    """An uncompressed grey TIFF by hand. kind: 1 unsigned, 2 signed, 3 floating-point."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, None), (277, 1)]
    tags += [(278, height), (279, len(values)), (339, kind)]
    start = 8 + 2 + 12 * len(tags) + 4
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    for tag, value in tags:
        out += struct.pack(order + "HHII", tag, 4, 1, start if value is None else value)
    return out + struct.pack(order + "I", 0) + values


def twelve_bits(values: Sequence[int]) -> bytes:
    """Pairs of 12-bit numbers in three bytes."""
    pairs = zip(values[::2], values[1::2], strict=True)
    return b"".join((a << 12 | b).to_bytes(3, "big") for a, b in pairs)


# ---------------------------------------------------------------------------- depth


RAMP = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
EXPECTED = (RAMP >> 8).astype(np.uint8)


@pytest.mark.parametrize(
    "source",
    [
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(Image.fromarray(RAMP), "TIFF"),
        encoded(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
        encoded(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
        encoded(Image.fromarray(RAMP), "PPM"),
        encoded(Image.fromarray(RAMP), "JPEG2000"),
        tiff(RAMP.astype("<u2").tobytes(), 64, 64, 16),
        tiff(RAMP.astype(">u2").tobytes(), 64, 64, 16, order=">"),
        b"P2 64 64 65535\n" + " ".join(map(str, RAMP.flatten())).encode(),
    ],
    ids=["png", "tiff", "lzw", "saved big-endian", "pgm", "jp2", "little-endian", "big-endian", "plain pgm"],
)
def test_16_bit_grey_is_scaled_by_its_depth(source: bytes):
    found = pixels(source)
    assert 127 <= found.mean() <= 128
    assert np.array_equal(found, np.repeat(EXPECTED[..., None], 3, 2))


def test_a_depth_that_the_file_states_counts():
    values = np.arange(4096).reshape(64, 64)
    expected = np.repeat((values >> 4)[..., None], 3, 2)
    assert np.array_equal(pixels(tiff(twelve_bits(values.flatten().tolist()), 64, 64, 12)), expected)
    dark = tiff(twelve_bits([0, 16, 32, 255]), 4, 1, 12)  # no ramp to guess by
    assert pixels(dark)[0, :, 0].tolist() == [0, 1, 2, 15]
    for maximum in (100, 1023, 4095):
        kind, dtype = ("PPM", ">u2") if maximum > 255 else ("PPM", "u1")
        grey = b"P5 3 1 %d\n" % maximum + np.array([0, maximum // 2, maximum], dtype).tobytes()
        assert pixels(grey)[0, :, 0].tolist() == pytest.approx([0, 127, 255], abs=1), kind
    assert pixels(b"P5 2 1 4095\n" + np.array([0, 16], ">u2").tobytes())[0, 1, 0] == 1
    inverted = tiff(np.array([0, 65535, 32768], "<u2").tobytes(), 3, 1, 16, photometric=0)
    assert pixels(inverted)[0, :, 0].tolist() == [255, 0, 127]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("largest", [1, 255, 4095])
def test_12_bits_in_a_file_of_16_are_refused(kind: str, largest: int):
    values = np.linspace(0, largest, 64).astype(np.uint16).reshape(8, 8)
    with pytest.raises(DataError, match=rf"p is 16-bit grey with no value above {largest}: probably"):
        pixels(encoded(Image.fromarray(values), kind))
    assert pixels(encoded(Image.fromarray(values * 0), kind)).max() == 0  # black is black at every scale
    values[0, 0] = 4096
    assert pixels(encoded(Image.fromarray(values), kind))[0, 0, 0] == 16


def test_16_bit_colour_is_scaled():
    rows = np.array([[0, 32768, 65535, 65535, 0, 255]], ">u2").tobytes()
    assert pixels(png(2, 1, 16, 2, rows)).tolist() == [[[0, 128, 255], [255, 0, 0]]]
    rows = np.array([[0, 32768, 65535, 65535, 1, 2, 3, 0]], ">u2").tobytes()
    assert pixels(png(2, 1, 16, 6, rows)).tolist() == [[[0, 128, 255], WHITE]]
    rows = np.array([[32768, 65535, 0, 0]], ">u2").tobytes()
    assert pixels(png(2, 1, 16, 4, rows)).tolist() == [[[128] * 3, WHITE]]


@pytest.mark.parametrize("top", [1.0, 255.0, 7.5])
def test_floating_point_is_refused_by_name(top: float):
    values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    for kind in ("TIFF", "PPM"):
        with pytest.raises(DataError, match=r"p holds floating-point numbers, and no file says which"):
            pixels(encoded(Image.fromarray(values), kind))
    with pytest.raises(DataError, match="floating-point"):
        to_rgb(Image.fromarray(values))
    with pytest.raises(DataError, match="floating-point"):  # the header is enough to see it
        header_size(encoded(Image.fromarray(values), "TIFF"), "p")


def test_32_bit_whole_numbers_are_refused_by_name():
    values = np.linspace(0, 4_000_000, 64).astype(np.int32).reshape(8, 8)
    for source in (encoded(Image.fromarray(values), "TIFF"), tiff(values.astype("<u4").tobytes(), 8, 8, 32)):
        with pytest.raises(DataError, match="p holds 32-bit whole numbers"):
            pixels(source)
    with pytest.raises(DataError, match="32-bit whole numbers"):
        pixels(tiff(values.astype("<i2").tobytes(), 8, 8, 16, kind=2))  # signed: where is black?
    with pytest.raises(DataError, match="32-bit whole numbers"):
        to_rgb(Image.fromarray(values))


def test_few_bits_fill_the_range():
    assert pixels(png(8, 1, 1, 0, b"\xaa"))[0, :, 0].tolist() == [255, 0] * 4
    assert pixels(png(4, 1, 2, 0, bytes([0b00011011])))[0, :, 0].tolist() == [0, 85, 170, 255]
    assert pixels(png(2, 1, 4, 0, bytes([0x0F])))[0, :, 0].tolist() == [0, 255]
    one = Image.new("1", (2, 1))
    one.putpixel((1, 0), 1)
    assert np.asarray(to_rgb(one)).tolist() == [[[0, 0, 0], WHITE]]


# ---------------------------------------------------------------------------- transparency


def hidden_red(mode: str) -> Image.Image:
    """Two pixels of red, or of grey 76, the left one under alpha 0."""
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((0, 0), (255, 0, 0, 0))
    return image.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO"])
def test_a_hidden_colour_is_not_seen(kind: str):
    image = hidden_red("RGBA")
    options: dict[str, Any] = {
        "WEBP": {"lossless": True, "exact": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
        "ICO": {"sizes": [(16, 16)]},
    }.get(kind, {})
    if kind in ("AVIF", "ICO"):
        image = image.resize((16, 16), Image.Resampling.NEAREST)
    found = pixels(encoded(image, kind, **options)).astype(int)
    assert found[0, 0].tolist() == WHITE
    assert np.abs(found[0, -1] - RED).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA"])
def test_alpha_of_every_kind_is_composed_on_white(mode: str):
    if mode == "La":
        image = hidden_red("LA").convert("La")
    elif mode == "PA":
        image = Image.new("PA", (2, 1))
        image.putpalette([255, 0, 0])
        image.putdata([(0, 0), (0, 255)])
    else:
        image = hidden_red(mode)
    found = np.asarray(to_rgb(image))
    assert found[0, 0].tolist() == WHITE
    assert found[0, 1].tolist() == ([76] * 3 if mode in ("LA", "La") else RED)


def test_half_transparent_pixels_are_mixed_with_white():
    found = np.asarray(to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert found[0, 0].tolist() == pytest.approx([127] * 3, abs=1)
    opaque = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    alpha = np.dstack([opaque, np.full((5, 7), 255, np.uint8)])
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(alpha))), opaque)


def test_palettes_with_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    plain = [RED, [0, 255, 0], [0, 0, 255]]
    assert pixels(encoded(image, "PNG")).tolist() == [plain]
    for kind in ("PNG", "GIF"):
        assert pixels(encoded(image, kind, transparency=1)).tolist() == [[plain[0], WHITE, plain[2]]]
    assert pixels(encoded(image, "PNG", transparency=bytes([255, 255, 0]))).tolist() == [[*plain[:2], WHITE]]
    image.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0, 0, 255, 255], "RGBA")
    assert np.asarray(to_rgb(image)).tolist() == [[WHITE, *plain[1:]]]


def test_a_transparent_colour_of_a_png():
    key = (b"tRNS", struct.pack(">3H", 255, 0, 0))
    assert pixels(png(2, 1, 8, 2, bytes([255, 0, 0, 0, 9, 0]), key)).tolist() == [[WHITE, [0, 9, 0]]]
    grey = (b"tRNS", struct.pack(">H", 7))
    assert pixels(png(2, 1, 8, 0, bytes([7, 8]), grey)).tolist() == [[WHITE, [8] * 3]]
    exact = np.array([[40000, 40001]], ">u2").tobytes()  # the same in 8 bits
    found = pixels(png(2, 1, 16, 0, exact, (b"tRNS", struct.pack(">H", 40000))))
    assert found.tolist() == [[WHITE, [156] * 3]]
    for depth, row, value in ((1, b"\x80", 1), (2, b"\x80", 2), (4, b"\x90", 9)):  # the first pixel is hidden
        found = pixels(png(2, 1, depth, 0, row, (b"tRNS", struct.pack(">H", value))))
        assert found.tolist() == [[WHITE, [0, 0, 0]]], depth
    with pytest.raises(DataError, match="p has 16 bits a channel and a transparent colour"):
        pixels(png(1, 1, 16, 2, bytes(6), (b"tRNS", struct.pack(">3H", 0, 0, 0))))


# ---------------------------------------------------------------------------- colours, frames, orientation


def test_other_colour_spaces():
    rgb = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    smooth = Image.fromarray(rgb).resize((32, 32), Image.Resampling.BICUBIC)
    for mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        image = smooth
        if mode == "LAB":
            from PIL import ImageCms

            profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
            image = ImageCms.profileToProfile(smooth, *profiles, outputMode="LAB")
        found = np.asarray(to_rgb(image if mode == "LAB" else image.convert(mode))).astype(int)
        assert np.abs(found - np.asarray(smooth)).mean() < 4, mode
    for kind in ("JPEG", "TIFF"):
        found = pixels(encoded(smooth.convert("CMYK"), kind)).astype(int)
        assert np.abs(found - np.asarray(smooth)).mean() < 6, kind


def test_the_first_of_several_frames():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        options = {"WEBP": {"lossless": True}}.get(kind, {})
        found = pixels(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert found[0, 0].tolist() == RED, kind


UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
STORED = {  # what lies in the file so that turning it by the tag gives UPRIGHT; by the EXIF standard
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(orientation: int, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    kinds = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
    for kind, options in {**kinds, "lzw": {"compression": "tiff_lzw"}}.items():
        source = encoded(stored, "TIFF" if kind == "lzw" else kind, exif=exif, **options)
        assert np.array_equal(pixels(source), UPRIGHT), kind
        assert header_size(source, "p")[0] == (3, 2), kind
    large = np.asarray(Image.fromarray(UPRIGHT).resize((96, 64), Image.Resampling.BICUBIC))
    turned = np.ascontiguousarray({1: large, 6: np.rot90(large, 1)}.get(orientation, large))
    if orientation in (1, 6):
        source = encoded(Image.fromarray(turned), "JPEG", quality=100, exif=exif)
        assert np.abs(pixels(source).astype(int) - large).max() < 12
    grey = Image.fromarray(np.ascontiguousarray(STORED[orientation][..., 0]).astype(np.uint16) * 257)
    assert np.array_equal(pixels(encoded(grey, "PNG", exif=exif))[..., 0], UPRIGHT[..., 0])
    (tmp_path / "opened.png").write_bytes(encoded(stored, "PNG", exif=exif))
    with Image.open(tmp_path / "opened.png") as image:  # as somebody hands it to a pipeline
        assert np.array_equal(np.asarray(to_rgb(image)), UPRIGHT)


def test_damaged_exif_turns_nothing():
    source = encoded(Image.fromarray(UPRIGHT), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(pixels(source), UPRIGHT)


# ---------------------------------------------------------------------------- damage


SMOOTH = Image.fromarray(np.random.default_rng(2).integers(0, 256, (6, 6, 3), np.uint8)).resize(
    (64, 64), Image.Resampling.BICUBIC
)
KINDS = ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "TGA"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_cut_off_picture_is_named(kind: str, share: float, tmp_path: Path):
    whole = encoded(SMOOTH, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(whole[: int(share * len(whole))])
    for source in (path, path.read_bytes()):
        with pytest.raises(DataError, match=r"cut\.[a-z0-9]+"):
            read_picture(source, str(path))
        settled, said = False, path.name
        try:
            settled = header_size(source, str(path))[1]
        except DataError as error:
            said = str(error)
        assert path.name in said and not settled
    if share == 0:
        with pytest.raises(DataError, match=r"it is empty \(0 bytes\)"):
            read_picture(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_picture_is_found_whole(kind: str):
    source = encoded(SMOOTH, kind)
    (size, settled) = header_size(source, "p")
    assert size == (64, 64)
    assert settled == (kind in ("PNG", "JPEG", "WEBP", "GIF"))
    assert pixels(source).shape == (64, 64, 3)


def test_what_is_no_picture_is_named(tmp_path: Path):
    for content in (b"no picture at all", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0" * 100):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read the picture .*x\.png"):
            read_picture(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        read_picture(tmp_path / "gone.png")
    damaged = bytearray(encoded(SMOOTH, "PNG"))
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(DataError, match="cannot read the picture p"):
        pixels(bytes(damaged))


def test_a_decompression_bomb_is_refused():
    rows = zlib.compress(b"\0" * 10)
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts
    )
    for read in (pixels, lambda source: header_size(source, "p")):
        with pytest.raises(DataError, match=r"cannot read the picture p: .*decompression bomb"):
            read(bomb)


# ---------------------------------------------------------------------------- names


def test_what_pillow_reads_counts_as_a_picture(tmp_path: Path):
    common = {".tif", ".tiff", ".gif", ".avif", ".jfif", ".jpe", ".ppm", ".jp2", ".bmp", ".webp"}
    wanted = common | {".png", ".jpg", ".jpeg", ".pgm", ".tga", ".ico"}
    assert wanted <= suffixes()
    assert not {".eps", ".ps", ".pdf", ".h5", ".mpg", ".txt", ".json", ".wmf"} & suffixes()
    assert is_picture(Path("n01440764_10026.JPEG")) and not is_picture(Path("notes.txt"))
    (tmp_path / "0001").write_bytes(encoded(SMOOTH, "JPEG"))
    (tmp_path / "README").write_text("Pictures of birds.")
    (tmp_path / "empty").write_bytes(b"")
    assert [is_picture(tmp_path / name) for name in ("0001", "README", "empty")] == [True, False, False]


def test_a_wrong_suffix_does_not_matter(tmp_path: Path):
    (tmp_path / "really.jpg").write_bytes(encoded(SMOOTH, "PNG"))
    assert np.array_equal(pixels(tmp_path / "really.jpg"), np.asarray(SMOOTH))


def test_nothing_is_left_open(tmp_path: Path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts open files where the system lists them")
    path = tmp_path / "a.png"
    path.write_bytes(encoded(SMOOTH, "PNG"))
    before = len(os.listdir("/proc/self/fd"))
    kept = [read_picture(path) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert not isinstance(kept[0], ImageFile.ImageFile) or kept[0].fp is None
