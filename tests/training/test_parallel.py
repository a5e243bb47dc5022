"""Two real processes train as one does that accumulates two parts, and can take over from each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.sampling.processes import Processes, joined
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import ImageSource
from nextscale.training.parallel import Team
from nextscale.training.trainer import TrainSettings, train

SETTINGS = TrainSettings(
    batch_size=8, images=64, lr=1e-3, log_every=1, eval_minutes=1000, checkpoint_minutes=1000, ema=0.5
)


def quiet(record: dict[str, Any], step: int, total: int) -> None:
    pass


def classifier(pictures: ImageSource) -> ClassifierTask:
    torch.manual_seed(0)
    model = SmallClassifier(ClassifierConfig(num_classes=3, widths=(8, 8, 8)))
    return ClassifierTask(model, pictures, pictures)


# What each process of a launch does: a part of the training, then its weights into a file.
JOB = """
import sys, torch
from pathlib import Path
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.sampling.processes import joined
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import open_images
from nextscale.training.trainer import TrainSettings, train
from nextscale.training.tokenizer import TokenizerTask
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig

data, output, kind, portion = sys.argv[1:]
pictures, output = open_images(data, size=32), Path(output)
torch.manual_seed(0)
if kind == "classifier":
    model = SmallClassifier(ClassifierConfig(num_classes=3, widths=(8, 8, 8)))
    task = ClassifierTask(model, pictures, pictures)
else:
    sizes = dict(vocab_size=16, z_channels=4, ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4)
    model = VARTokenizer(VARTokenizerConfig(**sizes, patch_nums=(1, 2, 4, 8)))
    task = TokenizerTask(model, pictures, pictures, revive_every=2, eval_images=8)
settings = TrainSettings(
    batch_size=8, images=64, lr=1e-3, log_every=1, eval_minutes=1000, checkpoint_minutes=1000, ema=0.5
)
with joined() as processes:
    average = train(task, settings, output, report=lambda *_: None, stop_after=int(portion) or None)
    averaged = {f"average.{k}": v for k, v in average.state_dict().items()}
    state = {**model.state_dict(), **averaged, **task.state}
    torch.save(state, output / f"rank{processes.rank}.pt")
"""


def launch(tmp_path: Path, *arguments: object) -> list[dict[str, Tensor]]:
    """Two processes, and what each ended with."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            script,
            *map(str, arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(Path(str(arguments[1])) / f"rank{i}.pt", weights_only=True) for i in range(2)]


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """But for batch statistics, which follow the order in which parts are seen."""
    for name, value in other.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_processes_are_one_that_accumulates(pictures: ImageSource, picture_folder: Path, tmp_path: Path):
    both = launch(tmp_path, picture_folder, tmp_path / "two", "classifier", 0)
    assert all(torch.equal(both[0][k], both[1][k]) for k in both[0] if "num_batches" not in k)
    task = classifier(pictures)
    train(task, replace(SETTINGS, accumulate=2), tmp_path / "one", report=quiet)
    assert_close(both[0], task.model.state_dict())
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[json.loads(line)["loss"] for line in log if "loss" in json.loads(line)] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 8


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(
    pictures: ImageSource, picture_folder: Path, tmp_path: Path
):
    straight = classifier(pictures)
    train(straight, replace(SETTINGS, accumulate=2), tmp_path / "straight", report=quiet)
    broken, settings = tmp_path / "broken", replace(SETTINGS, accumulate=2)
    train(classifier(pictures), settings, broken, report=quiet, stop_after=3)
    launch(tmp_path, picture_folder, broken, "classifier", 2)
    last = classifier(pictures)
    train(last, settings, broken, report=quiet)
    assert_close(last.model.state_dict(), straight.model.state_dict())
    steps = [json.loads(line)["step"] for line in (broken / "log.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 9))


@pytest.mark.slow
def test_upkeep_of_one_process_is_that_of_all(picture_folder: Path, tmp_path: Path):
    """Codes are revived by the main process, from what all have seen chosen."""
    one, two = launch(tmp_path, picture_folder, tmp_path / "run", "tokenizer", 0)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_accumulation_cuts_a_batch_and_keeps_its_gradient(pictures: ImageSource):
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(7, 3)

    def loss_of(rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return model(inputs[rows]).square().mean(), {}

    whole, gradients = None, []
    for parts in (1, 2, 3):
        model.zero_grad()
        team = Team(Processes(), parts, model, {})
        loss, _, _ = team.backward(torch.arange(7), 0, loss_of, False)
        gradients.append(model.weight.grad.clone())
        whole = loss if whole is None else whole
        torch.testing.assert_close(loss, whole)
    for gradient in gradients:
        torch.testing.assert_close(gradient, gradients[0])


def test_a_batch_must_have_an_example_for_every_part():
    team = Team(Processes(0, 4), 3, torch.nn.Linear(1, 1), {})
    with pytest.raises(InvalidArgumentError, match="a batch of 8 cannot be cut into 12 parts"):
        team.check(8)
    with pytest.raises(InvalidArgumentError, match="accumulate must be positive, got 0"):
        TrainSettings(accumulate=0)


def test_a_process_that_nobody_launched_is_alone(monkeypatch: pytest.MonkeyPatch):
    with joined() as processes:
        assert processes == Processes() and processes.is_main
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(InvalidArgumentError, match="WORLD_SIZE is 'many'"), joined():
        pass
