"""The three trainers learn, on pictures simple enough to be learned in seconds."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import VARPipeline
from nextscale.errors import CheckpointError, InvalidArgumentError, NextscaleWarning
from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.training import recipes
from nextscale.training.cache import cached, encode_dataset
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import ImageSource, to_float
from nextscale.training.reconstruction import relative_error
from nextscale.training.tokenizer import TokenizerTask, measure_tokenizer
from nextscale.training.transformer import TransformerTask, init_transformer, token_maps


def quiet(record: dict, step: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def run(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and transformer of the ``tiny`` recipe, trained one after the other."""
    root = tmp_path_factory.mktemp("run")
    # Enough for the finer scales to help whatever the last bits of the sums, which differ between machines.
    recipes.train_tokenizer(picture_folder, root / "tokenizer-run", recipe="tiny", images=1920, report=quiet)
    recipes.train_transformer(
        picture_folder,
        root / "model",
        tokenizer=root / "tokenizer-run",
        recipe="tiny",
        images=960,
        report=quiet,
    )
    return root


def test_the_tokenizer_learns_to_reconstruct(run: Path, pictures: ImageSource) -> None:
    pipe = VARPipeline.from_pretrained(run / "model")
    figures = measure_tokenizer(pipe.tokenizer, pictures)
    fresh = measure_tokenizer(VARTokenizer(pipe.tokenizer.config), pictures)
    assert figures["psnr"] > fresh["psnr"] + 4
    assert figures["psnr_pooled"] <= figures["psnr"]  # Jensen: the mean of logarithms lies above
    assert 0 < figures["codebook_used"] <= 1
    assert 1 <= figures["perplexity"] <= pipe.tokenizer.config.vocab_size
    assert figures["mse_5"] < figures["mse_0"]


def test_the_transformer_learns_its_tokens(run: Path, pictures: ImageSource) -> None:
    pipe = VARPipeline.from_pretrained(run / "model")
    assert pipe.class_names == pictures.class_names
    names = [pictures.class_names[i] for i in pictures.labels[::10]]
    likelihood = pipe.log_likelihood(to_float(pictures.batch(range(0, 60, 10))), names).sum(1).mean()
    uniform = -pipe.schedule.num_tokens * math.log(pipe.tokenizer.config.vocab_size)
    assert likelihood > uniform * 0.9
    out = pipe(["red", "blue"], seed=0, ssg=0.3)
    assert out.images[0].size == (32, 32)


def test_dead_codes_come_back(pictures: ImageSource) -> None:
    torch.manual_seed(0)
    model = VARTokenizer(recipes.tiny_tokenizer().config).requires_grad_(False)
    with torch.no_grad():
        model.quantize.embedding.weight[1:] = 1e3  # out of everyone's reach
    task = TokenizerTask(model, pictures, pictures)
    task.loss(torch.arange(16), 0, 100)
    assert int((task.state["hits"] > 0).sum()) == 1
    task.after_step(100, 1000)
    assert float(model.quantize.embedding.weight.abs().max()) < 1e2
    assert int(task.state["hits"].sum()) == 0
    task.loss(torch.arange(16), 100, 1000)
    assert int((task.state["hits"] > 0).sum()) > 1


def test_published_initialisation() -> None:
    config = VARTransformerConfig(
        vocab_size=32, z_channels=8, num_classes=4, depth=3, embed_dim=96, num_heads=4
    )
    model = VARTransformer(replace(config, patch_nums=(1, 2, 4)))
    init_transformer(model.requires_grad_(False), seed=3)
    std = math.sqrt(1 / (3 * 96))
    block = model.blocks[1]
    assert block.attn.mat_qkv.weight.std() == pytest.approx(std, rel=0.05)
    assert block.ffn.fc2.weight.std() == pytest.approx(std / math.sqrt(6), rel=0.05)
    ada = block.ada_lin[1].weight
    assert ada[: 2 * 96].std() == pytest.approx(std * 1e-3, rel=0.05)
    assert ada[2 * 96 :].std() == pytest.approx(std * 0.5, rel=0.05)
    assert model.head.weight.std() == pytest.approx(std * 0.02, rel=0.1)
    assert float(block.attn.scale_mul_1H11.mean()) == pytest.approx(math.log(4))
    assert all(float(p.abs().max()) == 0 for n, p in model.named_parameters() if n.endswith("bias"))


def test_token_sets_are_the_tokenizers(run: Path, pictures: ImageSource) -> None:
    pipe = VARPipeline.from_pretrained(run / "model")
    tokens = encode_dataset(partial(token_maps, pipe.tokenizer), pictures, flip=True, batch_size=17)
    assert tokens.shape == (2, 60, pipe.schedule.num_tokens)
    image = to_float(pictures.batch([7]))
    for mirrored, picture in ((0, image), (1, image.flip(-1))):
        direct = torch.cat([t.flatten(1) for t in pipe.tokenizer.encode(picture)], 1)
        assert torch.equal(tokens[mirrored, 7].long(), direct[0])


def test_a_stage_trains_on_a_prefix_of_the_scales(run: Path, pictures: ImageSource) -> None:
    pipe = VARPipeline.from_pretrained(run / "model")
    tokens = encode_dataset(partial(token_maps, pipe.tokenizer), pictures, flip=False)
    stages = ((0.5, 3),)
    task = TransformerTask(
        pipe.transformer, pipe.tokenizer, tokens, pictures.labels, tokens, pictures.labels, stages=stages
    )
    assert [task.num_scales(p) for p in (0.0, 0.49, 0.5, 0.99)] == [3, 3, 6, 6]
    whole, _ = task._predict(pipe.transformer, tokens[0, :4], pictures.labels[:4], 6)
    prefix, targets = task._predict(pipe.transformer, tokens[0, :4], pictures.labels[:4], 3)
    assert targets.shape == (4, 1 + 4 + 9)
    torch.testing.assert_close(prefix, whole[:, :14], rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="a stage is"):
        TransformerTask(
            pipe.transformer,
            pipe.tokenizer,
            tokens,
            pictures.labels,
            tokens,
            pictures.labels,
            stages=((2, 3),),
        )


def test_the_classifier_learns_and_whitens(
    picture_folder: Path, pictures: ImageSource, tmp_path: Path
) -> None:
    model = recipes.train_classifier(picture_folder, tmp_path, recipe="tiny", images=800, report=quiet)
    images = to_float(pictures.batch(range(60)))
    model.eval()
    assert float((model(images).argmax(-1) == pictures.labels).float().mean()) > 0.8
    assert model.features(images).shape == (60, 8)
    fresh = SmallClassifier(ClassifierConfig())
    noise = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("ij,njhw->nihw", torch.tensor([[1.0, 0.5, 0], [0, 1, 0.5], [0, 0, 1]]), noise)
    fresh.set_whitening(mixed, eps=0.0)
    out = fresh.whiten(mixed)[:, :12].transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(out), torch.eye(12), atol=0.02, rtol=0)


def test_stages_can_begin_as_the_identity() -> None:
    model = SmallClassifier(ClassifierConfig(num_classes=3, widths=(32, 8, 8)))
    model.start_as_identity()
    images = torch.randn(2, 24, 6, 6)
    torch.testing.assert_close(model.stages[0].conv1(images)[:, :24], images)  # of 32: the others stay random
    torch.testing.assert_close(model.stages[1].conv1(images.repeat(1, 2, 1, 1)[:, :32]), images[:, :8])


def test_cutout_covers_a_square_anywhere(pictures: ImageSource) -> None:
    model = SmallClassifier(ClassifierConfig(num_classes=3, widths=(8, 8, 8)))
    task = ClassifierTask(model, pictures, pictures, cutout=10)
    torch.manual_seed(0)
    covered = task._cover(torch.ones(400, 3, 32, 32)) == 0
    assert torch.equal(covered[:, 0], covered[:, 1])
    rows, columns = covered[:, 0].any(2), covered[:, 0].any(1)
    assert torch.equal(covered[:, 0], rows[:, :, None] & columns[:, None])  # one rectangle each
    assert int(rows.sum(1).max()) == int(columns.sum(1).max()) == 10
    assert int(rows.sum(1).min()) < 10  # cut off at the border
    assert covered[:, 0].any(0).all()


def test_the_relative_error_has_the_gradient_of_the_mean_psnr() -> None:
    errors = torch.tensor([0.001, 0.01, 0.3], requires_grad=True)
    (ours,) = torch.autograd.grad(relative_error(errors), errors)
    (logs,) = torch.autograd.grad(errors.log().mean(), errors)
    harmonic = 1 / (1 / errors).mean().detach()
    torch.testing.assert_close(ours, logs * harmonic)
    equal = torch.full((4,), 0.2)
    torch.testing.assert_close(relative_error(equal), torch.tensor(0.2))


def test_idle_codes_become_residuals_that_are_coded_badly(pictures: ImageSource) -> None:
    torch.manual_seed(0)
    model = VARTokenizer(recipes.tiny_tokenizer().config)
    task = TokenizerTask(model, pictures, pictures, revive_every=2)
    task.loss(torch.arange(16), 0, 100)
    task.after_step(0, 100)  # the first time, every code
    before = model.quantize.embedding.weight.detach().clone()
    task.loss(torch.arange(16), 1, 100)
    hits = task.state["hits"].clone()
    task.after_step(1, 100)
    assert torch.equal(model.quantize.embedding.weight, before)  # not yet
    task.after_step(2, 100)
    idle = hits < 0.05 * hits.float().mean()
    changed = (model.quantize.embedding.weight != before).any(1)
    assert torch.equal(changed, idle) and 0 < int(idle.sum()) < len(idle)
    assert int(task.state["hits"].sum()) == 0


def test_recipes_take_overrides_and_refuse_what_they_do_not_know(
    picture_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"no tokenizer recipe 'huge'; known: cifar10, tiny, cifar10-bits"
    ):
        recipes.train_tokenizer(picture_folder, tmp_path, recipe="huge")
    with pytest.raises(InvalidArgumentError, match="unknown settings learning_rate"):
        recipes.train_tokenizer(picture_folder, tmp_path, learning_rate=1)
    with pytest.raises(
        InvalidArgumentError, match="multiples of this tokenizer's stride of 4 pixels, got 50x50"
    ):
        recipes.train_tokenizer(picture_folder, tmp_path, size=50)
    own = replace(recipes.tiny_classifier(), shift=0)
    trained = recipes.train_classifier(picture_folder, tmp_path / "own", recipe=own, images=32, report=quiet)
    assert trained.config.num_classes == 3


def test_fine_tuning_starts_from_another_models_weights(
    run: Path, picture_folder: Path, tmp_path: Path
) -> None:
    def tune(**options: Any) -> VARTransformer:
        arguments = {"tokenizer": run / "model", "recipe": "tiny", "images": 16, "lr": 1e-9} | options
        return recipes.train_transformer(picture_folder, tmp_path / "tuned", report=quiet, **arguments)

    tuned = tune(initial=run / "model")
    trained = VARPipeline.from_pretrained(run / "model").transformer
    for (name, ours), theirs in zip(tuned.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)
    wide = recipes.tiny_transformer()
    wide = replace(wide, config=replace(wide.config, embed_dim=64))
    with pytest.raises(CheckpointError, match="Does the recipe have its sizes"):
        tune(initial=run / "model", recipe=wide, resume=False)


def test_kept_token_maps_belong_to_their_tokenizer(pictures: ImageSource, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = VARTokenizer(recipes.tiny_tokenizer().config).eval()
    second = VARTokenizer(first.config).eval()
    path = tmp_path / "tokens.pt"

    def kept(model: VARTokenizer, **options: Any) -> Tensor:
        return cached(model, partial(token_maps, model), pictures, path, flip=False, **options)

    tokens = kept(first)
    assert path.exists()
    calls: list[int] = []
    assert torch.equal(tokens, kept(first, report=lambda *a: calls.append(1)))
    assert not calls
    other = kept(second)
    assert torch.equal(other, encode_dataset(partial(token_maps, second), pictures, flip=False))
    whole = path.read_bytes()
    at = len(whole) // 2
    for damaged in (b"damaged", b"", whole[:at], whole[:-1], whole[:at] + b"??" + whole[at + 2 :], bytes(99)):
        path.write_bytes(damaged)
        assert torch.equal(kept(second), other)
        assert path.read_bytes() == whole
    torch.save({"origin": "x", "tokens": 3}, path)
    assert torch.equal(kept(second), other)


def test_kept_token_maps_belong_to_all_pictures(pictures: ImageSource, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VARTokenizer(recipes.tiny_tokenizer().config).eval()
    encode, path = partial(token_maps, model), tmp_path / "tokens.pt"
    assert pictures.cache is not None
    for row in (0, 1, 30, 58, 59):
        for flip in (False, True, False):
            kept = cached(model, encode, pictures, path, flip=flip)
            assert torch.equal(kept, encode_dataset(encode, pictures, flip=flip))
        changed = pictures.cache.clone()
        changed[row] = 255 - changed[row]
        pictures = replace(pictures, cache=changed)
    path.unlink()
    path.mkdir()
    with pytest.warns(NextscaleWarning, match="the training goes on, and will encode again"):
        cached(model, encode, pictures, path, flip=False)


def test_codes_are_chosen_in_float32_under_autocast(run: Path, pictures: ImageSource) -> None:
    tokenizer = VARPipeline.from_pretrained(run / "model").tokenizer
    images = to_float(pictures.batch(range(8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = tokenizer.features(images)
        tokens = tokenizer.training_forward(images)[2]
    exact = [q.tokens for q in tokenizer.quantize.residual_chain(f)]
    assert all(torch.equal(a, b) for a, b in zip(tokens, exact, strict=True))
