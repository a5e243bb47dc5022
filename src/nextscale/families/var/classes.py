"""Class labels by number or by name: the names of ImageNet's classes, and what may be written for a label."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nextscale.errors import InvalidArgumentError

NO_CLASS = -1  # what a caller writes, besides None, for an unconditional image


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1k in the order models are trained on; all different, in plain ASCII."""
    text = files("nextscale.families.var").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def checked_class_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """The names that a caller has for a model's classes; ``None`` stays ``None``.

    Raises InvalidArgumentError unless there is one text per class, none of them empty.
    """
    if names is None:
        return None
    given = (names,) if isinstance(names, str) else tuple(names)
    if len(given) != num_classes:
        raise InvalidArgumentError(
            f"{len(given)} class names do not fit {num_classes} classes; give one for each, in their order"
        )
    wrong = next((i for i, n in enumerate(given) if not isinstance(n, str) or not n.strip()), None)
    if wrong is not None:
        raise InvalidArgumentError(f"the name of class {wrong} must be a text, got {given[wrong]!r}")
    return given


def read_class_names(path: Path) -> list[str]:
    """Class names from a UTF-8 text file, one a line: line i is class i.

    Raises InvalidArgumentError if it cannot be read, or a line before the last name is blank.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cannot read class names from {str(path)!r}: {error}") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines):
        blank = lines.index("") + 1 if lines else 1
        raise InvalidArgumentError(
            f"line {blank} of {str(path)!r} is blank; every line is the name of a class, the first that of "
            f"class 0"
        )
    return lines


def resolve_labels(labels: Any, class_names: Sequence[str], num_classes: int) -> list[int]:
    """Class numbers, one for each image, from whatever is natural to write.

    Args:
        labels: a class number, a class name, ``None`` or -1 for no class, or a sequence mixing these; integer
            arrays and tensors work as well. Names are compared without regard to case, and ``-`` and ``_``
            count as spaces. Digits in a string are a number, unless a class has that very name.
        class_names: the name of every class, or empty for a model whose classes have none.
        num_classes: how many classes the model knows, which is also the number that stands for "no class".

    Returns:
        Numbers from 0 to ``num_classes``; a single label gives a list of one.

    Raises:
        InvalidArgumentError: if a label is out of range, unknown, ambiguous or neither number nor name, if
            there is no label at all, or if the number of names is not ``num_classes``.
    """
    if class_names and len(class_names) != num_classes:
        raise InvalidArgumentError(f"{len(class_names)} class names do not fit {num_classes} classes")
    if hasattr(labels, "tolist"):
        labels = labels.tolist()
    several = isinstance(labels, Iterable) and not isinstance(labels, (str, bytes, Mapping))
    wanted = list(labels) if several else [labels]
    if not wanted:
        raise InvalidArgumentError(
            "no labels were given; one label makes one image, and None makes one of no class"
        )
    return [_resolve(label, class_names, num_classes) for label in wanted]


def _resolve(label: Any, class_names: Sequence[str], num_classes: int) -> int:
    if label is None:
        return num_classes
    if isinstance(label, str):
        found = _by_name(label, class_names)
        if found is not None:
            return found
        number = _as_digits(label)
        if number is None:
            raise InvalidArgumentError(_unknown_name(label, class_names, num_classes))
    else:
        try:
            if isinstance(label, bool):
                raise TypeError
            number = operator.index(label)
        except TypeError:
            raise InvalidArgumentError(
                f"a label is a class number, a class name or None, got {label!r} ({type(label).__name__})"
            ) from None
    if number == NO_CLASS:
        return num_classes
    if not 0 <= number < num_classes:
        raise InvalidArgumentError(
            f"class {number} is out of range: {_range(num_classes)}, and None or {NO_CLASS} is no class"
        )
    return number


def _by_name(label: str, class_names: Sequence[str]) -> int | None:
    matches = [i for i, name in enumerate(class_names) if _key(name) == _key(label)]
    if len(matches) > 1:
        matches = [i for i in matches if class_names[i] == label] or matches
    if len(matches) > 1:
        raise InvalidArgumentError(f"{label!r} is the name of the classes {matches}; give a number")
    return matches[0] if matches else None


def _as_digits(label: str) -> int | None:
    text = label.strip()
    return int(text) if text.isascii() and text.removeprefix("-").isdecimal() else None


def _key(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _range(num_classes: int) -> str:
    return f"this model's classes are 0 to {num_classes - 1}"


def _unknown_name(label: str, class_names: Sequence[str], num_classes: int) -> str:
    if not class_names:
        return (
            f"class {label!r} is not a number, and this model's classes have no names; {_range(num_classes)}"
        )
    key, names = _key(label), {_key(name): name for name in class_names}
    whole_words = [k for k in names if key and f" {key} " in f" {k.replace('(', ' ').replace(')', ' ')} "]
    near = dict.fromkeys([*whole_words, *difflib.get_close_matches(key, names, n=3, cutoff=0.6)])
    hint = " or ".join(repr(names[k]) for k in list(near)[:4])
    return f"unknown class {label!r}{f'; did you mean {hint}?' if hint else ''} ({_range(num_classes)})"
