"""Grids of small pictures for looking at a run."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def save_grid(images: Tensor, path: Path, *, columns: int, zoom: int = 3, gap: int = 2) -> None:
    """Write pictures ``(N, 3, H, W)`` in [-1, 1] as one PNG, row by row, enlarged without smoothing."""
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).permute(0, 2, 3, 1).cpu()
    h, w = pixels.shape[1:3]
    rows = -(-len(pixels) // columns)
    sheet = torch.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, dtype=torch.uint8)
    for i, picture in enumerate(pixels):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = picture
    partial = path.with_suffix(".partial")
    Image.fromarray(sheet.numpy()).save(partial, format="PNG")
    os.replace(partial, path)
