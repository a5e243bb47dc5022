"""Pictures in parquet files, in the hub's layout or near it, and in data sets of the hub."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nextscale.data.classes import Wanted, with_labels
from nextscale.data.pictures import Pictures
from nextscale.errors import DataError, MissingDependencyError, warn
from nextscale.pixels import Encoded

IMAGE_COLUMNS = ("img", "image", "jpg", "png", "jpeg", "webp", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class")


class NoSuchSplitError(DataError):
    """A data set of the hub has no part of this name."""


def open_tables(files: Sequence[Path], *, labels: Wanted) -> Pictures:
    """Open parquet files as one set of pictures, in their order.

    labels: what for the column of labels is read, if there is one.
    Raises DataError for what is no parquet, has no column of pictures, or labels that are none.
    """
    parquet, pyarrow = needs("pyarrow.parquet", "data"), needs("pyarrow", "data")
    read: list[Any] = []
    name = files[0].name
    try:
        schema = parquet.read_schema(files[0])
        columns = _Columns.of(schema.names, _features(schema), str(files[0]), labels)
        for file in files:
            name = file.name
            read.append(parquet.read_table(file, columns=columns.wanted))
        table = pyarrow.concat_tables(read)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise DataError(f"cannot read {name!r} as parquet: {error}") from None
    return _of_table(table, columns, files, labels)


def open_hub(source: str, split: str, *, labels: Wanted) -> Pictures:
    """Open a data set of the hub by its id; ``split`` as the ``datasets`` library has it.

    Raises NoSuchSplitError, or DataError for what cannot be had.
    """
    datasets = needs("datasets", "data")
    try:
        data = datasets.load_dataset(source, split=split)
    except ValueError as error:  # an unknown split or configuration
        raise NoSuchSplitError(f"data set {source!r}, split {split!r}: {error}") from None
    except OSError as error:  # not on the hub, or no network
        raise DataError(f"cannot get the data set {source!r}: {error}") from None
    features = {
        name: feature.__dict__ | {"_type": type(feature).__name__} for name, feature in data.features.items()
    }
    columns = _Columns.of(data.column_names, features, source, labels)
    table = data.select_columns(columns.wanted).with_format("arrow")[:]
    return _of_table(table, columns, [Path(source)], labels)


class _Columns:
    """Which columns hold pictures and labels, and what the classes are called."""

    def __init__(self, image: str, label: str | None, names: tuple[str, ...]) -> None:
        self.image, self.label, self.names = image, label, names
        self.wanted = [image] if label is None else [image, label]

    @classmethod
    def of(cls, names: Sequence[str], features: dict[str, Any], where: str, labels: Wanted) -> _Columns:
        image = _column(names, IMAGE_COLUMNS) or _only(features, "Image")
        if image is None:
            raise DataError(
                f"{where} has the columns {', '.join(names)}; expected one of {', '.join(IMAGE_COLUMNS)}"
            )
        if labels == "none":
            return cls(image, None, ())
        label = _column(names, LABEL_COLUMNS) or _only(features, "ClassLabel")
        if label is None and len(names) > 1 and labels == "classes":
            warn(
                f"{where} has no column of labels ({', '.join(LABEL_COLUMNS)}), only {', '.join(names)}; its "
                f"pictures are taken to be of one class"
            )
        return cls(image, label, _class_names(features.get(label or "")))


def _column(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted columns that is there; as written, or else in another case."""
    lower = {name.lower(): name for name in names}
    return next((name for name in wanted if name in names), None) or next(
        (lower[name] for name in wanted if name in lower), None
    )


def _only(features: dict[str, Any], kind: str) -> str | None:
    """The one feature of a kind that the file's metadata names."""
    found = [
        name for name, about in features.items() if isinstance(about, dict) and about.get("_type") == kind
    ]
    return found[0] if len(found) == 1 else None


def _features(schema: Any) -> dict[str, Any]:
    """Read what the hub's writers put into a parquet schema about its columns."""
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        found = json.loads(raw)["info"]["features"] if raw else {}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_names(about: Any) -> tuple[str, ...]:
    """The names of a ClassLabel, or of one in a list."""
    for _ in range(3):
        if isinstance(about, list) and len(about) == 1:
            about = about[0]
        if about is not None and not isinstance(about, dict):
            about = about.__dict__ if hasattr(about, "__dict__") else None
        if not isinstance(about, dict):
            return ()
        names = about.get("names")
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(names)
        about = about.get("feature")
    return ()


def _of_table(table: Any, columns: _Columns, files: Sequence[Path], labels: Wanted) -> Pictures:
    where = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    cells, count = table.column(columns.image), table.num_rows
    if count == 0:
        raise DataError(f"{where} has no rows")

    def name(row: int) -> str:
        return f"{files[0].name} row {row}"

    def encoded(row: int) -> Encoded:
        return _encoded(cells[row].as_py(), name(row), files[0].parent)

    if cells.null_count:
        first = next(row for row, cell in enumerate(cells) if not cell.is_valid)
        raise DataError(f"{where} has rows without a picture or label, row {first} first; remove them first")
    found = Pictures.unlabelled(encoded, name, count)
    if columns.label is None:
        return found
    column = table.column(columns.label)
    if labels == "classes":
        _check_labels(column, where)
    return with_labels(found, column.to_pylist(), where, labels, columns.names)


def _encoded(value: Any, name: str, folder: Path) -> Encoded:
    """The bytes of a cell: a struct of bytes and path in the hub's layout, else bytes."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return data
    place = value.get("path") if isinstance(value, dict) else None
    if data is None and isinstance(place, str) and (folder / place).is_file():
        return folder / place
    held = f"no bytes, and the path {place!r}, where there is no file" if place else type(data).__name__
    raise DataError(f"{name} holds no encoded picture, but {held}")


def _check_labels(column: Any, where: str) -> None:
    kind = str(column.type)
    if "float" in kind or "double" in kind or "decimal" in kind:
        raise DataError(f"{where} has labels of the kind {kind}; classes are whole numbers from 0, or names")
    if column.null_count:
        raise DataError(f"{where} has rows without a picture or label; remove them first")


def needs(module: str, extra: str) -> Any:
    """Import an optional package. Raises MissingDependencyError, which names the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingDependencyError(
            f"reading this needs {module.split('.')[0]}: pip install 'nextscale[{extra}]'"
        ) from None
