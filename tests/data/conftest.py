"""Small pictures in folders and parquet files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def png(value: int, side: int = 8) -> bytes:
    """One grey square."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write a grey picture, whose value tells it from others, to a place in the test's folder."""

    def write(place: str, value: int = 0) -> Path:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
        return path

    return write


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write a parquet file: a picture for every value, labels as a list or an Arrow array."""

    def write(
        place: str,
        values: Sequence[int],
        labels: Any = None,
        *,
        image: str = "image",
        label: str = "label",
        names: Sequence[str] = (),
        binary: bool = False,
    ) -> Path:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [png(v) if binary else {"bytes": png(v), "path": None} for v in values]
        columns: dict[str, Any] = {image: cells}
        if labels is not None:
            columns[label] = labels
        features = {image: {"_type": "Image"}}
        if names:
            features[label] = {"names": list(names), "_type": "ClassLabel"}
        meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        pq.write_table(pa.table(columns).replace_schema_metadata(meta), path)
        return path

    return write
