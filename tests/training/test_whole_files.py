"""What training writes is whole at any moment: the old file, or the new one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.training.cache import cached, encode_dataset
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import ImageSource
from nextscale.training.trainer import CHECKPOINT, TrainSettings, train
from nextscale.training.transformer import token_maps

SETTINGS = TrainSettings(
    batch_size=8, images=64, lr=1e-3, log_every=1, eval_minutes=1000, checkpoint_minutes=1000
)


def quiet(record: dict[str, Any], step: int, total: int) -> None:
    pass


def classifier(pictures: ImageSource) -> ClassifierTask:
    torch.manual_seed(0)
    return ClassifierTask(
        SmallClassifier(ClassifierConfig(num_classes=3, widths=(8, 8, 8))), pictures, pictures
    )


def write_half(state: Any, file: Any, *more: Any, **options: Any) -> None:
    """As torch.save where the disk is full."""
    Path(file).write_bytes(b"half of it")
    raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    pictures: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    straight = classifier(pictures)
    train(straight, SETTINGS, tmp_path / "straight", report=quiet)
    folder = tmp_path / "broken"
    train(classifier(pictures), SETTINGS, folder, report=quiet, stop_after=3)
    before = (folder / CHECKPOINT).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", write_half)
        with pytest.raises(Exception, match="No space left"):
            train(classifier(pictures), SETTINGS, folder, report=quiet, stop_after=2)
    assert (folder / CHECKPOINT).read_bytes() == before
    last = classifier(pictures)
    train(last, SETTINGS, folder, report=quiet)
    ours, theirs = straight.model.state_dict(), last.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def tokenizer() -> VARTokenizer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"ch": 8, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "norm_groups": 4}
    return VARTokenizer(
        VARTokenizerConfig(vocab_size=16, z_channels=4, **sizes, patch_nums=(1, 2, 4, 8))
    ).eval()


def test_kept_tokens_are_those_of_the_mirroring_asked_for(pictures: ImageSource, tmp_path: Path):
    model, path = tokenizer(), tmp_path / "tokens.pt"
    encode = partial(token_maps, model)
    wanted: dict[bool, Tensor] = {f: encode_dataset(encode, pictures, flip=f) for f in (False, True)}
    assert not torch.equal(wanted[True][0], wanted[True][1])
    for flip in (False, True, False, True, True):
        found = cached(model, encode, pictures, path, flip=flip)
        assert torch.equal(found, wanted[flip])


def test_kept_tokens_that_cannot_be_written_leave_the_old_ones(
    pictures: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, path = tokenizer(), tmp_path / "tokens.pt"
    encode = partial(token_maps, model)
    kept = cached(model, encode, pictures, path, flip=False)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", write_half)
        with pytest.raises(Exception, match="No space left"):
            cached(model, encode, pictures, path, flip=True)
    assert path.read_bytes() == before
    assert torch.equal(cached(model, encode, pictures, path, flip=False), kept)
