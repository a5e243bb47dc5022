"""Encoded pictures by row number, and their classes: what every kind of source is opened as."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from nextscale.errors import DataError
from nextscale.pixels import Encoded, header_size, read_picture

AT_ONCE = 1024  # rows whose check is asked for at a time, so that a million of them need no memory
NAMED = 3


@dataclass(frozen=True)
class Pictures:
    """Pictures that lie somewhere, and what is known of them.

    encoded: row -> the picture's file, or its bytes. name: row -> what messages call it.
    labels: int64 ``(N,)``, classes from 0; all 0 where ``labelled`` is false.
    class_names: one per class, or empty where classes are numbers.
    labelled: whether somebody said of what classes they are.
    empty: folders that could be classes and hold no pictures.
    """

    encoded: Callable[[int], Encoded]
    name: Callable[[int], str]
    labels: Tensor
    class_names: tuple[str, ...] = ()
    labelled: bool = True
    empty: tuple[str, ...] = ()

    @classmethod
    def unlabelled(
        cls, encoded: Callable[[int], Encoded], name: Callable[[int], str], count: int
    ) -> Pictures:
        """So many pictures of no known class."""
        return cls(encoded, name, torch.zeros(count, dtype=torch.int64), labelled=False)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> Image.Image:
        """Read one as 8-bit RGB; see :mod:`nextscale.pixels`. Raises DataError, naming a broken one."""
        return read_picture(self.encoded(row), self.name(row))

    def only(self, rows: Iterable[int]) -> Pictures:
        """These rows, in this order."""
        kept = list(rows)
        return replace(
            self,
            encoded=lambda row: self.encoded(kept[row]),
            name=lambda row: self.name(kept[row]),
            labels=self.labels[torch.tensor(kept, dtype=torch.int64)],
        )

    def broken(self, *, full: bool, advance: Callable[[int], None] = lambda _: None) -> dict[int, str]:
        """Look for pictures that cannot be read: their rows, and what is wrong with each.

        full: read every pixel of every picture. Otherwise its header, and whether the file is whole; of kinds
            of files that do not say so, the pixels. ``advance`` hears how many were looked at.
        """
        found: dict[int, str] = {}
        with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
            for first in range(0, len(self), AT_ONCE):
                rows = range(first, min(first + AT_ONCE, len(self)))
                faults = pool.map(lambda row: self._fault(row, full), rows)
                found |= {row: fault for row, fault in zip(rows, faults, strict=True) if fault}
                advance(len(rows))
        return found

    def _fault(self, row: int, full: bool) -> str:
        try:
            if full or not header_size(self.encoded(row), self.name(row))[1]:
                self.read(row)
        except DataError as error:
            return str(error)
        return ""


def fault_list(faults: Mapping[int, str]) -> str:
    """The first faults in full, and how many more there are."""
    shown = "; ".join(list(faults.values())[:NAMED])
    return shown if len(faults) <= NAMED else f"{shown}; and {len(faults) - NAMED:,} more"
