"""The one training loop: optimiser, averaged weights, schedule, log, checkpoints that resume without loss.

What is trained is a :class:`Task`; it knows its loss, its evaluation and its pictures. Every random decision
of iteration i comes from (seed, i), so a run that is killed and resumed sees what an uninterrupted one would.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import pickle
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from nextscale.errors import CheckpointError, InvalidArgumentError, TrainingError
from nextscale.sampling.processes import Processes, joined
from nextscale.sampling.signals import held_back
from nextscale.training.data import batches
from nextscale.training.log import LOG, Log
from nextscale.training.muon import Muon, Pair, is_inner
from nextscale.training.parallel import Team
from nextscale.training.schedule import learning_rate, weight_decay

CHECKPOINT = "checkpoint.pt"
MAX_SKIPPED = 100
OPTIMIZERS = ("adamw", "sgd", "muon")

Model = TypeVar("Model", bound=nn.Module)


class Rival(Protocol):
    """Something that learns against the model, by gradients that the model's loss leaves with it."""

    @property
    def network(self) -> nn.Module: ...

    def step(self, rate: float) -> None:
        """Descend; rate: the model's learning rate as a share of its peak."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Task(Protocol[Model]):
    """Something to train."""

    model: Model
    num_examples: int
    state: dict[str, Tensor]
    """What upkeep remembers between iterations, changed in place; checkpoints store it."""

    @property
    def rival(self) -> Rival | None:
        """What learns against the model, if anything does."""
        ...

    def loss(self, rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a batch of row numbers, and what to log beside it."""
        ...

    def after_step(self, step: int, total: int) -> None:
        """Upkeep between iterations that is not gradient descent."""
        ...

    def evaluate(self, model: Model) -> dict[str, float]:
        """Figures on held-out data, with the averaged weights."""
        ...

    def sample(self, model: Model, path: Path) -> None:
        """A picture of what the model does now."""
        ...

    def save(self, model: Model, folder: Path) -> None:
        """The averaged weights in the layout that pipelines load."""
        ...


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast to train; what to train is the task's business.

    batch_size: examples per iteration, of all processes together.
    accumulate: parts of a process's share that are computed one after another, to save memory.
    images: training examples to see in all, repeats included.
    optimizer: "adamw"; "muon", which is for transformers (:class:`~nextscale.training.muon.Muon`), with the
        learning rates of "adamw"; or "sgd", stochastic gradient descent with Nesterov's momentum, whose
        weight decay is added to the gradient, and whose rates have nothing in common with the others'.
    warmup: share of the iterations during which the learning rate rises.
    weight_decay_end: reached along a half cosine; ``None`` keeps ``weight_decay`` constant.
    betas: decay of the averaged gradient, which is also the momentum of "sgd", and of its square.
    ema: decay of the averaged weights per iteration (reached gradually); 0 keeps no average.
    dtype: autocast dtype; "auto" takes bfloat16 where the machine multiplies it faster than float32.
    checkpoint_minutes: time between checkpoints; the last one is always written.
    """

    batch_size: int = 128
    accumulate: int = 1
    images: int = 1_000_000
    lr: float = 1e-3
    shape: str = "cos"
    end: float = 0.01
    warmup: float = 0.02
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 2.0
    ema: float = 0.999
    dtype: str = "auto"
    seed: int = 0
    log_every: int = 20
    eval_minutes: float = 5.0
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "images", "lr", "log_every"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not 0 <= self.ema < 1:
            raise InvalidArgumentError(f"ema must be in [0, 1), got {self.ema!r}")
        if self.optimizer not in OPTIMIZERS:
            raise InvalidArgumentError(
                f"unknown optimizer {self.optimizer!r}; known: {', '.join(OPTIMIZERS)}"
            )
        learning_rate(1, peak=self.lr, warmup=0, total=3, shape=self.shape, end=self.end)  # checks the shape

    @property
    def total_steps(self) -> int:
        return math.ceil(self.images / self.batch_size)


class Reporter(Protocol):
    """Where progress goes: the command line draws a bar, the default prints lines."""

    def __call__(self, record: dict[str, Any], step: int, total: int) -> None: ...


def print_report(record: dict[str, Any], step: int, total: int) -> None:
    """One plain line per record."""
    values = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
    print(f"{step}/{total}  {values}", flush=True)


def train(
    task: Task[Model],
    settings: TrainSettings,
    output: Path,
    *,
    resume: bool = True,
    report: Reporter = print_report,
    stop_after: int | None = None,
) -> Model:
    """Train a task to the end of its settings and return the averaged model.

    output: folder for the checkpoint, ``log.jsonl``, pictures and the final weights.
    resume: go on from the checkpoint in ``output`` if there is one.
    stop_after: iterations to do in this call, for tests and for running in portions.
    """
    output.mkdir(parents=True, exist_ok=True)
    with joined() as processes:
        run = _Run.start(task, settings, output, processes, resume=resume)
        _iterate(run, report, stop_after)
        if processes.is_main:
            task.save(run.averaged, output)
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
        held_back() as caught,
    ):
        for rows in batches(task.num_examples, settings.batch_size, settings.seed, run.step):
            if run.step >= until:
                break
            run.team.model.zero_grad(set_to_none=True)
            seed = settings.seed * 1_000_003 + run.step
            loss, metrics, stopped = run.team.backward(rows, seed, loss_of, bool(caught))
            if run.descend():
                run.team.after_step(lambda: task.after_step(run.step, run.total))
            run.step += 1
            if run.is_main:
                _tell(run, log, report, loss, metrics, until)
                # Alone, nobody needs to agree: a signal counts also while figures were computed.
                stopped = stopped or (run.team.processes.count == 1 and bool(caught))
                if stopped or run.due("checkpoint", settings.checkpoint_minutes) or run.step == until:
                    run.save()
            if stopped:
                raise KeyboardInterrupt


def _tell(
    run: _Run[Model], log: Log, report: Reporter, loss: Tensor, metrics: dict[str, Tensor], until: int
) -> None:
    """What the log and people hear of an iteration."""
    settings = run.settings
    if run.step % settings.log_every == 0 or run.step == until:
        record = log.write(run.record(loss, metrics))
        report(record, run.step, run.total)
    if run.due("eval", settings.eval_minutes) or run.step == run.total:
        record = log.write({"step": run.step, "eval": run.evaluate()})
        report(record["eval"], run.step, run.total)


def autocast_dtype(name: str, device: torch.device) -> torch.dtype:
    """The autocast dtype by name; "auto" is bfloat16 where hardware multiplies it, else float32."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported()
        else:  # private names, which not every torch has; without them float32 is the safe answer
            asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
            native = device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)
        return torch.bfloat16 if native else torch.float32
    if name not in known:
        raise InvalidArgumentError(f"unknown dtype {name!r}; known: auto, {', '.join(known)}")
    return known[name]


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

    @classmethod
    def start(
        cls,
        task: Task[Model],
        settings: TrainSettings,
        output: Path,
        processes: Processes,
        *,
        resume: bool,
    ) -> _Run[Model]:
        learners = nn.ModuleList([task.model])
        if task.rival is not None:
            learners.append(task.rival.network)
        team = Team(processes, settings.accumulate, learners, task.state)
        team.check(settings.batch_size)
        averaged = copy.deepcopy(task.model).eval().requires_grad_(False)
        run = cls(task, settings, output, team, averaged, _optimizer(task.model, settings))
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
    def device(self) -> torch.device:
        return next(self.task.model.parameters()).device

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
                raise TrainingError(
                    f"{MAX_SKIPPED} iterations in a row had gradients that are not finite, up to step "
                    f"{self.step}; lr {s.lr} is probably too high"
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

    def evaluate(self) -> dict[str, float]:
        figures = self.task.evaluate(self.averaged)
        self.task.sample(self.averaged, self.output / f"sample-{self.step:07d}.png")
        return figures

    def save(self) -> None:
        state = {
            "model": self.task.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.state,
            "rival": None if self.task.rival is None else self.task.rival.state_dict(),
            "step": self.step,
            "seconds": self.seconds + time.monotonic() - self.started,
            "settings": asdict(self.settings),
        }
        partial = self.output / (CHECKPOINT + ".partial")
        torch.save(state, partial)
        # A kill leaves the old checkpoint or the new one, whole.
        os.replace(partial, self.output / CHECKPOINT)

    def load(self) -> None:
        path = self.output / CHECKPOINT
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise CheckpointError(
                f"{str(path)!r} is damaged ({type(error).__name__}); delete it, or use resume=False"
            ) from None
        for name in ("batch_size", "seed", "optimizer"):
            before, now = state["settings"].get(name, "adamw"), getattr(self.settings, name)
            if before != now:
                raise CheckpointError(
                    f"{str(path)!r} was made with {name} {before}, now it is {now}, so the run could not be "
                    f"continued exactly. Use the same, another output folder, or resume=False"
                )
        rival = state.get("rival")
        if (rival is None) != (self.task.rival is None):
            raise CheckpointError(
                f"{str(path)!r} was made {'without' if rival is None else 'with'} an adversarial term, "
                f"unlike this run, so it could not be continued exactly. Use the same, another output "
                f"folder, or resume=False"
            )
        try:
            self.task.model.load_state_dict(state["model"])
            if self.task.rival is not None:
                self.task.rival.load_state_dict(state["rival"])
            self.averaged.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name, value in state["task"].items():
                self.task.state[name].copy_(value)
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{str(path)!r} belongs to another model: {error}. Use another output folder or resume=False"
            ) from None
        self.step, self.seconds = state["step"], state["seconds"]


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer | Pair:
    groups = _decay_groups(model.named_parameters())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.betas[0], nesterov=True, fused=True)
    if settings.optimizer == "muon":
        return _muon(model, groups, settings)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def _decay_groups(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Vectors, biases, position tables and the like are exempt from weight decay (the published rules)."""
    exempt = ("pos_1LC", "pos_start", "lvl_embed", "ada_gss", "scale_mul", "cfg_uncond", "sos.ca.mat_q")
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, p in parameters:
        if p.requires_grad:
            (
                free if p.ndim <= 1 or name.endswith("bias") or any(e in name for e in exempt) else decayed
            ).append(p)
    return [{"params": decayed, "decays": True}, {"params": free, "decays": False}]


def _muon(model: nn.Module, groups: list[dict[str, Any]], settings: TrainSettings) -> Pair:
    """Muon for the matrices in blocks, AdamW for what is left."""
    inner = {id(p) for name, p in model.named_parameters() if is_inner(name, p)}
    parts: list[list[dict[str, Any]]] = []
    for wanted in (False, True):
        chosen = ({**g, "params": [p for p in g["params"] if (id(p) in inner) == wanted]} for g in groups)
        parts.append([g for g in chosen if g["params"]])
    if not parts[1]:
        raise InvalidArgumentError(
            "the optimizer muon is for transformers, and this model has no matrices in blocks; use adamw"
        )
    dtype = autocast_dtype("auto", next(model.parameters()).device)
    adamw = torch.optim.AdamW(parts[0], lr=settings.lr, betas=settings.betas, fused=True)
    return Pair(adamw, Muon(parts[1], lr=settings.lr, dtype=dtype))
