"""The discriminator learns, its term reaches the tokenizer with the published weight, and nothing is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.training import recipes
from nextscale.training.adversarial import RAMP, Adversary, AdversarySettings, PatchDiscriminator, augment
from nextscale.training.bit_tokenizer import BitTokenizerTask
from nextscale.training.data import ImageSource, to_float
from nextscale.training.judges import Judges, JudgeSettings, carrying
from nextscale.training.perceptual import PerceptualDistance
from nextscale.training.reconstruction import relative_error
from nextscale.training.tokenizer import TokenizerTask
from nextscale.training.trainer import TrainSettings, train

CPU = torch.device("cpu")
CONFIG = VARTokenizerConfig(
    vocab_size=16,
    z_channels=4,
    ch=8,
    ch_mult=(1, 1, 1),
    num_res_blocks=1,
    norm_groups=4,
    patch_nums=(1, 2, 4, 8),
)
SMALL = AdversarySettings(channels=8, start=0.25)
SETTINGS = TrainSettings(
    batch_size=8, images=96, lr=1e-3, log_every=1, eval_minutes=1000, checkpoint_minutes=1000
)


def quiet(record: dict, step: int, total: int) -> None:
    pass


def eyes() -> PerceptualDistance:
    torch.manual_seed(7)
    return PerceptualDistance(SmallClassifier(ClassifierConfig(widths=(8, 8))).eval().requires_grad_(False))


def make_task(
    pictures: ImageSource, adversary: AdversarySettings | None = SMALL, perceptual: bool = True
) -> TokenizerTask:
    distance = eyes() if perceptual else None
    torch.manual_seed(0)
    model = VARTokenizer(CONFIG)
    judges = Judges(distance, 0.5, None if adversary is None else Adversary(adversary, CPU))
    return TokenizerTask(model, pictures, pictures, turn=True, judges=judges, revive_every=4, eval_images=8)


def logged(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "log.jsonl").open()]
    return [r for r in records if "loss" in r]


def state(task: TokenizerTask) -> dict[str, Tensor]:
    assert task.rival is not None
    parts = {"model": task.model.state_dict(), "rival": task.rival.network.state_dict()}
    found = {f"{part}.{k}": v.clone() for part, tensors in parts.items() for k, v in tensors.items()}
    moments = task.rival.optimizer.state_dict()["state"]
    return found | {f"{i}.{k}": v.clone() for i, kept in moments.items() for k, v in kept.items()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(
    pictures: ImageSource, tmp_path: Path, accumulate: int
) -> None:
    settings = replace(SETTINGS, accumulate=accumulate)
    straight = make_task(pictures)
    train(straight, settings, tmp_path / "straight", report=quiet)
    for portion in (2, 5, None):  # before the discriminator begins, after it, to the end
        broken = make_task(pictures)
        train(broken, settings, tmp_path / "broken", report=quiet, stop_after=portion)
    ours, theirs = state(straight), state(broken)
    assert ours.keys() == theirs.keys() and any(k.endswith("exp_avg") for k in ours)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    names = ("loss", "perceptual", "adversarial", "discriminator", "adversarial_weight")
    logs = [[[r.get(n) for n in names] for r in logged(tmp_path / f)] for f in ("straight", "broken")]
    assert logs[0] == logs[1] and len(logs[0]) == 12


def test_both_losses_are_logged_and_the_term_starts_late(pictures: ImageSource, tmp_path: Path) -> None:
    task = make_task(pictures)
    before = {k: v.clone() for k, v in task.judges.adversary.network.state_dict().items()}
    train(task, SETTINGS, tmp_path, report=quiet, stop_after=3)
    assert all(torch.equal(v, before[k]) for k, v in task.rival.network.state_dict().items())
    train(make_task(pictures), SETTINGS, tmp_path, report=quiet)
    records = logged(tmp_path)
    assert all("perceptual" in r for r in records)
    assert ["discriminator" in r for r in records] == [False] * 3 + [True] * 9
    assert records[3]["discriminator"] == pytest.approx(1, abs=0.1)  # knows nothing yet
    assert records[3]["adversarial_weight"] == 0  # at the start of the ramp
    assert all(r["adversarial_weight"] > 0 for r in records[4:])


def test_the_weights_are_ratios_of_gradients_at_the_last_layer(pictures: ImageSource) -> None:
    """Against the sum of the terms, weighted by norms that autograd finds by itself."""
    torch.manual_seed(0)
    model = VARTokenizer(CONFIG)
    adversary = Adversary(replace(SMALL, start=0.0, weight=0.8), CPU)
    judges = Judges(eyes(), 0.3, adversary)
    images = to_float(pictures.batch(range(6)))
    last = model.decoder.conv_out.weight
    parameters = [*model.parameters(), *adversary.network.parameters()]

    recon, _, _ = model.training_forward(images)
    error = relative_error((recon - images).square().mean((1, 2, 3)))
    torch.manual_seed(3)
    loss, figures = judges.loss(error, recon, images, last, 0.5)
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)

    recon, _, _ = model.training_forward(images)
    error = relative_error((recon - images).square().mean((1, 2, 3)))
    distance = judges.perceptual(recon, images)
    torch.manual_seed(3)
    fake = adversary.network(augment(recon))
    term = -fake.mean()

    def length(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, last, retain_graph=True)[0].norm()

    weight = 0.3 * length(error) / length(distance)
    both = error + weight.detach() * distance
    against = 0.8 * length(both) / length(term)
    whole = both + against.detach() * term
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(figures["perceptual_weight"], weight)
    torch.testing.assert_close(figures["adversarial_weight"], against)
    wanted = torch.autograd.grad(whole, list(model.parameters()), allow_unused=True, retain_graph=True)
    for mine, theirs in zip(ours, wanted, strict=False):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()) + 1e-9)

    torch.manual_seed(3)
    fake, real = (adversary.network(augment(x)) for x in (recon.detach(), images))
    hinge = ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()) / 2
    torch.testing.assert_close(figures["discriminator"], hinge)
    wanted = torch.autograd.grad(hinge, list(adversary.network.parameters()))
    for mine, theirs in zip(ours[-len(wanted) :], wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_without_judges_the_loss_is_what_it_was(pictures: ImageSource) -> None:
    torch.manual_seed(0)
    plain = TokenizerTask(VARTokenizer(CONFIG), pictures, pictures)
    assert plain.judges is None and plain.rival is None
    torch.manual_seed(1)
    loss, figures = plain.loss(torch.arange(8), 0, 10)
    assert not {"perceptual", "discriminator"} & figures.keys()
    torch.manual_seed(1)
    mirrored = torch.rand(8, 1, 1, 1) < 0.5
    images = to_float(pictures.batch(range(8)))
    images = torch.where(mirrored, images.flip(-1), images)
    recon, quantizer, _ = plain.model.training_forward(images)
    assert torch.equal(loss, relative_error((recon - images).square().mean((1, 2, 3))) + quantizer)


def test_the_ramp() -> None:
    adversary = Adversary(AdversarySettings(weight=0.6, start=0.2, channels=8), CPU)
    assert [adversary.begin(p) for p in (0.0, 0.19, 0.2, 0.9)] == [False, False, True, True]
    assert adversary.weight(0.1) == 0 and adversary.weight(0.2) == 0
    assert adversary.weight(0.2 + RAMP / 2) == pytest.approx(0.3)
    assert adversary.weight(0.9) == pytest.approx(0.6)


def test_the_discriminator_learns_to_tell_apart(pictures: ImageSource) -> None:
    torch.manual_seed(0)
    # Augmented pictures take thousands of iterations, as they should.
    adversary = Adversary(AdversarySettings(channels=8, lr=2e-3, augment=False), CPU)
    adversary.begin(1.0)
    images = to_float(pictures.batch(range(16)))
    fakes = images + 0.2 * torch.randn(images.shape)
    losses = []
    for _ in range(60):
        judgement = adversary.judge(fakes.clone().requires_grad_(), images)
        for p, g in zip(adversary.network.parameters(), judgement.own, strict=True):
            p.grad = g
        adversary.step(1.0)
        losses.append(float(judgement.loss))
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert sum(losses[-5:]) / 5 < 0.7


def test_patches_of_a_picture_do_not_depend_on_the_others() -> None:
    network = PatchDiscriminator(8, 2).eval()
    images = torch.randn(4, 3, 32, 48)
    scores = network(images)
    assert scores.shape == (4, 1, 6, 10)
    torch.testing.assert_close(network(images[1:2]), scores[1:2], rtol=1e-4, atol=1e-5)
    probe = torch.zeros(1, 3, 64, 64, requires_grad=True)  # without its norms, a score sees its patch alone
    bare = nn.Sequential(*(m for m in network.layers if not isinstance(m, nn.GroupNorm)))
    bare(probe)[0, 0, 7, 7].backward()
    seen = probe.grad[0].abs().sum(0) > 0
    assert int(seen.any(0).sum()) == int(seen.any(1).sum()) == 34


def test_augmentation_recolours_shifts_and_covers() -> None:
    torch.manual_seed(0)
    images = (torch.rand(200, 3, 16, 24) * 2 - 1).requires_grad_()
    changed = augment(images)
    assert changed.shape == images.shape
    covered = (changed == 0).all(1)  # (B, H, W)
    assert bool(covered.flatten(1).any(1).all())
    rows = covered.sum(2).amax(1)
    assert int(rows.min()) >= 6  # half a side, at the border at least its half
    changed.sum().backward()
    assert bool(images.grad.isfinite().all())
    first = augment(images[:1])
    assert not torch.equal(first, augment(images[:1]))
    torch.manual_seed(5)
    again = augment(images[:3])
    torch.manual_seed(5)
    assert torch.equal(again, augment(images[:3]))


def test_given_gradients_go_where_they_belong() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    loss = carrying(torch.tensor(5.0), [(a, torch.tensor([1.0, 2.0])), (b, torch.full((3,), 4.0))])
    (loss * 0.5).backward()
    assert float(loss.detach()) == 5
    assert a.grad.tolist() == [0.5, 1.0] and b.grad.tolist() == [2.0] * 3


def test_a_gradient_that_is_not_finite_moves_neither(pictures: ImageSource, tmp_path: Path) -> None:
    task = make_task(pictures, replace(SMALL, start=0.0))
    train(task, SETTINGS, tmp_path, report=quiet, stop_after=1)
    before = state(task)
    broken = make_task(pictures, replace(SMALL, start=0.0))
    inner = broken.loss

    def loss(rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        value, figures = inner(rows, step, total)
        return value + next(broken.rival.network.parameters()).sum() * float("nan"), figures

    broken.loss = loss  # type: ignore[method-assign]
    train(broken, SETTINGS, tmp_path, report=quiet, stop_after=1)
    after = state(broken)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_checkpoint_with_and_one_without_do_not_mix(pictures: ImageSource, tmp_path: Path) -> None:
    train(make_task(pictures), SETTINGS, tmp_path, report=quiet, stop_after=1)
    with pytest.raises(CheckpointError, match="made with an adversarial term, unlike this run"):
        train(make_task(pictures, None), SETTINGS, tmp_path, report=quiet)
    train(make_task(pictures, None), SETTINGS, tmp_path / "b", report=quiet, stop_after=1)
    with pytest.raises(CheckpointError, match="made without an adversarial term, unlike this run"):
        train(make_task(pictures), SETTINGS, tmp_path / "b", report=quiet)


def test_bits_are_judged_too(pictures: ImageSource, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = InfinityTokenizerConfig(
        bits=4,
        ch=8,
        encoder_ch_mult=(1, 1, 1),
        decoder_ch_mult=(1, 1, 1),
        num_res_blocks=1,
        norm_groups=(4,),
        patch_nums=(1, 2, 4, 8),
    )
    judges = Judges(eyes(), 0.5, Adversary(replace(SMALL, start=0.0), CPU))
    task = BitTokenizerTask(InfinityTokenizer(config), pictures, pictures, judges=judges, eval_images=8)
    train(task, SETTINGS, tmp_path, report=quiet, stop_after=2)
    assert {"perceptual", "discriminator", "balance"} <= logged(tmp_path)[-1].keys()


def test_settings_are_checked_and_changed() -> None:
    for wrong, message in (
        ({"weight": -1.0}, "weight must be 0 or more, got -1.0"),
        ({"weight": float("nan")}, "weight must be 0 or more, got nan"),
        ({"start": 1.0}, r"a share of the run in \[0, 1\), got 1.0"),
        ({"channels": 12}, "a multiple of 8 channels"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            AdversarySettings(**wrong)
    with pytest.raises(InvalidArgumentError, match="perceptual weight must be above 0, got 0"):
        JudgeSettings(perceptual_weight=0)
    assert JudgeSettings().open(CPU) is None
    on = JudgeSettings().changed("cifar10-classifier", 0.7)
    assert on.perceptual == "cifar10-classifier" and on.adversary == AdversarySettings(weight=0.7)
    off = recipes.RECIPES["tokenizer"]["eurosat"]().judges
    assert off.perceptual and off.adversary
    off = off.changed("none", 0.0)
    assert off.perceptual is None and off.adversary is None and off.open(CPU) is None


def test_the_recipe_by_its_entry_point(picture_folder: Path, tmp_path: Path) -> None:
    recipes.train_tokenizer(
        picture_folder,
        tmp_path,
        recipe="tiny",
        perceptual="cifar10-classifier",
        adversarial=0.5,
        images=64,
        log_every=1,
        report=quiet,
    )
    assert "perceptual" in logged(tmp_path)[0] and "discriminator" in logged(tmp_path)[-1]
