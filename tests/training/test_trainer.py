from __future__ import annotations

import errno
import json
import os
import signal
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextscale.errors import CheckpointError, InvalidArgumentError, NextscaleWarning, TrainingError
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


@pytest.mark.parametrize("optimizer", sorted({*OPTIMIZERS} - {"muon"}))  # which is for transformers
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


def quick_task(pictures: ImageSource) -> ClassifierTask:
    torch.manual_seed(0)
    model = SmallClassifier(ClassifierConfig(num_classes=3, widths=(8, 8, 8)))
    return ClassifierTask(model, pictures, pictures)


def failing(task: ClassifierTask, name: str, errors: Mapping[int, BaseException]) -> None:
    """Let a method of a task fail at some of its calls, counted from 1."""
    usual, calls = getattr(task, name), [0]

    def method(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] in errors:
            raise errors[calls[0]]
        return usual(*arguments)

    setattr(task, name, method)


def saved_step(folder: Path) -> int:
    step: int = torch.load(folder / CHECKPOINT, weights_only=True)["step"]
    return step


@pytest.mark.parametrize("minutes", [0.0, 5.0])
def test_the_checkpoint_is_there_before_figures_are_computed(
    pictures: ImageSource, tmp_path: Path, minutes: float
) -> None:
    task = quick_task(pictures)
    usual, seen = task.evaluate, []

    def evaluate(model: SmallClassifier) -> dict[str, float]:
        seen.append(saved_step(tmp_path))
        return usual(model)

    task.evaluate = evaluate  # type: ignore[method-assign]
    settings = replace(SETTINGS, images=32, eval_minutes=minutes, checkpoint_minutes=5.0)
    train(task, settings, tmp_path, report=quiet)
    assert seen == ([1, 2, 3, 4] if minutes == 0 else [4])


@pytest.mark.parametrize("name", ["evaluate", "sample"])
def test_a_failing_evaluation_is_reported_and_training_goes_on(
    pictures: ImageSource, tmp_path: Path, name: str
) -> None:
    settings = replace(SETTINGS, images=64, eval_minutes=0.0)
    straight, task = quick_task(pictures), quick_task(pictures)
    train(straight, settings, tmp_path / "straight", report=quiet)
    errors: dict[int, BaseException] = {
        1: RuntimeError("no\nroom"),
        2: torch.OutOfMemoryError("no room"),
        4: MemoryError(),
        5: OSError(errno.ENOSPC, "no room"),
        6: ValueError("none"),
        8: KeyError("figure"),
    }
    failing(task, name, errors)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        train(task, settings, tmp_path / "run", report=quiet)
    what = "figures on held-out data at" if name == "evaluate" else "picture of"
    for (step, error), warning in zip(errors.items(), warned, strict=True):
        told = str(warning.message)
        assert told.startswith(f"no {what} step {step} ({type(error).__name__}") and "\n" not in told
        assert told.endswith("); the training goes on") and warning.category is NextscaleWarning
    assert same(weights(task.model), weights(straight.model))
    assert saved_step(tmp_path / "run") == 8
    assert (tmp_path / "run" / "classifier").is_dir()

    def steps(kind: str) -> list[int]:
        records = [json.loads(line) for line in (tmp_path / "run" / LOG).open()]
        return [r["step"] for r in records if kind in r]

    assert steps("eval") == ([3, 7] if name == "evaluate" else list(range(1, 9)))
    assert steps("failed") == ([*errors] if name == "evaluate" else [])
    # What was missed at the end is made up for when the command is given again.
    train(quick_task(pictures), settings, tmp_path / "run", report=quiet)
    assert steps("eval")[-1] == 8


def test_figures_that_are_none_are_reported(pictures: ImageSource, tmp_path: Path) -> None:
    task = quick_task(pictures)
    task.evaluate = lambda model: {"psnr": float("nan"), "mse_0": 1.0}  # type: ignore[method-assign]
    with pytest.warns(NextscaleWarning, match="held-out data at step 2 are not finite: psnr$"):
        train(task, replace(SETTINGS, images=16), tmp_path, report=quiet)
    assert json.loads((tmp_path / LOG).read_text().splitlines()[-1])["eval"] == {"psnr": None, "mse_0": 1.0}


@pytest.mark.parametrize("name", ["evaluate", "sample"])
def test_what_ends_the_process_during_figures_costs_nothing(
    pictures: ImageSource, tmp_path: Path, name: str
) -> None:
    task = quick_task(pictures)
    failing(task, name, {3: SystemExit()})
    with pytest.raises(SystemExit):
        train(task, replace(SETTINGS, eval_minutes=0.0), tmp_path, report=quiet)
    assert saved_step(tmp_path) == 3


@pytest.mark.parametrize("name", ["loss", "half of the loss", "after_step", "report"])
def test_what_fails_in_an_iteration_saves_what_was_done(
    pictures: ImageSource, tmp_path: Path, name: str
) -> None:
    straight = quick_task(pictures)
    train(straight, SETTINGS, tmp_path / "straight", report=quiet)
    broken, report = quick_task(pictures), quiet
    if name == "report":

        def report(record: dict, step: int, total: int) -> None:
            if step == 7:
                raise OSError("a picture is gone")

    elif name == "half of the loss":  # batch norm has seen the pictures, and will see them again
        usual = broken.loss

        def loss(rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
            found = usual(rows, step, total)
            if step == 6:
                raise OSError("a picture is gone")
            return found

        broken.loss = loss  # type: ignore[method-assign]
    else:
        failing(broken, name, {7: OSError("a picture is gone")})
    with pytest.raises(OSError, match="a picture is gone"):
        train(broken, SETTINGS, tmp_path / "broken", report=report)
    if name != "after_step":  # which is a part of the optimiser step: half a one is not worth to be kept
        assert saved_step(tmp_path / "broken") == (7 if name == "report" else 6)
    resumed = quick_task(pictures)
    train(resumed, SETTINGS, tmp_path / "broken", report=quiet)
    assert same(weights(straight.model), weights(resumed.model))


def test_a_checkpoint_that_cannot_be_written_is_reported_and_the_old_one_stays(
    pictures: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = {3, 4, 12}
    count, usual = [0], os.fsync

    def fsync(file: int) -> None:
        count[0] += 1
        if count[0] in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(file)

    monkeypatch.setattr(os, "fsync", fsync)
    settings = replace(SETTINGS, checkpoint_minutes=0.0)
    straight = quick_task(pictures)
    told = r"no checkpoint of step 3 \(.*No space left on device.*\); the last one is of step 2"
    with pytest.warns(NextscaleWarning, match=told), pytest.raises(OSError, match="No space left"):
        train(straight, settings, tmp_path, report=quiet)
    assert saved_step(tmp_path) == 11  # whole
    assert (tmp_path / "classifier" / "model.safetensors").exists()  # the weights are there all the same
    assert not list(tmp_path.glob("*.partial"))
    full.clear()
    resumed = quick_task(pictures)
    train(resumed, settings, tmp_path, report=quiet)
    assert same(weights(straight.model), weights(resumed.model)) and saved_step(tmp_path) == 12


@pytest.mark.parametrize("at", [5, 11])  # on the way, and in the last iteration
def test_weights_that_are_none_replace_no_checkpoint(pictures: ImageSource, tmp_path: Path, at: int) -> None:
    train(quick_task(pictures), SETTINGS, tmp_path, report=quiet, stop_after=3)
    before = (tmp_path / CHECKPOINT).read_bytes()
    task = quick_task(pictures)
    usual = task.after_step

    def spoil(step: int, total: int) -> None:
        usual(step, total)
        if step == at:
            next(iter(task.model.parameters())).data.view(-1)[0] = float("inf")

    task.after_step = spoil  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="; the checkpoint of step 3 can be taken on with a lower lr"):
        train(task, SETTINGS, tmp_path, report=quiet)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
