"""The captioned sheet of ``nextscale compare``: classes or prompts down, guidance across, seeds the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from nextscale.cli.pictures import enlarge

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

PAPER, INK, GREY, RULE = "#ffffff", "#1b1f24", "#6b7280", "#d5d9df"
LINE = 1.35  # height of a line of text in font sizes


@dataclass(frozen=True)
class Block:
    """One setting: its name, a second line that may be empty, and its pictures, row after row."""

    title: str
    subtitle: str
    images: Sequence[Image]


@dataclass(frozen=True)
class Geometry:
    """Where things are, in pixels; everything follows from the size of a tile."""

    tile: tuple[int, int]
    columns: int
    rows: int
    blocks: int
    labels: int
    header: int

    @property
    def gap(self) -> int:
        return max(2, self.tile[0] // 32)

    @property
    def text(self) -> int:
        """Size of the row labels' font."""
        return max(15, min(26, self.tile[0] // 6))

    @property
    def margin(self) -> int:
        return round(self.text * 1.6)

    @property
    def between(self) -> int:
        """Between two blocks."""
        return round(self.text * 1.5)

    @property
    def block_width(self) -> int:
        return self.columns * (self.tile[0] + self.gap) - self.gap

    @property
    def width(self) -> int:
        return self.left(self.blocks - 1) + self.block_width + self.margin

    @property
    def body_bottom(self) -> int:
        return self.top(self.rows - 1) + self.tile[1]

    def left(self, block: int) -> int:
        return self.margin + self.labels + block * (self.block_width + self.between)

    def top(self, row: int) -> int:
        return self.margin + self.header + row * (self.tile[1] + self.gap)

    def place(self, block: int, index: int) -> tuple[int, int]:
        """Upper left corner of a picture."""
        row, column = divmod(index, self.columns)
        return self.left(block) + column * (self.tile[0] + self.gap), self.top(row)


def comparison(
    blocks: Sequence[Block], rows: Sequence[str], *, columns: int, zoom: int, caption: Sequence[str]
) -> tuple[Image, Geometry]:
    """Draw the sheet.

    blocks: each with ``len(rows) * columns`` pictures of one size. rows: a label each.
    caption: pieces of text; lines are broken between them.
    """
    from PIL import Image, ImageDraw

    tile = (blocks[0].images[0].width * zoom, blocks[0].images[0].height * zoom)
    plain = Geometry(tile, columns, len(rows), len(blocks), 0, 0)
    small, body, head = (_font(round(plain.text * share)) for share in (0.85, 1, 1.25))
    label_lines = [_label(label, body, max(tile[0], 9 * plain.text), tile[1]) for label in rows]
    labels = max(_width(line, body) for lines in label_lines for line in lines) + round(plain.text * 0.9)
    second = any(block.subtitle for block in blocks)
    header = round(plain.text * (2.2 if not second else 3.4))
    at = Geometry(tile, columns, len(rows), len(blocks), labels, header)
    lines = _wrap(list(caption), " · ", small, at.width - 2 * at.margin)
    foot = round(at.text * 1.1) + round(len(lines) * LINE * _size(small)) + round(at.margin * 0.8)
    sheet = Image.new("RGB", (at.width, at.body_bottom + foot), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, block in enumerate(blocks):
        _header(pen, block, at, number, head, small)
        for index, image in enumerate(block.images):
            sheet.paste(enlarge(image, zoom), at.place(number, index))
    for row, words in enumerate(label_lines):
        middle = at.top(row) + tile[1] / 2
        _lines(pen, words, at.left(0) - round(at.text * 0.9), middle, body)
    y = at.body_bottom + round(at.text * 1.1)
    for line in lines:
        pen.text((at.margin, y), line, fill=GREY, font=small)
        y += round(LINE * _size(small))
    return sheet, at


def _header(
    pen: ImageDraw, block: Block, at: Geometry, number: int, head: FreeTypeFont, small: FreeTypeFont
) -> None:
    """Title, subtitle and a thin rule, centred above a block."""
    left, rule = at.left(number), at.top(0) - round(at.text * 0.55)
    centre = left + at.block_width / 2
    bottom = rule - round(at.text * 0.5)
    if block.subtitle:
        pen.text((centre, bottom), block.subtitle, fill=GREY, font=small, anchor="ms")
        bottom -= round(LINE * _size(small))
    pen.text((centre, bottom), block.title, fill=INK, font=head, anchor="ms")
    pen.line((left, rule, left + at.block_width - 1, rule), fill=RULE, width=max(1, at.text // 12))


def _lines(pen: ImageDraw, lines: Sequence[str], right: float, middle: float, font: FreeTypeFont) -> None:
    """Right-aligned lines, centred on a height."""
    height = LINE * _size(font)
    for i, line in enumerate(lines):
        y = middle + (i - (len(lines) - 1) / 2) * height
        pen.text((right, y), line, fill=INK, font=font, anchor="rm")


def _label(text: str, font: FreeTypeFont, width: float, height: float) -> list[str]:
    """A text in lines of at most that width, as many as the height has room for."""
    words = [part for word in text.split() for part in _broken(word, font, width)]
    lines = _wrap(words, " ", font, width)
    room = max(1, int(height / (LINE * _size(font))))
    if len(lines) <= room:
        return lines
    last = lines[room - 1]
    while last and _width(f"{last} …", font) > width:
        last = last.rpartition(" ")[0] or last[:-1]
    return [*lines[: room - 1], f"{last} …"]


def _broken(word: str, font: FreeTypeFont, width: float) -> list[str]:
    """A word that is wider than a line in parts that are not, as texts without spaces need it."""
    parts = [""]
    for letter in word:
        if parts[-1] and _width(parts[-1] + letter, font) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def _wrap(pieces: Sequence[str], joint: str, font: FreeTypeFont, width: float) -> list[str]:
    """Join pieces into lines of at most that width, where pieces allow it."""
    lines: list[str] = []
    for piece in pieces:
        longer = f"{lines[-1]}{joint}{piece}" if lines else piece
        if lines and _width(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines


def _font(size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return cast("FreeTypeFont", ImageFont.load_default(size=size))  # the scalable one, since a size is given


def _size(font: FreeTypeFont) -> float:
    return float(font.size)


def _width(text: str, font: FreeTypeFont) -> int:
    return round(font.getlength(text))
