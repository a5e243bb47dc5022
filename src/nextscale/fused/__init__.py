"""Kernels for NVIDIA GPUs, written in Triton: one pass over memory where PyTorch takes several.

Functions take tensors and return new ones, and know no gradients. Everything is computed in float32 and
rounded once. :mod:`nextscale.kernels` decides when they are used; whoever calls them from elsewhere has to
see to dtypes and layouts.
"""

from nextscale.fused.decoder import PIXELS, add_biased, group_norm_silu
from nextscale.fused.drawing import race_sorted
from nextscale.fused.guidance import accumulate, in_parts, operator_in_parts
from nextscale.fused.transformer import gated, gated_norm, modulated_norm, split_heads

__all__ = [
    "PIXELS",
    "accumulate",
    "add_biased",
    "gated",
    "gated_norm",
    "group_norm_silu",
    "in_parts",
    "modulated_norm",
    "operator_in_parts",
    "race_sorted",
    "split_heads",
]
