"""The one training loop: optimiser, averaged weights, schedule, log, checkpoints that resume without loss.

What is trained is a :class:`Task`; it knows its loss, its evaluation and its pictures. Every random decision
of iteration i comes from (seed, i), so a run that is killed and resumed sees what an uninterrupted one would.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from nextscale.errors import TrainingError, warn
from nextscale.sampling.processes import Processes, joined
from nextscale.sampling.signals import held_back
from nextscale.training.checkpoint import (
    CHECKPOINT,
    Origin,
    all_finite,
    check_place,
    check_rival,
    check_same,
    read_checkpoint,
    restore,
    write_whole,
)
from nextscale.training.data import batches
from nextscale.training.log import LOG, Log
from nextscale.training.measuring import measure
from nextscale.training.muon import Pair
from nextscale.training.optimizers import make_optimizer
from nextscale.training.parallel import Team
from nextscale.training.schedule import learning_rate, weight_decay
from nextscale.training.settings import OPTIMIZERS, TrainSettings, autocast_dtype
from nextscale.training.task import Model, Reporter, Task, print_report
from nextscale.training.wording import named
from nextscale.usual import with_usual_defaults

__all__ = ["CHECKPOINT", "LOG", "OPTIMIZERS", "TrainSettings", "autocast_dtype", "train"]

MAX_SKIPPED = 100  # iterations in a row without a finite gradient, after which a run has diverged
LAPSE = 10  # the same at its end; after as many, the checkpoint before them is worth more than another one


@with_usual_defaults
def train(
    task: Task[Model],
    settings: TrainSettings,
    output: Path,
    *,
    origin: Origin | None = None,
    resume: bool = True,
    report: Reporter = print_report,
    stop_after: int | None = None,
) -> Model:
    """Train a task to the end of its settings and return the averaged model.

    output: folder for the checkpoint, ``log.jsonl``, pictures and the final weights.
    origin: what the run is made of; a checkpoint of a run with another is refused.
    resume: go on from the checkpoint in ``output`` if there is one.
    stop_after: iterations to do in this call, for tests and for running in portions.

    What fails beside the training itself, figures on held-out data, pictures or the writing of a checkpoint
    before the last, is reported as a warning, and the training goes on. Raises TrainingError if it diverges,
    CheckpointError for a checkpoint that is damaged or another run's, OSError if the last one cannot be
    written; whatever it raises, what was done before is saved where that is possible.
    """
    output.mkdir(parents=True, exist_ok=True)
    with joined() as processes:
        run = _Run.start(task, settings, output, processes, origin or {}, resume=resume)
        _iterate(run, report, stop_after)
        if processes.is_main:
            task.save(run.averaged, output)
            if run.unsaved is not None:
                raise run.unsaved
    return run.averaged


def _iterate(run: _Run[Model], report: Reporter, stop_after: int | None) -> None:
    task, settings = run.task, run.settings
    dtype = autocast_dtype(settings.dtype, run.device)
    task.model.train()
    until = run.total if stop_after is None else min(run.total, run.step + stop_after)

    def loss_of(rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(run.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return task.loss(rows, run.step, run.total)

    with (
        contextlib.closing(Log(run.output / LOG, run.step, run.is_main)) as log,
        torch.random.fork_rng(),
        held_back() as run.caught,
    ):
        if run.is_main and 0 < run.step == run.total and run.step not in log.measured:
            run.measure(log, report)  # it was killed while it did, or that failed
        for rows in batches(task.num_examples, settings.batch_size, settings.seed, run.step):
            if run.step >= until:
                break
            with run.secured():
                run.team.model.zero_grad(set_to_none=True)
                seed = settings.seed * 1_000_003 + run.step
                loss, metrics, run.voted = run.team.backward(rows, seed, loss_of, bool(run.caught))
                run.advance()
                if run.is_main:
                    _tell(run, log, report, loss, metrics, until)
            if run.stopped:
                raise KeyboardInterrupt


def _tell(
    run: _Run[Model], log: Log, report: Reporter, loss: Tensor, metrics: dict[str, Tensor], until: int
) -> None:
    """Tell files, the log and people of an iteration.

    The checkpoint comes before everything that can fail or take long.
    """
    settings = run.settings
    last = run.step == until
    told = last or run.step % settings.log_every == 0
    record = log.write(run.record(loss, metrics)) if told else {}
    measured = run.due("eval", settings.eval_minutes) or run.step == run.total
    if run.stopped or last or measured or run.due("checkpoint", settings.checkpoint_minutes):
        run.keep()
    if told:
        report(record, run.step, run.total)
    if measured and not run.stopped:
        run.measure(log, report)
    if run.stopped:
        run.keep()  # unless that was just done


@dataclass
class _Run(Generic[Model]):
    """The moving parts of a run: what a checkpoint stores."""

    task: Task[Model]
    settings: TrainSettings
    output: Path
    team: Team
    averaged: Model
    optimizer: torch.optim.Optimizer | Pair
    step: int = 0
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    skipped: int = 0  # iterations in a row without a finite gradient
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    first_step: int = 0
    last: dict[str, float] = field(default_factory=dict)
    origin: Origin = field(default_factory=dict)
    saved_step: int | None = None  # of the checkpoint in the folder, if it is ours
    whole: bool = True  # False while an optimiser step is half done
    unsaved: OSError | None = None  # why the last checkpoint could not be written
    caught: Sequence[int] = ()  # signals that asked this process to stop
    voted: bool = False  # whether all processes know that one of them was asked to

    @classmethod
    def start(
        cls,
        task: Task[Model],
        settings: TrainSettings,
        output: Path,
        processes: Processes,
        origin: Origin,
        *,
        resume: bool,
    ) -> _Run[Model]:
        learners = nn.ModuleList([task.model])
        if task.rival is not None:
            learners.append(task.rival.network)
        team = Team(processes, settings.accumulate, learners, task.state)
        team.check(settings.batch_size)
        averaged = copy.deepcopy(task.model).eval().requires_grad_(False)
        run = cls(task, settings, output, team, averaged, make_optimizer(task.model, settings), origin=origin)
        check_place(output)
        if resume and (output / CHECKPOINT).exists():
            run.load()
        team.begin(run.step)
        run.first_step = run.step
        return run

    @property
    def total(self) -> int:
        return self.settings.total_steps

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.team.processes.is_main

    @property
    def stopped(self) -> bool:
        """Whether to stop. Alone, nobody needs to agree: a signal counts also while figures are computed."""
        return self.voted or (self.team.processes.count == 1 and bool(self.caught))

    @property
    def device(self) -> torch.device:
        return next(self.task.model.parameters()).device

    @contextlib.contextmanager
    def secured(self) -> Iterator[None]:
        """Save what was done when an iteration fails by something else than its own numbers."""
        step, touched = self.step, [*self.task.state.values(), *self.task.model.buffers()]
        before = [tensor.clone() for tensor in touched]
        try:
            yield
        except TrainingError:
            raise
        except Exception as error:
            own_numbers = isinstance(error, (RuntimeError, ValueError, ArithmeticError, IndexError))
            if own_numbers and not all_finite(self.task.model):
                raise self.diverged(f"the weights are not finite after step {self.step}") from error
            if self.is_main and self.whole and self.step not in (0, self.saved_step):
                if self.step == step:  # a part of the batch was seen; it will be again
                    for tensor, value in zip(touched, before, strict=True):
                        tensor.copy_(value)
                with contextlib.suppress(Exception):  # the first failure is the one to tell of
                    self.save()
            raise

    def advance(self) -> None:
        """The optimiser step and the upkeep of an iteration. Raises TrainingError if the run diverged."""
        self.whole = False
        if self.descend():
            self.team.after_step(lambda: self.task.after_step(self.step, self.total))
        self.step += 1
        self.whole = True
        if self.step == self.total and self.skipped >= min(LAPSE, (self.total + 1) // 2):
            raise self.diverged(f"the last {self.skipped} iterations had gradients that are not finite")

    def diverged(self, what: str) -> TrainingError:
        """The error that ends a run whose numbers are none."""
        kept = self.saved_step
        remedy = f"; the checkpoint of step {kept} can be taken on with a lower {named('lr')}" if kept else ""
        return TrainingError(f"{what}; {named('lr')} {self.settings.lr} is probably too high{remedy}")

    def descend(self) -> bool:
        """One optimiser step; False when the gradient is not finite and the batch was skipped."""
        s = self.settings
        rate = learning_rate(
            self.step,
            peak=s.lr,
            warmup=round(s.warmup * self.total),
            total=self.total,
            shape=s.shape,
            end=s.end,
        )
        decay_end = s.weight_decay if s.weight_decay_end is None else s.weight_decay_end
        decay = weight_decay(self.step, start=s.weight_decay, end=decay_end, total=self.total)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = rate, decay if group["decays"] else 0.0
        rival = self.task.rival
        norms = [nn.utils.clip_grad_norm_(self.task.model.parameters(), s.clip)]
        if rival is not None:
            norms.append(nn.utils.clip_grad_norm_(rival.network.parameters(), s.clip))
        self.norm = norms[0]
        if not all(torch.isfinite(norm) for norm in norms):
            self.skipped += 1
            if self.skipped >= MAX_SKIPPED:
                raise self.diverged(
                    f"{MAX_SKIPPED} iterations in a row had gradients that are not finite, up to step "
                    f"{self.step}"
                )
            return False
        self.skipped = 0
        self.optimizer.step()
        if rival is not None:
            rival.step(rate / s.lr)
        self._average()
        return True

    def _average(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            average: list[Tensor] = list(self.averaged.parameters())
            now: list[Tensor] = list(self.task.model.parameters())
            torch._foreach_lerp_(average, now, 1 - decay)
            for a, b in zip(self.averaged.buffers(), self.task.model.buffers(), strict=True):
                # Averaged weights need statistics that were averaged alike: batch norm's follow the weights.
                a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)

    def due(self, what: str, minutes: float) -> bool:
        now = time.monotonic()
        if now - self.last.setdefault(what, self.started) < 60 * minutes:
            return False
        self.last[what] = now
        return True

    def record(self, loss: Tensor, metrics: dict[str, Tensor]) -> dict[str, Any]:
        elapsed = time.monotonic() - self.started
        rate = (self.step - self.first_step) * self.settings.batch_size / max(elapsed, 1e-9)
        left = (self.total - self.step) * self.settings.batch_size / max(rate, 1e-9)
        return {
            "step": self.step,
            "images": self.step * self.settings.batch_size,
            "loss": float(loss.detach()),
            **{k: float(v) for k, v in metrics.items()},
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": float(self.norm),
            "images_per_second": rate,
            "seconds": self.seconds + elapsed,
            "seconds_left": left,
        }

    def measure(self, log: Log, report: Reporter) -> None:
        """Figures and a picture of the averaged weights; what fails is reported, and the training goes on."""
        figures = measure(
            lambda: self.task.evaluate(self.averaged),
            lambda path: self.task.sample(self.averaged, path),
            self.step,
            self.output,
            log,
        )
        if figures:
            report(figures, self.step, self.total)

    def keep(self) -> None:
        """Write a checkpoint, or report why not and go on; raises TrainingError for weights that are none."""
        if self.step == self.saved_step or self.skipped >= LAPSE:
            return
        self.last["checkpoint"] = time.monotonic()
        try:
            self.save()
        except OSError as error:
            self.unsaved = error
            before = f"the last one is of step {self.saved_step}" if self.saved_step else "there is none yet"
            warn(f"no checkpoint of step {self.step} ({error}); {before}")

    def save(self) -> None:
        """Write a checkpoint. Raises OSError if that fails; TrainingError for weights that are none, which
        are no reason to replace an older one."""
        if not (all_finite(self.task.model) and all_finite(self.averaged)):
            raise self.diverged(f"the weights are not finite after step {self.step}")
        state = {
            "model": self.task.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.state,
            "step": self.step,
            "seconds": self.seconds + time.monotonic() - self.started,
            "settings": asdict(self.settings),
            "origin": dict(self.origin),
        }
        if self.task.rival is not None:
            state["rival"] = self.task.rival.network.state_dict()
            state["rival_optimizer"] = self.task.rival.optimizer.state_dict()
        write_whole(state, self.output / CHECKPOINT)
        self.saved_step, self.unsaved = self.step, None

    def load(self) -> None:
        path = self.output / CHECKPOINT
        state = read_checkpoint(path)
        check_same(path, state, self.origin, asdict(self.settings))
        check_rival(path, state, self.task.rival is not None)
        models: dict[str, nn.Module] = {"model": self.task.model, "averaged": self.averaged}
        optimizers: dict[str, torch.optim.Optimizer | Pair] = {"optimizer": self.optimizer}
        if self.task.rival is not None:
            models["rival"] = self.task.rival.network
            optimizers["rival_optimizer"] = self.task.rival.optimizer
        restore(path, state, models, optimizers, self.task.state)
        self.step, self.seconds = state["step"], state["seconds"]
        self.saved_step = self.step
