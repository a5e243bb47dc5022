"""How much memory a generation takes: what the families' estimates have in common.

An estimate counts tensors that are alive at the same time, as the code makes them. What a device's libraries
take for themselves (its context, workspaces of convolutions, fragmentation) is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nextscale.generation.race import ENTRIES_AT_ONCE
from nextscale.kernels import LAYOUT_BYTES, keeps_layouts
from nextscale.nn.autoencoder import TRANSPOSED_CHANNELS
from nextscale.nn.linear import Linear
from nextscale.scales import Grid


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a generation takes at its peak, by what they are for.

    weights: of transformer and tokenizer, there all the time. cache: keys and values that are kept, of images
    (all steps but the last) and text. activations: the peak inside of the transformer. decoder: the peak
    while pictures are decoded, when the cache is gone. layouts: weights once more in another layout, for as
    long as a call takes.
    """

    weights: int
    cache: int
    activations: int
    decoder: int
    layouts: int = 0

    @property
    def total(self) -> int:
        """The peak of the whole generation."""
        return self.weights + self.layouts + max(self.cache + self.activations, self.decoder)

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "cache": self.cache,
            "activations": self.activations,
            "decoder": self.decoder,
        }
        if self.layouts:
            parts["layouts"] = self.layouts
        listed = ", ".join(f"{name} {_readable(value)}" for name, value in parts.items())
        return f"{_readable(self.total)} at the peak ({listed})"


def _readable(count: int) -> str:
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.4g} {units[0]}"


def weight_bytes(modules: Sequence[nn.Module], dtype: torch.dtype) -> int:
    """Parameters and buffers of modules (meta tensors will do), floating-point ones stored as ``dtype``."""
    tensors = [t for module in modules for t in module.state_dict().values()]
    return sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.itemsize) for t in tensors)


def layout_bytes(transformer: nn.Module, dtype: torch.dtype, device: torch.device) -> int:
    """Of the layouts of linear layers that are kept during a call; see :mod:`nextscale.kernels`."""
    if device.type != "cpu" or not keeps_layouts(dtype):
        return 0
    layers = [m for m in transformer.modules() if isinstance(m, Linear)]
    return min(sum(layer.weight.numel() * dtype.itemsize for layer in layers), LAYOUT_BYTES)


def drawing_bytes(decisions: int, choices: int, top_k: int) -> int:
    """Of what a draw sorts and compares, some rows at a time; see :mod:`nextscale.generation.race`.

    decisions: tokens of a step, each from ``choices`` logits of which ``top_k`` are kept, 0 for all.
    """
    kept = min(top_k or choices, choices)
    rows = min(decisions, max(ENTRIES_AT_ONCE // choices, 1))
    # A copy that is partitioned, and what is compared; then, of what is left, eight arrays of 8 bytes:
    # places, entries, weights, keys, and the hash while it is made.
    return rows * max(6 * choices, 66 * kept)


def decoder_peak(
    widths: Sequence[int],
    latent: Grid,
    *,
    batch: int,
    num_res_blocks: int,
    itemsize: int,
    device: torch.device,
    channels: int = 3,
    strip: int | None = None,
) -> int:
    """Bytes of :class:`nextscale.nn.autoencoder.Decoder` at its fullest, without attention.

    widths: channels of its levels, level 0 (the picture's size) first. latent: ``(height, width)``.
    batch: pictures decoded at once. itemsize: bytes per number. strip: rows per strip, see
    :func:`nextscale.nn.strips.decode_in_strips`; ``None`` for all at once.
    """
    last = len(widths) - 1
    peak = kernels = 0
    for i, width in reversed(list(enumerate(widths))):
        h, w = (side << (last - i) for side in latent)
        entering = widths[min(i + 1, last)]
        if strip is None:
            maps = _block_channels(entering, width, num_res_blocks) * h * w * itemsize
        else:
            # The first block of a level joins the upsampling before it.
            first = _in_strips(entering, width, h, strip << (last - i), itemsize, upsample=i != last)
            later = _in_strips(width, width, h, strip << (last - i), itemsize) if num_res_blocks else 0
            maps = w * max(first, later)
        peak = max(peak, batch * maps + kernels)
        if i:  # an upsampling: the level's input and output, and what is made of four times their size
            transposed = device.type == "cpu" and width <= TRANSPOSED_CHANNELS  # see autoencoder.Upsample
            around = (entering + width) * h * w * itemsize if strip is None else 0
            rise = (4 if transposed else 8) * width * h * w * itemsize if strip is None else 0
            # The kernel is made in float32.
            folding = kernels + width**2 * (128 if itemsize == 4 else 100) * transposed
            kernels += 16 * width**2 * itemsize * transposed
            peak = max(peak, batch * around + max(folding, kernels + batch * rise))
    pixels = latent[0] * latent[1] << (2 * last)
    # The picture as the decoder makes it, in float32, and clamped; while it is made, the last map is there.
    finish = pixels * (widths[0] * (2 if strip is None else 1) * itemsize + channels * 4)
    return max(peak, batch * finish + kernels) + batch * pixels * channels * 4


def _block_channels(entering: int, width: int, num_res_blocks: int) -> int:
    """Channels alive at the fullest of a level's residual blocks.

    A block holds its input, a norm, and what the convolution makes of it. The level's input stays alive while
    its later blocks run.
    """
    first = max(2 * entering + width, entering + 2 * width)
    return max(first, entering + 3 * width if num_res_blocks else 0)


def _in_strips(
    entering: int, width: int, height: int, strip: int, itemsize: int, *, upsample: bool = False
) -> int:
    """Bytes per column of a residual block computed in strips, with an upsampling before it or without.

    entering, width: channels before and after. height, strip: rows after it, of the map and of a strip.
    """
    # Without an upsampling a strip is a part of the map that is read, and takes nothing of its own.
    read, held = (entering / 4, entering) if upsample else (entering, 0)
    # Norms are computed in float32: a product and a sum of it. The block ends in a sum with its shortcut.
    norms = max(8 * entering, (itemsize + 8) * width)
    end = itemsize * (2 if entering != width else 1) * width
    work = held * itemsize + max(norms, itemsize * (entering + width), end)
    halo = 4 if upsample else 2  # two rows of what is read, above and below
    tops = range(0, height, strip)
    rows = [min(top + strip + halo, height) - max(top - halo, 0) for top in tops]
    # The strips are joined in a map that is made after the first of them; the first and the last are kept.
    kept = [0, height + rows[0], *(height + rows[0] + last for last in rows[1:])]
    peak = max(r * work + k * width * itemsize for r, k in zip(rows, kept, strict=False))
    return int(height * read * itemsize) + peak
