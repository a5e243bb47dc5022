"""How long and how fast to train, whatever is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nextscale.errors import InvalidArgumentError
from nextscale.training.schedule import learning_rate

OPTIMIZERS = ("adamw", "sgd", "muon")


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
    eval_minutes: time between figures on held-out data; a checkpoint is written before them.
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
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidArgumentError(f"{name} must be positive, got {getattr(self, name)!r}")
        if isinstance(self.seed, bool) or not 0 <= self.seed < 2**32:  # torch's CPU generator takes no more
            raise InvalidArgumentError(f"seed must be a whole number from 0 up to 2^32, got {self.seed!r}")
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
