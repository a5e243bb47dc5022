from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nextscale.errors import CheckpointError, InvalidArgumentError, TrainingError
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import ImageSource
from nextscale.training.tokenizer import TokenizerTask
from nextscale.training.trainer import CHECKPOINT, LOG, OPTIMIZERS, TrainSettings, autocast_dtype, train

CONFIG = VARTokenizerConfig(
    vocab_size=16,
    z_channels=4,
    ch=8,
    ch_mult=(1, 1, 1),
    num_res_blocks=1,
    norm_groups=4,
    patch_nums=(1, 2, 4, 8),
)
SETTINGS = TrainSettings(
    batch_size=8, images=96, lr=1e-3, log_every=1, eval_minutes=1000, checkpoint_minutes=1000
)


def quiet(record: dict, step: int, total: int) -> None:
    pass


def make_task(pictures: ImageSource) -> TokenizerTask:
    torch.manual_seed(0)
    return TokenizerTask(VARTokenizer(CONFIG), pictures, pictures, revive_every=4, eval_images=8)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    pictures: ImageSource, tmp_path: Path, optimizer: str
) -> None:
    settings = replace(SETTINGS, optimizer=optimizer)
    straight = make_task(pictures)
    average = train(straight, settings, tmp_path / "straight", report=quiet)
    for portion in (5, 2, None):  # a new process each time: nothing survives but the folder
        broken = make_task(pictures)
        resumed = train(broken, settings, tmp_path / "broken", report=quiet, stop_after=portion)
    assert same(weights(straight.model), weights(broken.model))
    assert same(weights(average), weights(resumed))
    logs = [[json.loads(line) for line in (tmp_path / n / LOG).open()] for n in ("straight", "broken")]
    assert [r["step"] for r in logs[0]] == [r["step"] for r in logs[1]]
    losses = [[r["loss"] for r in log if "loss" in r] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == SETTINGS.total_steps


def test_lines_after_the_last_checkpoint_are_not_kept_twice(pictures: ImageSource, tmp_path: Path) -> None:
    train(make_task(pictures), SETTINGS, tmp_path, report=quiet, stop_after=4)
    with (tmp_path / LOG).open("a") as file:  # what a run writes between its last checkpoint and a kill
        file.write(json.dumps({"step": 5, "loss": 0.0}) + "\n" + '{"step": 6, "lo')
    train(make_task(pictures), SETTINGS, tmp_path, report=quiet, stop_after=2)
    steps = [json.loads(line)["step"] for line in (tmp_path / LOG).open()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_outcome_is_complete(pictures: ImageSource, tmp_path: Path) -> None:
    reports: list[int] = []
    train(make_task(pictures), SETTINGS, tmp_path, report=lambda record, step, total: reports.append(step))
    names = {p.name for p in tmp_path.iterdir()}
    assert {CHECKPOINT, LOG, "tokenizer", "sample-0000012.png"} <= names
    assert not any(n.endswith(".partial") for n in names)
    last = json.loads((tmp_path / LOG).read_text().splitlines()[-1])
    assert {"psnr", "codebook_used", "mse_0", "used_3"} <= last["eval"].keys()
    assert reports[-1] == SETTINGS.total_steps
    record = json.loads((tmp_path / LOG).read_text().splitlines()[0])
    assert {"images_per_second", "seconds_left", "lr", "grad_norm", "psnr"} <= record.keys()


def test_a_checkpoint_of_another_model_is_refused(pictures: ImageSource, tmp_path: Path) -> None:
    train(make_task(pictures), SETTINGS, tmp_path, report=quiet, stop_after=1)
    task = make_task(pictures)
    other = VARTokenizerConfig(**{**CONFIG.to_dict(), "vocab_size": 32})
    task.model = VARTokenizer(other)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        train(task, SETTINGS, tmp_path, report=quiet)


def test_the_average_follows_the_weights(pictures: ImageSource, tmp_path: Path) -> None:
    task = make_task(pictures)
    exact = train(task, replace(SETTINGS, ema=0.0), tmp_path / "a", report=quiet)
    assert same(weights(exact), weights(task.model))
    task = make_task(pictures)
    averaged = train(task, replace(SETTINGS, ema=0.9), tmp_path / "b", report=quiet)
    assert not same(weights(averaged), weights(task.model))


def test_averaged_weights_have_averaged_statistics(pictures: ImageSource, tmp_path: Path) -> None:
    model = SmallClassifier(ClassifierConfig(num_classes=3, widths=(8, 8, 8)))
    task = ClassifierTask(model, pictures, pictures)
    before = model.stages[0].norm1.running_mean.clone()
    averaged = train(task, replace(SETTINGS, images=8, ema=0.9), tmp_path, report=quiet)
    now = model.stages[0].norm1.running_mean
    assert not torch.equal(now, before)
    share = 1 - 1 / 10  # of the first iteration; see the trainer's warm-up of the average
    torch.testing.assert_close(averaged.stages[0].norm1.running_mean, torch.lerp(before, now, share))
    assert int(averaged.stages[0].norm1.num_batches_tracked) == 1


def test_a_checkpoint_of_another_optimizer_is_refused(pictures: ImageSource, tmp_path: Path) -> None:
    train(make_task(pictures), SETTINGS, tmp_path, report=quiet, stop_after=1)
    with pytest.raises(CheckpointError, match="made with optimizer adamw, now it is sgd"):
        train(make_task(pictures), replace(SETTINGS, optimizer="sgd"), tmp_path, report=quiet)


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="unknown optimizer 'lion'; known: adamw, sgd, muon"):
        TrainSettings(optimizer="lion")
    with pytest.raises(InvalidArgumentError, match="batch_size must be positive, got 0"):
        TrainSettings(batch_size=0)
    with pytest.raises(InvalidArgumentError, match=r"ema must be in \[0, 1\), got 1"):
        TrainSettings(ema=1)
    with pytest.raises(InvalidArgumentError, match="unknown dtype 'int8'"):
        autocast_dtype("int8", torch.device("cpu"))
    assert autocast_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


def test_an_interrupted_run_keeps_its_last_iteration(pictures: ImageSource, tmp_path: Path) -> None:
    straight = make_task(pictures)
    train(straight, SETTINGS, tmp_path / "straight", report=quiet)

    def interrupt(record: dict, step: int, total: int) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    broken = make_task(pictures)
    with pytest.raises(KeyboardInterrupt):
        train(broken, SETTINGS, tmp_path / "broken", report=interrupt)
    resumed = make_task(pictures)
    steps: list[int] = []
    train(resumed, SETTINGS, tmp_path / "broken", report=lambda record, step, total: steps.append(step))
    assert steps[0] == 8
    assert same(weights(straight.model), weights(resumed.model))


def test_a_run_is_not_continued_with_other_settings(pictures: ImageSource, tmp_path: Path) -> None:
    train(make_task(pictures), SETTINGS, tmp_path, report=quiet, stop_after=1)
    with pytest.raises(CheckpointError, match="made with batch_size 8, now it is 4"):
        train(make_task(pictures), replace(SETTINGS, batch_size=4), tmp_path, report=quiet)
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="is damaged"):
        train(make_task(pictures), SETTINGS, tmp_path, report=quiet)


def test_a_run_that_diverges_ends_with_an_error_and_a_short_lapse_does_not(
    pictures: ImageSource, tmp_path: Path
) -> None:
    task = make_task(pictures)
    usual = task.loss
    bad = {11}

    def sometimes(rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = usual(rows, step, total)
        return (loss * float("nan") if step in bad else loss), metrics

    task.loss = sometimes  # type: ignore[method-assign]
    train(task, SETTINGS, tmp_path, report=quiet)
    assert (tmp_path / CHECKPOINT).exists()
    assert all(p.isfinite().all() for p in task.model.parameters())
    bad = set(range(1000))
    with pytest.raises(TrainingError, match="100 iterations in a row"):
        train(task, replace(SETTINGS, images=960), tmp_path / "long", report=quiet)


def test_the_callers_random_numbers_are_left_alone(pictures: ImageSource, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    task = make_task(pictures)
    torch.manual_seed(3)
    train(task, SETTINGS, tmp_path, report=quiet, stop_after=2)
    assert torch.equal(torch.rand(4), expected)
