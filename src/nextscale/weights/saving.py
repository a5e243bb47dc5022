"""Tensors as files that are whole or absent, with the permissions that the user's umask gives."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, or leave what was there.

    Raises OSError if it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:  # made as any file is, which tells how all of them should be
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        save_file(dict(tensors), partial, metadata=dict(metadata))
        os.chmod(partial, mode)  # safetensors writes for the owner alone
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
