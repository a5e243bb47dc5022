"""Fine-tuning: what is taken over from runs, models and official files, and what is new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import InfinityPipeline, VARPipeline
from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.scales import ScaleSchedule
from nextscale.training import recipes
from nextscale.training.bit_transformer import init_bit_transformer
from nextscale.training.initial import fit_positions
from nextscale.training.transformer import init_transformer

TABLE = "class_emb.weight"
CODES: dict[str, Any] = {"vocab_size": 64, "z_channels": 8}
SIDES = (1, 2, 3, 4)  # of the official files here, whose stride is 16: 64 pixels


def quiet(record: dict, step: int, total: int) -> None:
    pass


def official_var(folder: Path, num_classes: int, *, patch_nums: Any = SIDES, seed: int = 0) -> VARTransformer:
    """A small transformer and tokenizer in files as VAR's authors publish theirs."""
    folder.mkdir(exist_ok=True)
    config = VARTransformerConfig(
        **CODES, depth=3, embed_dim=128, num_classes=num_classes, patch_nums=patch_nums
    )
    model = VARTransformer(config)
    init_transformer(model, seed=seed)
    levels = torch.cat([torch.full((n,), float(k)) for k, n in enumerate(config.schedule.lengths)])
    torch.save({**model.state_dict(), "lvl_1L": levels[None]}, folder / "var_d3.pth")
    vae = VARTokenizer(VARTokenizerConfig(**CODES, ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1))
    torch.save(vae.state_dict(), folder / "vae_ch160v4096z32.pth")
    return model


def assert_taken_over(
    tuned: dict[str, Tensor], trained: dict[str, Tensor], but: tuple[str, ...] = ()
) -> None:
    assert tuned.keys() == trained.keys()
    for name, theirs in trained.items():
        if name not in but:
            torch.testing.assert_close(tuned[name], theirs, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_official_files_are_tuned_to_the_classes_of_the_data(
    picture_folder: Path, tmp_path: Path, classes: int
) -> None:
    trained = official_var(tmp_path / "official", classes, seed=1)  # the recipe begins with another
    said: list[str] = []
    tuned = recipes.train_transformer(
        picture_folder,
        tmp_path / "tuned",
        tokenizer=tmp_path / "official" / "vae_ch160v4096z32.pth",
        initial=tmp_path / "official" / "var_d3.pth",
        images=8,
        batch_size=8,
        lr=1e-9,
        weight_decay=0.0,
        report=lambda record, step, total: said.append(record.get("note", "")),
    )
    ours, theirs = tuned.state_dict(), trained.state_dict()
    assert tuned.config == replace(trained.config, num_classes=3)  # its sizes, not those of the recipe
    assert_taken_over(ours, theirs, but=(TABLE,))
    assert ours[TABLE].shape == (4, 128)
    torch.testing.assert_close(ours[TABLE][-1], theirs[TABLE][-1], rtol=0, atol=1e-6)
    count = len(theirs)
    if classes == 3:
        torch.testing.assert_close(ours[TABLE], theirs[TABLE], rtol=0, atol=1e-6)
        assert said[0].endswith(f"var_d3.pth: all of its {count} tensors are taken over")
    else:
        new = ours[TABLE][:3]
        assert new.isfinite().all() and float(new.std()) > 0.01
        assert not any(torch.allclose(row, old, atol=1e-4) for row in new for old in theirs[TABLE])
        assert f"{count - 1} of its {count} tensors are taken over" in said[0]
        assert f"the table of classes is new, for 3 instead of {classes}" in said[0]
    pipe = VARPipeline.from_pretrained(tmp_path / "tuned", device="cpu")
    assert pipe.class_names == ("blue", "green", "red") and pipe.image_size == (64, 64)
    assert pipe("red", seed=0).images[0].size == (64, 64)


def test_a_folder_of_official_files_and_one_of_ours(picture_folder: Path, tmp_path: Path) -> None:
    trained = official_var(tmp_path / "official", 9)
    options: dict[str, Any] = {"images": 8, "batch_size": 8, "lr": 1e-9, "weight_decay": 0.0, "report": quiet}
    source = tmp_path / "official"
    tuned = recipes.train_transformer(
        picture_folder, tmp_path / "a", tokenizer=source, initial=source, **options
    )
    assert_taken_over(tuned.state_dict(), trained.state_dict(), but=(TABLE,))
    # What came of it is a folder of ours, with three classes; now two of them.
    two = tmp_path / "two"
    two.mkdir()
    for name in ("red", "green"):
        (two / name).symlink_to(picture_folder / name)
    again = recipes.train_transformer(
        two, tmp_path / "b", tokenizer=tmp_path / "a", initial=tmp_path / "a", **options
    )
    assert again.config.num_classes == 2
    assert_taken_over(again.state_dict(), trained.state_dict(), but=(TABLE,))


def test_models_that_do_not_fit_are_refused(picture_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "official"
    official_var(source, 3)

    def tune(**options: Any) -> None:
        given = {"tokenizer": source, "initial": source, "images": 8, "batch_size": 8} | options
        recipes.train_transformer(picture_folder, tmp_path / "out", report=quiet, **given)

    with pytest.raises(CheckpointError, match="predicts 64 codes of 8 channels, and the tokenizer has 2048"):
        tune(tokenizer="cifar10")
    with pytest.raises(CheckpointError, match="of the family 'var', and the recipe is for 'infinity'"):
        tune(initial="cifar10", tokenizer="cifar10", recipe="tiny-bits")
    with pytest.raises(CheckpointError, match=r"is the hub's; initial takes files.*nextscale convert"):
        tune(initial="FoundationVision/var")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth is not a VAR transformer"):
        tune(initial=tmp_path / "other.pth")
    official_var(source, 3)
    (source / "var_d4.pth").write_bytes((source / "var_d3.pth").read_bytes())
    with pytest.raises(CheckpointError, match=r"found var_d3.pth, var_d4.pth; name its file"):
        tune()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scales", [[1, 4], [1, (1, 2), (2, 3), (3, 5)], [2, 4, 8], [1, 2, 3, 3, 4, 6]])
def test_a_model_is_tuned_to_other_scales(picture_folder: Path, tmp_path: Path, scales: list) -> None:
    source = tmp_path / "official"
    trained = official_var(source, 3)
    said: list[str] = []
    tuned = recipes.train_transformer(
        picture_folder,
        tmp_path / "out",
        tokenizer=source,
        initial=source,
        scales=scales,
        images=8,
        batch_size=8,
        lr=1e-9,
        weight_decay=0.0,
        report=lambda record, step, total: said.append(record.get("note", "")),
    )
    tables = ("pos_start", "pos_1LC", "lvl_embed.weight")
    others = {name: t for name, t in trained.state_dict().items() if name not in tables}
    ours = tuned.state_dict()
    assert_taken_over({name: t for name, t in ours.items() if name not in tables}, others)
    now = ScaleSchedule.from_sides(scales)
    assert tuned.schedule == now and ours["pos_1LC"].shape == (1, now.num_tokens, 128)
    assert f"{len(others)} of its {len(ours)} tensors are taken over; the tables of positions are" in said[0]
    assert f"from the grids 1x1 2x2 3x3 4x4 to {now}" in said[0]
    assert VARPipeline.from_pretrained(tmp_path / "out", device="cpu").schedule == now


def test_positions_follow_the_grids_they_are_like() -> None:
    """A table that is a ramp over every grid stays one, and grids that are the same keep theirs exactly."""
    before = ScaleSchedule.from_sides((1, 2, 4))
    now = ScaleSchedule.from_sides((1, (1, 2), 4, (4, 8)))

    def ramp(grid: tuple[int, int], level: float) -> Tensor:
        down = (torch.arange(grid[0]) + 0.5) / grid[0]
        across = (torch.arange(grid[1]) + 0.5) / grid[1]
        flat = torch.full(grid, level)
        return torch.stack([down[:, None].expand(grid), across.expand(grid), flat], -1).flatten(0, 1)[None]

    generator = torch.Generator().manual_seed(0)
    weights = {
        "pos_start": torch.randn(1, 1, 3, generator=generator),
        "pos_1LC": torch.cat([ramp(grid, float(k)) for k, grid in enumerate(before)], 1),
        "lvl_embed.weight": torch.randn(3, 5, generator=generator),
    }
    fitted = fit_positions(weights, before, now)
    assert torch.equal(fitted["pos_start"], weights["pos_start"])
    maps = fitted["pos_1LC"].split(list(now.lengths), dim=1)
    for k, (found, grid) in zip((0, 0, 2, 2), zip(maps, now, strict=True), strict=True):
        assert torch.equal(found[..., 2], torch.full_like(found[..., 2], float(k)))
        inner = found.unflatten(1, grid)[0]  # at the border bilinear resizing repeats the outermost cells
        exact = ramp(grid, float(k)).unflatten(1, grid)[0]
        if k == 2:
            torch.testing.assert_close(inner[:, 1:-1], exact[:, 1:-1], rtol=0, atol=1e-6)
    assert torch.equal(fitted["lvl_embed.weight"], weights["lvl_embed.weight"][[0, 0, 2, 2]])
    assert torch.equal(maps[2], weights["pos_1LC"][:, 5:])
    same = fit_positions(weights, before, before)
    assert all(torch.equal(same[name], weights[name]) for name in weights)


def test_an_official_tokenizer_is_told_its_scales(picture_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "official"
    official_var(source, 3)
    vae = source / "vae_ch160v4096z32.pth"
    options: dict[str, Any] = {"recipe": "tiny", "images": 8, "batch_size": 8, "report": quiet}
    with pytest.raises(InvalidArgumentError, match="has no scales of its own; say which with scales"):
        recipes.train_transformer(picture_folder, tmp_path / "a", tokenizer=vae, **options)
    wide = recipes.train_transformer(
        picture_folder, tmp_path / "b", tokenizer=vae, scales=[1, (1, 2), (2, 3)], **options
    )
    assert wide.schedule.grids == ((1, 1), (1, 2), (2, 3))
    assert VARPipeline.from_pretrained(tmp_path / "b", device="cpu").image_size == (32, 48)
    sized = recipes.train_transformer(picture_folder, tmp_path / "c", tokenizer=vae, size=(48, 32), **options)
    assert sized.schedule.final == (3, 2)


def test_official_bitwise_files_are_tuned(picture_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "official"
    source.mkdir()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"depth": 2, "embed_dim": 64, "num_heads": 4, "ffn_dim": 128, "text_dim": 32}
    trained = InfinityTransformer(InfinityTransformerConfig(bits=4, text_length=16, pool_heads=4, **sizes))
    init_bit_transformer(trained, seed=1)
    torch.save(trained.state_dict(), source / "infinity_2b_reg.pth")
    mult = (1, 1, 1, 1, 1)
    vae = InfinityTokenizer(
        InfinityTokenizerConfig(bits=4, ch=32, encoder_ch_mult=mult, decoder_ch_mult=mult, num_res_blocks=1)
    )
    torch.save(vae.state_dict(), source / "infinity_vae_d32reg.pth")
    said: list[str] = []
    options: dict[str, Any] = {
        "tokenizer": source / "infinity_vae_d32reg.pth",
        "initial": source / "infinity_2b_reg.pth",
        "recipe": "tiny-bits",
        "images": 8,
        "batch_size": 8,
        "lr": 1e-9,
        "weight_decay": 0.0,
        "report": lambda record, step, total: said.append(record.get("note", "")),
    }
    with pytest.raises(InvalidArgumentError, match="has no scales of its own"):
        recipes.train_transformer(picture_folder, tmp_path / "out", **options)
    tuned = recipes.train_transformer(picture_folder, tmp_path / "out", scales=[1, 2, 3], **options)
    assert_taken_over(tuned.state_dict(), trained.state_dict())
    assert "are taken over" in said[0]
    pipe = InfinityPipeline.from_pretrained(tmp_path / "out", device="cpu")
    assert pipe("a photo of a red", seed=0).images[0].size == (48, 48)
