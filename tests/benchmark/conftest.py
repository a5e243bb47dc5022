from __future__ import annotations

import pytest
import torch

from nextscale import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.training.transformer import init_transformer

SIDES = (1, 2, 3, 4)


@pytest.fixture(scope="package")
def pipe() -> VARPipeline:
    """32 x 32 pixels from 4 x 4 cells, random weights."""
    torch.manual_seed(0)
    shared = {"vocab_size": 32, "z_channels": 8, "patch_nums": SIDES}
    transformer = VARTransformer(
        VARTransformerConfig(**shared, num_classes=5, depth=2, embed_dim=32, num_heads=2)
    )
    init_transformer(transformer, gate=1.0, modulation=1.0, head=2.0)
    tokenizer = VARTokenizer(
        VARTokenizerConfig(**shared, ch=8, ch_mult=(1, 1, 2, 2), num_res_blocks=1, norm_groups=8)
    )
    return VARPipeline(transformer.eval(), tokenizer.eval(), name="tiny")
