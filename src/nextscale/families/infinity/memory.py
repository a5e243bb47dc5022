"""How much memory an Infinity model takes, from sizes alone; nothing is loaded or run."""

from __future__ import annotations

import torch

from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.generation.memory import MemoryEstimate, decoder_peak, layout_bytes, weight_bytes
from nextscale.nn.placement import CPU
from nextscale.scales import ScaleSchedule

TEXT_TOKENS = 32  # of a prompt of some twenty words


def estimate_memory(
    transformer: InfinityTransformerConfig,
    tokenizer: InfinityTokenizerConfig,
    schedule: ScaleSchedule,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    guided: bool = True,
    text_tokens: int = TEXT_TOKENS,
    tile: int | None = None,
) -> MemoryEstimate:
    """Bytes for making ``batch`` pictures at once, decoded one by one.

    guided: with classifier-free guidance, which doubles the rows. text_tokens: of the longest prompt.
    tile: rows of cells decoded at a time; ``None`` for all.
    """
    size, rows = dtype.itemsize, batch * (2 if guided else 1)
    width, hidden, depth = transformer.embed_dim, transformer.ffn_dim, transformer.depth
    with torch.device("meta"):
        models = [InfinityTransformer(transformer), InfinityTokenizer(tokenizer)]
    cached = schedule.offsets[-2] + text_tokens
    # Per position of the last scale, in bytes: the stream (float32) as the step's input, the block's and its
    # successor, beside what the feed-forward or the self-attention has open; see transformer.Block.
    feed_forward = 12 * width + 2 * size * (width + hidden)
    attention = (28 + 4 * size) * width
    longest = schedule.lengths[-1]
    # At the last scale, keys and values of all scales, for the layer that reads them.
    joined = 2 * size * width * schedule.num_tokens
    h, w = schedule.final
    decoder = decoder_peak(
        [tokenizer.ch * m for m in tokenizer.decoder_ch_mult],
        (h * tokenizer.patch, w * tokenizer.patch),
        batch=1,
        num_res_blocks=tokenizer.num_res_blocks,
        itemsize=size,
        device=device,
        channels=tokenizer.in_channels,
        strip=tile,
    )
    pictures = batch * h * w * (tokenizer.patch * tokenizer.reduction) ** 2 * tokenizer.in_channels * 4
    return MemoryEstimate(
        weights=weight_bytes(models, dtype),
        layouts=layout_bytes(models[0], dtype, device),
        cache=2 * depth * rows * cached * width * size,
        activations=rows * max(longest * feed_forward, longest * attention + joined),
        decoder=decoder + pictures,
    )
