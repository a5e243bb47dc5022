"""Class numbers from the labels that people write: whole numbers, names, and either as a list of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from nextscale.data.pictures import Pictures
from nextscale.errors import DataError

Wanted = Literal["classes", "numbers", "none"]
"""What labels are for: a model of classes, so that every picture needs one; to be looked at; nothing."""


def with_labels(
    found: Pictures, values: Sequence[Any], where: str, wanted: Wanted, names: Sequence[str] = ()
) -> Pictures:
    """Give pictures the labels that stand beside them, as far as they are wanted; ``None`` is no label.

    Raises DataError, with ``wanted="classes"``, as :func:`read_classes` does if only some have one.
    """
    if wanted == "none" or all(value is None for value in values):
        return found
    if wanted == "numbers":
        plain = [-1 if value is None else value for value in values]
        if not all(isinstance(value, int) and abs(value) < 1 << 31 for value in plain):
            return found
        return replace(found, labels=torch.tensor(plain, dtype=torch.int64), labelled=True)
    numbers, known = read_classes(values, where, names)
    return replace(found, labels=numbers, class_names=known, labelled=True)


def read_classes(
    values: Sequence[Any], where: str, names: Sequence[str] = ()
) -> tuple[Tensor, tuple[str, ...]]:
    """Read labels: int64 ``(N,)``, and the names of the classes; texts are numbered by alphabet.

    values: whole numbers or texts, all of one kind; lists must hold one. names: of numbers, where known.
    Raises DataError, naming the first that is none of this, below 0, or beyond the names.
    """
    plain = [_single(value, where, row) for row, value in enumerate(values)]
    if plain and all(isinstance(value, str) for value in plain):
        known = sorted(set(plain))
        number = {name: i for i, name in enumerate(known)}
        return torch.tensor([number[value] for value in plain], dtype=torch.int64), tuple(known)
    for row, value in enumerate(plain):
        if value is None:
            raise DataError(
                f"{where} has rows without a picture or label, row {row} first; remove them first"
            )
        if not isinstance(value, int):
            mixed = " beside names" if any(isinstance(v, str) for v in plain) else ""
            raise DataError(
                f"{where}: row {row} has the label {value!r}{mixed}; labels are whole numbers from 0, "
                f"or names"
            )
    if not plain or min(plain) < 0:
        raise DataError(f"{where} has no rows, or labels below 0 (pictures without a known class)")
    largest = max(plain)
    if names and largest >= len(names):
        raise DataError(
            f"{where} has the label {largest}, and names only {len(names)} classes, 0 to {len(names) - 1}"
        )
    if largest >= 1 << 31:
        raise DataError(f"{where} has the label {largest}, which is no number of a class")
    return torch.tensor([int(value) for value in plain], dtype=torch.int64), tuple(names)


def _single(value: Any, where: str, row: int) -> Any:
    """The one label of a list of one."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) != 1:
        raise DataError(f"{where}: row {row} has {len(value)} labels; a picture has one class here")
    return value[0]


def check_every_class(labels: Tensor, names: Sequence[str], where: str) -> None:
    """Raise DataError, naming them, if there are classes without a picture: a model could not learn them.

    Class numbers that count something else (ids, years) end here too.
    """
    largest = int(labels.max())
    present = labels.unique().tolist()
    total = max(len(names), largest + 1)
    if len(present) == total:
        return
    shown: list[str] = []
    seen, number = set(present), 0
    while len(shown) < 3 and number < total:
        if number not in seen:
            shown.append(names[number] if number < len(names) else str(number))
        number += 1
    missing = total - len(present)
    more = f" and {missing - len(shown):,} more" if missing > len(shown) else ""
    raise DataError(
        f"{where} has labels up to {largest:,} and no picture of {missing:,} of {total:,} classes: "
        f"{', '.join(shown)}{more}; number the classes that there are from 0, without gaps"
    )
