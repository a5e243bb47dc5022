from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nextscale.errors import InvalidArgumentError
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.training import recipes
from nextscale.training.data import ImageSource
from nextscale.training.muon import Muon, is_inner, orthogonal
from nextscale.training.tokenizer import TokenizerTask
from nextscale.training.trainer import TrainSettings, train
from nextscale.training.transformer import TransformerTask, init_transformer

CONFIG = VARTokenizerConfig(
    vocab_size=16, z_channels=4, ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4, patch_nums=(1, 8)
)


def quiet(record: dict, step: int, total: int) -> None:
    pass


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_singular_values_become_alike_and_directions_stay(shape: tuple[int, int]) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        made = torch.randn(2, *shape)
        u, s, vh = torch.linalg.svd(made, full_matrices=False)
        turned = u.mT @ orthogonal(made) @ vh.mT  # diagonal, in the same singular vectors
        values = turned.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(turned, torch.diag_embed(values), atol=1e-4, rtol=0)
        large = s > s.amax() / 20  # what is smaller needs more iterations
        assert bool(((values > 0.6) & (values < 1.3))[large].all())
    assert bool((orthogonal(torch.zeros(3, 4)) == 0).all())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_it_is_pytorchs_up_to_bfloat16() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(12, 6)) for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}
    mine = Muon([{"params": [ours]}], **options)  # type: ignore[arg-type]
    other = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)  # type: ignore[arg-type]
    for _ in range(4):
        ours.grad = torch.randn(12, 6)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    assert float((ours - 1).detach().abs().max()) > 0.1
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)


def test_which_parameters_are_inner() -> None:
    model = VARTransformer(replace(recipes.tiny_transformer().config, vocab_size=16, z_channels=4))
    inner = {name.split(".", 2)[2] for name, p in model.named_parameters() if is_inner(name, p)}
    assert inner == {"attn.mat_qkv.weight", "attn.proj.weight", "ffn.fc1.weight", "ffn.fc2.weight"}


def test_a_transformer_learns_and_its_checkpoint_holds_both_parts(
    picture_folder: Path, tmp_path: Path
) -> None:
    recipes.train_tokenizer(picture_folder, tmp_path / "t", recipe="tiny", images=64, report=quiet)

    def run() -> dict[str, torch.Tensor]:
        model = recipes.train_transformer(
            picture_folder,
            tmp_path / "a",
            tokenizer=tmp_path / "t",
            recipe=replace(recipes.tiny_transformer(), stages=()),
            report=quiet,
            optimizer="muon",
            log_every=1,
            images=160,
        )
        return model.state_dict()

    straight = run()
    records = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").open()]
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < losses[0]
    kept = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["optimizer"]["optimizers"]
    assert len(kept) == 2 and all(len(o["state"]) for o in kept)
    again = run()  # nothing left to do: what was loaded is what was saved
    assert all(torch.equal(straight[k], again[k]) for k in straight)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    config = replace(CONFIG, ch_mult=(1, 1), patch_nums=(1, 2, 4))
    torch.manual_seed(1)
    tokenizer = VARTokenizer(config).eval()
    tokens, labels = torch.randint(16, (1, 24, 21)), torch.randint(3, (24,))

    def make() -> TransformerTask:
        sizes = VARTransformerConfig(
            vocab_size=16,
            z_channels=4,
            num_classes=3,
            depth=2,
            embed_dim=16,
            num_heads=2,
            patch_nums=(1, 2, 4),
        )
        model = VARTransformer(sizes)
        init_transformer(model)
        return TransformerTask(model, tokenizer, tokens, labels, tokens[:, :4], labels[:4])

    settings = TrainSettings(optimizer="muon", batch_size=8, accumulate=2, images=80, lr=1e-2)
    straight = make()
    before = {k: v.clone() for k, v in straight.model.state_dict().items()}
    train(straight, settings, tmp_path / "straight", report=quiet)
    for portion in (3, 4, None):
        broken = make()
        train(broken, settings, tmp_path / "broken", report=quiet, stop_after=portion)
    ours, theirs = straight.model.state_dict(), broken.model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert all(not torch.equal(ours[k], before[k]) for k in ours)


def test_models_without_blocks_refuse_it(pictures: ImageSource, tmp_path: Path) -> None:
    task = TokenizerTask(VARTokenizer(CONFIG), pictures, pictures)
    with pytest.raises(InvalidArgumentError, match=r"muon is for transformers.*use adamw"):
        train(task, TrainSettings(optimizer="muon", batch_size=8, images=8), tmp_path, report=quiet)
