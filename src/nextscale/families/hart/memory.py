"""How much memory a HART model takes, from sizes alone; nothing is loaded or run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nextscale.families.hart.session import masked_counts
from nextscale.families.hart.tokenizer import HARTTokenizer, HARTTokenizerConfig
from nextscale.families.hart.transformer import HARTTransformer, HARTTransformerConfig
from nextscale.generation.memory import (
    MemoryEstimate,
    decoder_peak,
    drawing_bytes,
    layout_bytes,
    weight_bytes,
)
from nextscale.generation.tokens import Filters
from nextscale.nn.placement import CPU


def estimate_memory(
    transformer: HARTTransformerConfig,
    tokenizer: HARTTokenizerConfig,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    guided: bool = True,
    ssg: bool = False,
    mask_iterations: int = 1,
    top_k: int | Sequence[int] = 0,
) -> MemoryEstimate:
    """Bytes for making ``batch`` pictures at once, decoded one by one.

    guided: with classifier-free guidance, which doubles the rows. ssg: with Scaled Spatial Guidance.
    mask_iterations: in how many parts the last scale is predicted. top_k: of the call.
    """
    size, rows, schedule = dtype.itemsize, batch * (2 if guided else 1), transformer.schedule
    with torch.device("meta"):
        models = [HARTTransformer(transformer), HARTTokenizer(tokenizer)]
    h, w = schedule.final
    stored = transformer.sequence_length - masked_counts(schedule.lengths[-1], mask_iterations)[-2]
    decoder = decoder_peak(
        [tokenizer.ch * m for m in tokenizer.ch_mult],
        schedule.final,
        batch=1,
        num_res_blocks=tokenizer.num_res_blocks,
        itemsize=size,
        device=device,
        channels=tokenizer.in_channels,
    )
    pictures = batch * h * w * tokenizer.reduction**2 * tokenizer.in_channels * 4
    return MemoryEstimate(
        weights=weight_bytes(models, dtype),
        layouts=layout_bytes(models[0], dtype, device),
        cache=2 * transformer.depth * rows * stored * transformer.embed_dim * size,
        activations=_activations(transformer, batch, rows, size, ssg, mask_iterations, top_k),
        decoder=decoder + pictures,
    )


def _activations(
    config: HARTTransformerConfig,
    batch: int,
    rows: int,
    size: int,
    ssg: bool,
    mask_iterations: int,
    top_k: int | Sequence[int],
) -> int:
    """The peak of all passes, of which the largest is at the last scale: in the blocks, or while drawing."""
    width, lengths = config.embed_dim, config.schedule.lengths
    masked = masked_counts(lengths[-1], mask_iterations)
    parts = [before - after for before, after in zip(masked, masked[1:], strict=False)]
    # Per position, in bytes: the stream (float32) as the step's input and the block's, beside what the
    # feed-forward or the self-attention has open; see transformer.Block.
    feed_forward = 12 * width + size * (width + 3 * config.mlp_hidden)
    attention = (28 + 4 * size) * width
    # The residual head: its conditions, and what one of its blocks has open.
    head = 8 * width + 8 * config.diff_width * size
    # Logits are float32.
    logits = 4 * batch * config.vocab_size
    filters, last = Filters(top_k=top_k), len(lengths) - 1
    peak, earlier = 0, 0
    for step, count in enumerate([*lengths[:-1], *parts]):
        open_here = count * max(feed_forward, attention, head if step >= last else 0)
        if step == last + len(parts) - 1:  # keys and values of all positions, for the layer that reads them
            joined = 2 * width * size * config.sequence_length
            open_here = max(open_here, count * attention + joined)
        # Those of the pass before are still there: guided, and before SSG.
        computing = rows * open_here + (1 + ssg) * logits * earlier
        drawing = (1 + ssg) * logits * count + drawing_bytes(
            batch * count, config.vocab_size, filters.limits(min(step, last))["top_k"]
        )
        drawing += logits * earlier
        # Every branch's logits, what they are combined into, and what is made on the way to it.
        guiding = (rows // batch + 2 * (rows > batch)) * logits * count + (1 + ssg) * logits * earlier
        if ssg and step >= last and len(parts) > 1:  # the prior of the whole grid, of which a part is taken
            guiding += logits * (lengths[last] + lengths[last - 1] + 2 * count)
        peak, earlier = max(peak, computing, guiding, drawing), count
    return peak
