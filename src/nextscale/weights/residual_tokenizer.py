"""Sizes of the tokenizer that VAR and HART share, from the names and shapes of an official file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nextscale.weights.official import count, require


def tokenizer_sizes(
    shapes: Mapping[str, Tensor], path: Path, what: str, *, cause: str = ""
) -> dict[str, Any]:
    """Values for :class:`~nextscale.nn.residual_tokenizer.ResidualTokenizerConfig` (meta tensors will do).

    What tensors cannot tell is left out, but for the mixing ratio of phi, which has the published value 0.5.
    Raises CheckpointError saying that the file is not ``what``; see
    :func:`~nextscale.weights.official.require`.
    """
    levels = max(count(shapes, r"encoder\.down\.(\d+)\."), 1)
    first_convs = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    needed = {"encoder.conv_in.weight": 4, "quant_conv.weight": 4, "quantize.embedding.weight": 2}
    require(shapes, needed | dict.fromkeys(first_convs, 4), path, what, cause=cause)
    ch, in_channels = shapes["encoder.conv_in.weight"].shape[:2]
    vocab_size, z_channels = shapes["quantize.embedding.weight"].shape
    shared = count(shapes, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
    own = count(shapes, r"quantize\.quant_resi\.(\d+)\.")
    single = "quantize.quant_resi.qresi.weight" in shapes
    return {
        "vocab_size": vocab_size,
        "z_channels": z_channels,
        "ch": ch,
        "ch_mult": tuple(shapes[name].shape[0] // ch for name in first_convs),
        "num_res_blocks": count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "in_channels": in_channels,
        "quant_conv_ks": shapes["quant_conv.weight"].shape[-1],
        "quant_resi": 0.5 if shared or own or single else 0.0,
        "share_quant_resi": 1 if single else shared,
    }
