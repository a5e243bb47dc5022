"""Training of bitwise models: they learn, resume exactly, correct themselves, and draw what a prompt says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import InfinityPipeline
from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.families.infinity.bits import bit_codes, resize
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.words import WordEncoder
from nextscale.nn.placement import place
from nextscale.training import recipes
from nextscale.training.bit_tokenizer import BitTokenizerTask, binary_entropy, measure_bit_tokenizer
from nextscale.training.bit_transformer import BitTransformerTask, init_bit_transformer, latents
from nextscale.training.captions import TEMPLATES, captions
from nextscale.training.data import ImageSource, to_float
from nextscale.training.optimizers import decay_groups
from nextscale.training.trainer import TrainSettings, train

SIDES = (1, 2, 4)
TOKENIZER = InfinityTokenizerConfig(
    bits=4,
    ch=8,
    encoder_ch_mult=(1, 1, 1, 1),
    decoder_ch_mult=(1, 1, 1, 1),
    num_res_blocks=1,
    norm_groups=(4,),
    patch_nums=SIDES,
)
TRANSFORMER = InfinityTransformerConfig(
    bits=4, depth=2, embed_dim=16, num_heads=2, ffn_dim=32, text_dim=8, text_length=8, pool_heads=2
)
SETTINGS = TrainSettings(
    batch_size=8, images=96, lr=3e-3, log_every=1, eval_minutes=1000, checkpoint_minutes=1000
)


def quiet(record: dict, step: int, total: int) -> None:
    pass


def make_tokenizer() -> InfinityTokenizer:
    torch.manual_seed(0)
    return InfinityTokenizer(TOKENIZER)


def make_task(pictures: ImageSource, **options: Any) -> BitTransformerTask:
    tokenizer = make_tokenizer().eval().requires_grad_(False)
    with torch.inference_mode():
        features = latents(tokenizer, to_float(pictures.batch(range(60))))[None].clone()
    model = InfinityTransformer(TRANSFORMER)
    init_bit_transformer(model)
    return BitTransformerTask(
        model,
        tokenizer,
        features,
        pictures.labels,
        features,
        pictures.labels,
        class_names=pictures.class_names,
        text_encoder=WordEncoder(8),
        **options,
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(scope="module")
def run(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the ``tiny-bits`` recipe, and a model that the command line made with it."""
    root = tmp_path_factory.mktemp("bits")
    recipes.train_tokenizer(picture_folder, root / "tokenizer-run", recipe="tiny-bits", report=quiet)
    command = ["train", "transformer", str(picture_folder), "--tokenizer", str(root / "tokenizer-run")]
    command += ["--recipe", "tiny-bits", "-o", str(root / "model"), "--images", "240", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "nextscale.cli.main", *command],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "config.json      a complete model" in done.stdout
    return root


# ------------------------------------------------------------------ the tokenizer


def test_the_tokenizer_learns_to_reconstruct(run: Path, pictures: ImageSource) -> None:
    tokenizer = recipes.load_tokenizer(run / "tokenizer-run", place("cpu"))
    assert isinstance(tokenizer, InfinityTokenizer)
    assert tokenizer.config.patch_nums == (1, 2, 3, 4, 6, 8)
    figures = measure_bit_tokenizer(tokenizer, pictures)
    torch.manual_seed(1)
    fresh = measure_bit_tokenizer(InfinityTokenizer(tokenizer.config), pictures)
    assert figures["psnr"] > fresh["psnr"] + 3
    assert figures["psnr_pooled"] <= figures["psnr"]
    assert set(figures) == set(fresh) >= {"mse_5", "psnr_5", "balance_5"}
    assert 0 <= figures["balance_worst"] <= figures["balance"] <= 1


def test_balance_is_the_entropy_of_how_often_a_bit_is_one(pictures: ImageSource) -> None:
    tokenizer = make_tokenizer()
    figures = measure_bit_tokenizer(tokenizer, pictures, torch.arange(20), batch_size=7)
    maps = tokenizer.encode(to_float(pictures.batch(range(20))))
    ones = torch.cat([m.flatten(0, 2) for m in maps]).double().mean(0)
    entropy = -(ones * ones.log2() + (1 - ones) * (1 - ones).log2())
    assert figures["balance"] == pytest.approx(float(entropy.nan_to_num().mean()))
    assert figures["balance_worst"] == pytest.approx(float(entropy.nan_to_num().min()))
    last = binary_entropy(maps[2].double().mean((0, 1, 2))).mean()
    assert figures["balance_2"] == pytest.approx(float(last))
    torch.testing.assert_close(binary_entropy(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.0, 1, 0]))


def test_a_resumed_tokenizer_equals_an_uninterrupted_one(pictures: ImageSource, tmp_path: Path) -> None:
    def task() -> BitTokenizerTask:
        return BitTokenizerTask(make_tokenizer(), pictures, pictures, eval_images=8)

    straight = task()
    average = train(straight, SETTINGS, tmp_path / "straight", report=quiet)
    for portion in (5, None):
        broken = task()
        resumed = train(broken, SETTINGS, tmp_path / "broken", report=quiet, stop_after=portion)
    assert same(straight.model, broken.model)
    assert same(average, resumed)
    log = [json.loads(line) for line in (tmp_path / "straight" / "log.jsonl").open()]
    assert 0 <= log[0]["balance"] <= 1
    assert log[-1]["eval"]["psnr"] > 0
    assert (tmp_path / "straight" / "tokenizer" / "model.safetensors").exists()


def test_a_tokenizer_for_all_published_sizes_cannot_be_trained(pictures: ImageSource) -> None:
    with pytest.raises(InvalidArgumentError, match="set patch_nums in its config"):
        BitTokenizerTask(InfinityTokenizer(replace(TOKENIZER, patch_nums=None)), pictures, pictures)


# ------------------------------------------------------------------ the transformer


def test_published_initialisation() -> None:
    config = replace(TRANSFORMER, depth=3, embed_dim=96, ffn_dim=384, num_heads=4, text_dim=64)
    model = InfinityTransformer(config).requires_grad_(False)
    init_bit_transformer(model, seed=3)
    std = math.sqrt(1 / (3 * 96))
    block = model.blocks[1]
    assert block.sa.mat_qkv.weight.std() == pytest.approx(std, rel=0.05)
    assert model.lvl_embed.weight.std() == pytest.approx(std, rel=0.1)
    for projection in (block.sa.proj, block.ca.proj, block.ffn.fc2):
        assert projection.weight.std() == pytest.approx(std / math.sqrt(6), rel=0.05)
    assert model.text_proj_for_sos.ca.proj.weight.std() == pytest.approx(std, rel=0.05)
    assert model.head.weight.std() == pytest.approx(std * 0.02, rel=0.1)
    assert model.head_nm.ada_lin[1].weight.std() == pytest.approx(std * 1e-3, rel=0.05)
    gates, rest = block.ada_gss[:, :, :2], block.ada_gss[:, :, 2:]
    assert gates.std() == pytest.approx(5e-6 / math.sqrt(96), rel=0.2)
    assert rest.std() == pytest.approx(1e-3 / math.sqrt(96), rel=0.2)
    assert model.cfg_uncond.std() == pytest.approx(0.8 * 1.2 / math.sqrt(64), rel=0.1)
    assert float(model.cfg_uncond.abs().max()) <= 2 / math.sqrt(64)  # where the normal is cut off
    assert float(block.sa.scale_mul_1H11.mean()) == pytest.approx(math.log(4))
    assert torch.equal(block.ca_norm.weight, torch.ones(96))
    assert torch.equal(model.text_norm.weight, torch.ones(64))
    assert all(float(p.abs().max()) == 0 for n, p in model.named_parameters() if n.endswith("bias"))


def test_what_is_exempt_from_weight_decay() -> None:
    model = InfinityTransformer(TRANSFORMER)
    decayed = {id(p) for p in decay_groups(model.named_parameters())[0]["params"]}
    free = {n for n, p in model.named_parameters() if p.ndim > 1 and id(p) not in decayed}
    own = {"cfg_uncond", "pos_start", "lvl_embed.weight", "text_proj_for_sos.ca.mat_q"}
    blocks = {f"blocks.{i}.{n}" for i in range(2) for n in ("ada_gss", "sa.scale_mul_1H11")}
    assert free == own | blocks


def test_a_resumed_transformer_equals_an_uninterrupted_one(pictures: ImageSource, tmp_path: Path) -> None:
    stages = ((0.4, 2),)
    straight = make_task(pictures, stages=stages)
    average = train(straight, SETTINGS, tmp_path / "straight", report=quiet)
    for portion in (4, 3, None):
        broken = make_task(pictures, stages=stages)
        resumed = train(broken, SETTINGS, tmp_path / "broken", report=quiet, stop_after=portion)
    assert same(straight.model, broken.model)
    assert same(average, resumed)
    assert not same(straight.model, make_task(pictures).model)


def test_the_loss_falls(pictures: ImageSource, tmp_path: Path) -> None:
    task = make_task(pictures)
    before = task.evaluate(task.model.eval())
    assert before["loss"] == pytest.approx(math.log(2), abs=0.01)  # of a fresh model: any bit, either way
    trained = train(task, replace(SETTINGS, images=320), tmp_path, report=quiet)
    after = task.evaluate(trained)
    assert set(after) == {"loss", "loss_0", "loss_1", "loss_2"}
    assert after["loss"] < before["loss"] - 0.03
    lengths = [1, 4, 16]
    mean = sum(after[f"loss_{k}"] * n for k, n in enumerate(lengths)) / 21
    assert after["loss"] == pytest.approx(mean)


def plain_self_correction(
    tokenizer: InfinityTokenizer, f: Tensor, flips: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Inputs and targets by the definition, one scale after another."""
    z, inputs, targets = torch.zeros_like(f), [], []
    for k, side in enumerate(SIDES):
        bits = (F.adaptive_avg_pool2d(f - z, side) > 0).permute(0, 2, 3, 1)
        targets.append(bits.flatten(1, 2))
        z = z + resize(bit_codes(bits ^ flips[k]), (4, 4))
        if side != SIDES[-1]:
            finer = SIDES[k + 1]
            inputs.append(resize(z, (finer, finer)).flatten(2).transpose(1, 2))
    return torch.cat(inputs, 1), torch.cat(targets, 1).long()


def test_the_model_sees_flipped_bits_and_is_asked_to_make_up_for_them(
    pictures: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(pictures, max_flips=0.3, text_dropout=0.0)
    seen: list[Tensor] = []
    forward = task.model.forward

    def watched(text: Any, inputs: Tensor, schedule: Any) -> Tensor:
        seen.append(inputs)
        return forward(text, inputs, schedule)

    monkeypatch.setattr(task.model, "forward", watched)
    rows = torch.arange(0, 60, 6)
    torch.manual_seed(7)
    loss, _ = task.loss(rows, 0, 100)

    # The same draws in the same order: the set, the templates, what is dropped, then strength and bits.
    torch.manual_seed(7)
    torch.randint(1, (10,)), torch.randint(len(TEMPLATES), (10,)), torch.rand(10)
    flips = []
    for side in SIDES:
        strength = torch.randint(31, ()) / 100
        flips.append(torch.rand(10, side, side, 4) < strength)
    assert any(f.any() for f in flips)
    features = task.encoded[0, rows].float()
    inputs, targets = plain_self_correction(task.tokenizer, features, flips)
    torch.testing.assert_close(seen[0], inputs)

    torch.manual_seed(7)
    torch.randint(1, (10,))
    texts = task.captioned(
        task.model, pictures.labels[rows], torch.randint(len(TEMPLATES), (10,)), torch.zeros(10).bool()
    )
    logits = forward(texts, inputs, task.schedule)
    expected = F.cross_entropy(logits.view(-1, 2), targets.flatten())
    torch.testing.assert_close(loss, expected)


def test_weights_by_scale(pictures: ImageSource) -> None:
    task = make_task(pictures, reweight=True)
    weights = task._weights(3)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    torch.testing.assert_close(weights[0] / weights[1], torch.tensor(2.0))
    torch.testing.assert_close(weights[0] / weights[-1], torch.tensor(4.0))
    assert task._weights(2).shape == (5,)
    torch.testing.assert_close(make_task(pictures)._weights(3), torch.full((21,), 1 / 21))


def test_captions_are_the_words_of_their_classes_and_dropped_ones_are_learned_rows(
    pictures: ImageSource,
) -> None:
    task = make_task(pictures)
    labels, template = torch.tensor([2, 0, 1]), torch.tensor([0, 1, 4])
    text = task.captioned(task.model, labels, template, torch.tensor([False, True, False]))
    expected = WordEncoder(8)(["a photo of a red", "a picture of a blue", "a green"])
    assert text.lengths == expected.lengths == [6, 6, 3]
    own = expected.mask
    assert torch.equal(text.features[0][own[0]], expected.features[0][own[0]])
    assert torch.equal(text.features[2][own[2]], expected.features[2][own[2]])
    assert torch.equal(text.features[1], task.model.cfg_uncond[:6])
    text.features.sum().backward()
    assert float(task.model.cfg_uncond.grad.abs().sum()) > 0


def test_templates() -> None:
    assert captions("airplane")[0] == "a photo of an airplane"
    assert captions("fire_truck", ["the {thing}"]) == ["the fire truck"]
    with pytest.raises(InvalidArgumentError, match=r"may have the fields \{thing\} and \{a_thing\}, got"):
        captions("cat", ["a {name}"])


def test_what_the_task_refuses(pictures: ImageSource) -> None:
    with pytest.raises(InvalidArgumentError, match=r"a stage is .* got \(0.5, 4\)"):
        make_task(pictures, stages=((0.5, 4),))
    few = replace(pictures, class_names=pictures.class_names[:2])
    with pytest.raises(InvalidArgumentError, match="2 names for 3 classes"):
        make_task(few)


# ------------------------------------------------------------------ recipes


def test_the_run_is_a_text_to_image_model(run: Path) -> None:
    pipe = InfinityPipeline.from_pretrained(run / "model", device="cpu")
    assert pipe.class_prompts == ("a photo of a blue", "a photo of a green", "a photo of a red")
    assert isinstance(pipe.text_encoder, WordEncoder)
    assert pipe.defaults["guidance_scale"] == recipes.tiny_bit_transformer().defaults["guidance_scale"]
    out = pipe(["a photo of a red", "blue"], seed=0, ssg=0.3)
    assert [image.size for image in out.images] == [(32, 32)] * 2
    log = [json.loads(line) for line in (run / "model" / "log.jsonl").open()]
    assert log[-1]["eval"]["loss"] < math.log(2) - 0.01
    assert (run / "model" / "sample-0000015.png").exists()


def test_fine_tuning_starts_from_another_models_weights(
    run: Path, picture_folder: Path, tmp_path: Path
) -> None:
    def tune(**options: Any) -> nn.Module:
        arguments = {"tokenizer": run / "model", "recipe": "tiny-bits", "images": 16, "lr": 1e-9} | options
        return recipes.train_transformer(
            picture_folder, tmp_path / "tuned", initial=run / "model", report=quiet, **arguments
        )

    trained = InfinityPipeline.from_pretrained(run / "model", device="cpu").transformer
    for (name, ours), theirs in zip(tune().named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)
    wide = recipes.tiny_bit_transformer()
    wide = replace(wide, config=replace(wide.config, embed_dim=64))
    with pytest.raises(CheckpointError, match="Does the recipe have its sizes"):
        tune(recipe=wide, resume=False)


def test_recipe_and_tokenizer_must_be_of_one_kind(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs a tokenizer of bits.*without '-bits' in its name"):
        recipes.train_transformer(picture_folder, tmp_path / "a", tokenizer="cifar10", recipe="tiny-bits")
    with pytest.raises(CheckpointError, match=r"needs a tokenizer of a codebook.*with '-bits' in its name"):
        recipes.train_transformer(
            picture_folder, tmp_path / "b", tokenizer=run / "tokenizer-run", recipe="tiny"
        )
    assert not list(tmp_path.iterdir())
