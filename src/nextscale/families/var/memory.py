"""How much memory a VAR model takes, from sizes alone; nothing is loaded or run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.generation.memory import (
    MemoryEstimate,
    decoder_peak,
    drawing_bytes,
    layout_bytes,
    weight_bytes,
)
from nextscale.generation.tokens import Filters
from nextscale.nn.placement import CPU
from nextscale.nn.residual_tokenizer import decoded_at_once


def estimate_memory(
    transformer: VARTransformerConfig,
    tokenizer: VARTokenizerConfig,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    guided: bool = True,
    ssg: bool = False,
    top_k: int | Sequence[int] = 0,
) -> MemoryEstimate:
    """Bytes for making ``batch`` pictures at once.

    guided: with classifier-free guidance, which doubles the rows. ssg: with Scaled Spatial Guidance.
    top_k: of the call; without one, whole rows of logits are sorted, which is most of a small model's memory.
    """
    size, rows, schedule = dtype.itemsize, batch * (2 if guided else 1), transformer.schedule
    with torch.device("meta"):
        models = [VARTransformer(transformer), VARTokenizer(tokenizer)]
    h, w = schedule.final
    pixels = h * w * tokenizer.reduction**2
    at_once = min(batch, decoded_at_once(pixels, device))
    decoder = decoder_peak(
        [tokenizer.ch * m for m in tokenizer.ch_mult],
        schedule.final,
        batch=at_once,
        num_res_blocks=tokenizer.num_res_blocks,
        itemsize=size,
        device=device,
        channels=tokenizer.in_channels,
    )
    # Numbers per row and channel: keys and values before the last step, and what blocks are modulated by.
    kept = transformer.depth * (2 * schedule.offsets[-2] + 6)
    return MemoryEstimate(
        weights=weight_bytes(models, dtype),
        layouts=layout_bytes(models[0], dtype, device),
        cache=kept * rows * transformer.embed_dim * size,
        activations=_activations(transformer, batch, rows, size, ssg, top_k),
        decoder=decoder + (batch - at_once) * pixels * tokenizer.in_channels * 4,
    )


def _activations(
    config: VARTransformerConfig, batch: int, rows: int, size: int, ssg: bool, top_k: int | Sequence[int]
) -> int:
    """The peak of all steps, of which the largest is the last: in the blocks, or while drawing."""
    width, lengths = config.embed_dim, config.schedule.lengths
    hidden = round(width * config.mlp_ratio)
    # Bytes per position: the stream as the step's input and the block's, beside what the feed-forward or the
    # self-attention has open, of which some is float32; see transformer.Block.
    feed_forward = (4 * width + hidden) * size
    attention = 5 * width * size + 8 * width * (1 + (size < 4))
    stream = rows * width * size
    logits = 4 * batch * config.vocab_size  # float32, of one position
    peak, earlier = 0, 0
    filters = Filters(top_k=top_k)
    for step, count in enumerate(lengths):
        # Of the step before: guided logits, those before SSG, and what SSG remembers.
        held = (1 + 2 * ssg) * logits * earlier
        # At the last step, keys and values of all steps, for the layer that reads them.
        joined = 2 * width * size * config.schedule.num_tokens * (step + 1 == len(lengths))
        blocks = rows * max(count * feed_forward, count * attention + joined) + held
        branches = rows * count * config.vocab_size
        converting = branches * (4 + size * (size < 4)) + stream * count + held
        guiding = branches * 4 + 2 * logits * count * (rows > batch) + stream * count + held
        drawing = (1 + ssg) * logits * count + stream * count
        drawing += drawing_bytes(batch * count, config.vocab_size, filters.limits(step)["top_k"])
        peak = max(peak, blocks, converting, guiding, drawing)
        earlier = count
    return peak
