"""Cached generation and teacher forcing are the same function, and other facts about the transformer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.families.var.session import VARSession
from nextscale.families.var.tokenizer import VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.generation.loop import StepInfo

VARIANTS: list[dict[str, Any]] = [
    dict(),
    dict(shared_aln=True),
    dict(attn_l2_norm=False),
    dict(patch_nums=[(1, 1), (2, 3), (3, 5)], num_heads=4),
    dict(patch_nums=[2, 3, 3, 5], depth=3, mlp_ratio=2.0),
]


def cached_logits(pipe: Any, labels: list[int], tokens: list[Tensor]) -> Tensor:
    session = VARSession(pipe.transformer, pipe.tokenizer, torch.tensor(labels))
    found = []
    for step, maps in zip(session.steps(), tokens, strict=True):
        logits = session.predict(step)["cond"]
        found.append(logits)
        session.accept(step, maps.flatten(1), logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("sizes", VARIANTS, ids=str)
def test_cached_and_teacher_forced_logits_agree(sizes: dict[str, Any], tiny: Callable):
    pipe = tiny(
        sizes.get("patch_nums", [1, 2, 3, 4]), **{k: v for k, v in sizes.items() if k != "patch_nums"}
    )
    h, w = pipe.image_size
    tokens = pipe.tokenizer.encode(torch.rand(3, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    labels = [0, 4, 5]  # the last is "no class"
    forced = pipe.transformer(torch.tensor(labels), pipe.tokenizer.next_inputs(tokens))
    assert forced.shape == (3, pipe.schedule.num_tokens, 24)
    assert forced.dtype == torch.float32
    error = (cached_logits(pipe, labels, tokens) - forced).abs().max() / forced.std()
    assert float(error) < 1e-4


def test_generated_images_can_be_scored_by_teacher_forcing(pipeline: Callable):
    pipe = pipeline("b_shared_adaln")
    steps: list[StepInfo] = []
    out = pipe([3, 7], guidance_scale=0, seed=0, on_step=steps.append)
    forced = pipe.transformer(torch.tensor([3, 7]), pipe.tokenizer.next_inputs(out.tokens))
    torch.testing.assert_close(torch.cat([s.logits for s in steps], 1), forced, rtol=0, atol=1e-3)


def test_a_prefix_gives_the_logits_of_the_prefix(tiny: Callable):
    pipe = tiny([1, 2, 3, 4])
    tokens = pipe.tokenizer.encode(torch.rand(2, 3, 8, 8) * 2 - 1)
    inputs, labels = pipe.tokenizer.next_inputs(tokens), torch.tensor([1, 2])
    whole = pipe.transformer(labels, inputs)
    for length in pipe.schedule.offsets[1:]:
        part = pipe.transformer(labels, inputs[:, : length - 1])
        torch.testing.assert_close(part, whole[:, :length], rtol=0, atol=1e-4)


def test_finer_scales_never_reach_coarser_ones(tiny: Callable):
    pipe = tiny([1, 2, 3, 4])
    inputs = torch.randn(1, 29, 8, generator=torch.Generator().manual_seed(0))
    changed = inputs.clone()
    changed[:, 13:] += 1.0  # the inputs of the last scale
    a, b = (pipe.transformer(torch.tensor([0]), x) for x in (inputs, changed))
    torch.testing.assert_close(a[:, :14], b[:, :14], rtol=0, atol=1e-5)
    assert float((a[:, 14:] - b[:, 14:]).abs().min(dim=-1).values.max()) > 0


@pytest.mark.parametrize("l2_norm", [True, False])
def test_attention_by_its_definition(l2_norm: bool, tiny: Callable):
    """One layer, with the sharpness that belongs to it: learned, or 0.25 / sqrt(d)."""
    attn = tiny(attn_l2_norm=l2_norm).transformer.blocks[0].attn
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    qkv = x @ attn.mat_qkv.weight.T + torch.cat([attn.q_bias, torch.zeros(32), attn.v_bias])
    q, k, v = (t.view(2, 5, 2, 16).transpose(1, 2) for t in qkv.split(32, dim=-1))
    if l2_norm:
        q, k = F.normalize(q, dim=-1) * attn.scale_mul_1H11.exp(), F.normalize(k, dim=-1)
        assert float(attn.scale_mul_1H11.exp().max()) < 100
    else:
        assert attn.scale_mul_1H11 is None
        q = q * 0.25 / math.sqrt(16)
    expected = attn.proj(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 32))
    torch.testing.assert_close(attn(x, None, None), expected, rtol=1e-4, atol=1e-5)


def test_two_sessions_in_turns(tiny: Callable):
    """Nothing of a generation is kept in the model."""
    pipe = tiny()
    tokens = pipe.tokenizer.encode(torch.rand(2, 3, 8, 8) * 2 - 1)
    expected = [cached_logits(pipe, labels, tokens) for labels in ([0, 1], [2, 3])]
    sessions = [VARSession(pipe.transformer, pipe.tokenizer, torch.tensor(x)) for x in ([0, 1], [2, 3])]
    found: list[list[Tensor]] = [[], []]
    for step, maps in zip(sessions[0].steps(), tokens, strict=True):
        for session, logits in zip(sessions, found, strict=True):
            logits.append(session.predict(step)["cond"])
            session.accept(step, maps.flatten(1), logits[-1])
    assert all(torch.equal(torch.cat(a, 1), b) for a, b in zip(found, expected, strict=True))


def test_training_after_scoring(tiny: Callable):
    """What evaluation leaves behind, such as a cached mask, can take part in training."""
    pipe = tiny()
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    pipe.log_likelihood(pictures, [0, 1])
    pipe.transformer.requires_grad_(True)
    tokens = pipe.tokenizer.encode(pictures)
    logits = pipe.transformer(torch.tensor([0, 1]), pipe.tokenizer.next_inputs(tokens))
    F.cross_entropy(logits.flatten(0, 1), torch.cat([t.flatten(1) for t in tokens], 1).flatten()).backward()
    assert all(p.grad is not None for p in pipe.transformer.parameters())


def test_stochastic_depth_acts_in_training_only():
    config = VARTransformerConfig(
        vocab_size=8,
        z_channels=4,
        num_classes=2,
        depth=3,
        embed_dim=16,
        num_heads=2,
        drop_path=0.9,
        patch_nums=(1, 2),
    )
    torch.manual_seed(0)
    model = VARTransformer(config)
    torch.nn.init.normal_(model.pos_1LC)
    torch.nn.init.normal_(model.pos_start)
    assert [b.drop_path for b in model.blocks] == pytest.approx([0.0, 0.45, 0.9])
    inputs, labels = torch.randn(4, 4, 4), torch.zeros(4, dtype=torch.long)
    model.eval()
    assert torch.equal(model(labels, inputs), model(labels, inputs))
    model.train()
    assert not torch.equal(model(labels, inputs), model(labels, inputs))


def test_modulations_are_made_once_for_all_steps(tiny: Callable):
    transformer = tiny().transformer
    condition = transformer.class_emb(torch.tensor([0, 3]))
    made = transformer.modulations(condition)
    assert len(made) == len(transformer.blocks)
    assert all(m.shape == (2, 1, 6, transformer.config.embed_dim) for m in made)


@pytest.mark.parametrize("labels", [[0, 6], [-1, 0], [], [[0]]])
def test_labels_out_of_range(labels: Any, tiny: Callable):
    with pytest.raises(InvalidArgumentError, match=r"class numbers 0..4 \(or 5 for no class\)"):
        tiny().transformer(torch.tensor(labels, dtype=torch.long), torch.zeros(max(len(labels), 1), 29, 8))


@pytest.mark.parametrize("shape", [(1, 30, 8), (1, 28, 8), (1, 29, 7), (29, 8)])
def test_inputs_of_another_shape(shape: tuple[int, ...], tiny: Callable):
    with pytest.raises(GridError, match=r"inputs must be \(B, 29, 8\) .* ends at a whole step; got"):
        tiny().transformer(torch.tensor([0]), torch.zeros(shape))


def test_sizes_that_no_model_can_have():
    with pytest.raises(InvalidArgumentError, match="embed_dim must be a multiple of num_heads, got 32 and 3"):
        VARTransformerConfig(embed_dim=32, num_heads=3)
    with pytest.raises(
        InvalidArgumentError, match="ch must be a multiple of the 32 groups of the norms, got 40"
    ):
        VARTokenizerConfig(ch=40)
    assert VARTransformerConfig(embed_dim=1920).num_heads == 30  # heads of 64 channels
    assert VARTransformerConfig(**VARTransformerConfig(patch_nums=([1, 2], 3)).to_dict()).patch_nums == (
        (1, 2),
        3,
    )  # type: ignore[arg-type]
