"""One step of training: what is dropped, how far weights move, whose random numbers are whose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.text import TextFeatures
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.families.words import WordEncoder
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.sampling.processes import Processes
from nextscale.training.bit_transformer import BitTransformerTask, init_bit_transformer
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import ImageSource
from nextscale.training.optimizers import decay_groups
from nextscale.training.parallel import Team, part_seed
from nextscale.training.trainer import TrainSettings, train
from nextscale.training.transformer import TransformerTask, init_transformer

COUNT = 400
RANGES = {0.0: (0, 0), 0.5: (150, 250), 1.0: (COUNT, COUNT)}  # five standard deviations


def quiet(record: dict[str, Any], step: int, total: int) -> None:
    pass


def label_task(dropout: float) -> TransformerTask:
    torch.manual_seed(0)
    shared = {"vocab_size": 8, "z_channels": 4, "patch_nums": (1, 2)}
    model = VARTransformer(VARTransformerConfig(**shared, num_classes=3, depth=1, embed_dim=16, num_heads=2))
    init_transformer(model)
    tokenizer = VARTokenizer(
        VARTokenizerConfig(**shared, ch=4, ch_mult=(1, 1), num_res_blocks=1, norm_groups=4)
    )
    tokens, labels = torch.zeros(1, COUNT, 5, dtype=torch.int16), torch.arange(COUNT) % 3
    return TransformerTask(model, tokenizer, tokens, labels, tokens, labels, label_dropout=dropout)


def caption_task(dropout: float) -> BitTransformerTask:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"ch": 8, "encoder_ch_mult": (1, 1), "decoder_ch_mult": (1, 1)}
    tokenizer = InfinityTokenizer(
        InfinityTokenizerConfig(bits=4, **sizes, num_res_blocks=1, norm_groups=(4,), patch_nums=(1, 2))
    )
    model = InfinityTransformer(
        InfinityTransformerConfig(
            bits=4, depth=1, embed_dim=16, num_heads=2, ffn_dim=32, text_dim=8, text_length=8, pool_heads=2
        )
    )
    init_bit_transformer(model)
    features, labels = torch.randn(1, COUNT, 4, 2, 2), torch.arange(COUNT) % 3
    return BitTransformerTask(
        model,
        tokenizer,
        features,
        labels,
        features,
        labels,
        class_names=("cat", "dog", "fox"),
        text_encoder=WordEncoder(8),
        text_dropout=dropout,
    )


@pytest.mark.parametrize("dropout", RANGES)
@pytest.mark.parametrize("seed", range(3))
def test_labels_are_dropped_as_often_as_said(dropout: float, seed: int):
    task, given = label_task(dropout), list[Tensor]()
    task.model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    torch.manual_seed(seed)
    task.loss(torch.arange(COUNT), 0, 10)
    dropped = given[0] == task.model.null_label
    least, most = RANGES[dropout]
    assert least <= int(dropped.sum()) <= most
    assert torch.equal(given[0][~dropped], task.labels[~dropped])
    # Held-out data keep theirs.
    task.position_losses(task.model, task.encoded[0], task.labels)
    assert torch.equal(given[1], task.labels)


@pytest.mark.parametrize("dropout", RANGES)
@pytest.mark.parametrize("seed", range(3))
def test_captions_are_dropped_as_often_as_said(dropout: float, seed: int):
    task, given = caption_task(dropout), list[TextFeatures]()
    task.model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    torch.manual_seed(seed)
    task.loss(torch.arange(COUNT), 0, 10)
    nothing = task.model.unconditional(given[0])

    def says_nothing(text: TextFeatures) -> Tensor:
        return ((text.features == nothing.features[:, : text.features.shape[1]]) | ~text.mask[..., None]).all(
            (1, 2)
        )

    least, most = RANGES[dropout]
    assert least <= int(says_nothing(given[0]).sum()) <= most
    nothing = task.model.unconditional(task.texts[[0] * COUNT])
    task.position_losses(task.model, task.encoded[0], task.labels)
    assert int(says_nothing(given[1]).sum()) == 0


# ------------------------------------------------------------------ how far weights move


def moved(pictures: ImageSource, folder: Path, clip: float, seed: int) -> float:
    """The distance that one step of gradient descent moves a classifier."""
    torch.manual_seed(seed)
    model = SmallClassifier(ClassifierConfig(num_classes=3, widths=(8, 8, 8)))
    before = [p.detach().clone() for p in model.parameters()]
    settings = TrainSettings(
        batch_size=8,
        images=80,
        lr=1.0,
        warmup=0.0,
        optimizer="sgd",
        seed=seed,
        weight_decay=0.0,
        eval_minutes=1e3,
        checkpoint_minutes=1e3,
        clip=clip,
    )
    train(ClassifierTask(model, pictures, pictures), settings, folder, report=quiet, stop_after=1)
    return float(
        sum(((a.detach() - b) ** 2).sum() for a, b in zip(model.parameters(), before, strict=True)) ** 0.5
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_gradient_is_clipped(seed: int, pictures: ImageSource, tmp_path: Path):
    free, clipped = (moved(pictures, tmp_path / str(c), c, seed) for c in (1e6, 1e-3))
    assert free > 0.05
    # The first step with Nesterov's momentum is 1 + 0.9 times the gradient.
    assert clipped == pytest.approx(1.9e-3, rel=1e-3)


def test_what_decays(pictures: ImageSource):
    """Matrices, and neither vectors and biases nor what is exempt by name."""
    tasks: list[Any] = [label_task(0.1), caption_task(0.1)]
    tasks.append(ClassifierTask(SmallClassifier(ClassifierConfig(3, widths=(8, 8, 8))), pictures, pictures))
    exempt = ("pos_1LC", "pos_start", "lvl_embed", "cfg_uncond", "scale_mul", "ada_gss", "sos.ca.mat_q")
    for task in tasks:
        groups = decay_groups(task.model.named_parameters())
        decays = {id(p): group["decays"] for group in groups for p in group["params"]}
        kinds = set()
        for name, p in task.model.named_parameters():
            free = p.ndim <= 1 or name.endswith("bias") or any(part in name for part in exempt)
            assert decays[id(p)] != free, name
            kinds.add(free)
        assert kinds == {True, False}


# ------------------------------------------------------------------ random numbers


@pytest.mark.parametrize("seed", [0, 1, 5, 1_000_003, 2**31, 2**32 - 1, 2**40])
def test_every_part_of_a_batch_decides_for_itself(seed: int):
    numbers: list[Tensor] = []
    model = nn.Linear(1, 1)

    def loss_of(rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        numbers.append(torch.rand(4))
        return model(torch.ones(len(rows), 1)).mean(), {}

    alone = Team(Processes(), 6, model, {})
    alone.backward(torch.arange(12), seed, loss_of, False)
    assert len({tuple(n.tolist()) for n in numbers}) == 6
    # Other iterations decide otherwise, and the same one alike.
    again, numbers = numbers, []
    alone.backward(torch.arange(12), seed, loss_of, False)
    assert all(torch.equal(a, b) for a, b in zip(numbers, again, strict=True))
    alone.backward(torch.arange(12), seed + 1, loss_of, False)
    assert len({tuple(n.tolist()) for n in numbers}) == 12


def test_seeds_of_parts_fit_the_generator():
    """Torch's generator on the CPU looks at 32 bits."""
    seeds = {part_seed(seed, part) for seed in (0, 1, 2**32, 2**40) for part in range(100)}
    assert len(seeds) == 400 and max(seeds) < 2**32
    first = [torch.rand(1, generator=torch.Generator().manual_seed(s)).item() for s in (1, 1 + (1 << 40))]
    assert first[0] == first[1]  # else this could be simpler


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40, True])
def test_seeds_that_would_be_others(seed: int):
    with pytest.raises(InvalidArgumentError, match=r"seed must be a whole number from 0 up to 2\^32, got"):
        replace(TrainSettings(), seed=seed)
    assert TrainSettings(seed=2**32 - 1).seed == 2**32 - 1
