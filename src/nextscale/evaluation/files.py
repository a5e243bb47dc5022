"""Results as files that are whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextscale.whole import plain


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, or leave what was there."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The same for JSON, indented; ``null`` stands for numbers that are none."""
    text = json.dumps(finite(value), indent=2, allow_nan=False, ensure_ascii=False, default=plain)
    write_text(path, text + "\n")


def finite(value: Any) -> Any:
    """The same with ``None`` for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and value - value != 0 else value
