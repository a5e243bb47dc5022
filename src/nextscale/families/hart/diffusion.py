"""HART's residual diffusion head: what the codes leave out, drawn for every token of the finest scale.

A small network denoises one latent vector at a time under a condition (Tang et al. 2024, arXiv 2410.10812,
after Li et al. 2024, arXiv 2406.11838). Tokens do not see each other. Leading axes of tensors are free:
``...`` below may be ``(B, l)`` or the rows of any batch. Attribute names are the keys of published files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError
from nextscale.generation.noise import Noise, Stream
from nextscale.guidance.cfg import combine_each
from nextscale.nn.bounds import bounded
from nextscale.nn.linear import Linear
from nextscale.nn.timestep import TimestepEmbedding

TRAIN_STEPS = 1000
LATENT_SCALE = 0.6  # a residual is divided by it for the process; drawn ones stay within +-0.6
MAX_BETA = 0.999
NORM_EPS = 1e-6

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


# ---------------------------------------------------------------------- the noise schedule


def cosine_betas(steps: int = TRAIN_STEPS) -> Floats:
    """Variances of the forward process: the cosine schedule of Nichol & Dhariwal 2021 (arXiv 2102.09672)."""
    alphas = np.cos(math.pi / 2 * (np.arange(steps + 1) / steps + 0.008) / 1.008) ** 2
    return np.minimum(1 - alphas[1:] / alphas[:-1], MAX_BETA)


def kept_steps(sections: str, steps: int = TRAIN_STEPS) -> list[int]:
    """Which of the training steps a shorter process visits, ascending.

    sections: how many of each of equally long sections, ``"8"`` or ``"4,4"``, spread from the first step of a
    section to its last; or ``"ddimN"``: N steps at a constant whole stride from step 0.
    Raises InvalidArgumentError for anything else, and for fewer than two steps in all.
    """
    count = sections.removeprefix("ddim")
    if count != sections and count.isdecimal():
        strides = [n for n in range(1, steps) if len(range(0, steps, n)) == int(count) > 1]
        if strides:
            return list(range(0, steps, strides[0]))
        raise InvalidArgumentError(f"no whole stride makes {count} steps out of {steps}, got {sections!r}")
    try:
        counts = [int(n) for n in sections.split(",")]
    except ValueError:
        counts = []
    lengths = [steps // max(len(counts), 1) + (i < steps % max(len(counts), 1)) for i in range(len(counts))]
    if sum(counts) < 2 or any(not 1 <= n <= length for n, length in zip(counts, lengths, strict=True)):
        raise InvalidArgumentError(
            f"num_sampling_steps must be a string of section sizes that make at least 2 and at most {steps} "
            f"steps ('8', '4,4'), or 'ddimN', got {sections!r}"
        )
    kept, start = [], 0
    for n, length in zip(counts, lengths, strict=True):
        kept += [start + round(i * (length - 1) / max(n - 1, 1)) for i in range(n)]
        start += length
    return kept


@dataclass(frozen=True, eq=False)
class DiffusionProcess:
    """A Gaussian process over some of the training steps, in float64.

    timesteps: int64 ``(n,)``, the training step that each of its own steps stands for.
    alphas_cumprod: ``(n,)``, how much of the data's variance is left at each; other tables follow from it.
    """

    timesteps: Integers
    alphas_cumprod: Floats

    @classmethod
    def training(cls) -> DiffusionProcess:
        return cls(np.arange(TRAIN_STEPS), np.cumprod(1 - cosine_betas(), dtype=np.float64))

    def respaced(self, sections: str) -> DiffusionProcess:
        """The process over some of the steps only; see :func:`kept_steps`."""
        kept = np.array(kept_steps(sections, len(self.timesteps)))
        return DiffusionProcess(self.timesteps[kept], self.alphas_cumprod[kept])

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @cached_property
    def _previous(self) -> Floats:
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def betas(self) -> Floats:
        return 1 - self.alphas_cumprod / self._previous

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Floats:
        return np.sqrt(1 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Floats:
        return np.sqrt(1 / self.alphas_cumprod - 1)

    @cached_property
    def posterior_variance(self) -> Floats:
        """Variance of a step given the data and the following step, q(x_k-1 | x_k, x_0)."""
        return self.betas * (1 - self._previous) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Floats:
        """Its logarithm; the first step's, minus infinity, is replaced by the second's."""
        return np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))

    @cached_property
    def posterior_mean_coef1(self) -> Floats:
        """The weight of x_0 in the mean of q(x_k-1 | x_k, x_0)."""
        return self.betas * np.sqrt(self._previous) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Floats:
        """The weight of x_k in the mean of q(x_k-1 | x_k, x_0)."""
        return (1 - self._previous) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)


def _at(table: Floats, index: Tensor, x: Tensor) -> Tensor:
    """A table's entries for steps ``(...)``, float32 ``(..., 1)`` on the device of ``x``."""
    return torch.from_numpy(table).float().to(x.device)[index.to(x.device)][..., None]


# ---------------------------------------------------------------------- the network


class ModulatedMLP(nn.Module):
    """A residual block whose normalised input is shifted and scaled, and whose output is gated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 3 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:  # both (..., width)
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        result: Tensor = h + gate * self.mlp(self.in_ln(h) * (1 + scale) + shift)
        return result


class FinalLayer(nn.Module):
    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.linear = Linear(width, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        result: Tensor = self.linear(self.norm_final(h) * (1 + scale) + shift)
        return result


class DenoisingMLP(nn.Module):
    """Noisy vectors, timesteps and conditions to the noise and the variance, ``(..., 2 target_channels)``."""

    def __init__(self, target_channels: int, condition_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = Linear(condition_channels, width)
        self.input_proj = Linear(target_channels, width)
        self.res_blocks = nn.ModuleList(ModulatedMLP(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * target_channels)

    def forward(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """x: ``(..., target_channels)``; timesteps: ``(...)`` or one for all; condition: ``(..., C)``.

        Computes in the dtype of the weights and returns float32.
        """
        dtype = self.cond_embed.weight.dtype
        y = self.time_embed(timesteps) + self.cond_embed(condition.to(dtype))
        h = self.input_proj(x.to(dtype))
        for block in self.res_blocks:
            h = block(h, y)
        result: Tensor = self.final_layer(h, y)
        return result.float()


# ---------------------------------------------------------------------- the head


class ReverseStep(NamedTuple):
    """One step towards the data: the predicted data, clipped to +-1, and the next, less noisy vectors."""

    x0: Tensor
    sample: Tensor


class DiffusionLoss(NamedTuple):
    """The training objective of every vector, ``(...)``: ``total = mse + vb``."""

    total: Tensor
    mse: Tensor
    vb: Tensor


def _away(cond: Tensor, uncond: Tensor, guidance: float, convention: str = "extra") -> Tensor:
    """Combine predicted noise in its own dtype, as the published model does."""
    return (1 + guidance) * cond - guidance * uncond


class ResidualDiffusion(nn.Module):
    """Draws and learns residuals of ``target_channels`` under conditions of ``condition_channels``.

    num_sampling_steps: the steps of the shorter process used for drawing, a string; see :func:`kept_steps`.
    """

    def __init__(
        self,
        target_channels: int,
        condition_channels: int,
        width: int,
        depth: int,
        num_sampling_steps: str = "8",
    ) -> None:
        super().__init__()
        self.target_channels = target_channels
        self.net = DenoisingMLP(target_channels, condition_channels, width, depth)
        self.training_process = DiffusionProcess.training()
        self.process = self.training_process.respaced(num_sampling_steps)

    def draw_noise(self, noise: Noise, step: int, count: int) -> Tensor:
        """Draw the noise of a batch of images for :meth:`sample`, ``(n, B, count, target_channels)`` float32.

        noise: the images' numbers. step: of the schedule, whose cells the ``count`` vectors of an image are.
        """
        shape = (self.process.num_steps, self.target_channels)
        drawn = noise.normal(Stream.RESIDUAL, step, count, math.prod(shape))
        return drawn.unflatten(-1, shape).permute(2, 0, 1, 3)

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        guidance: float | Sequence[float] | None,
        noise: Tensor,
        temperature: float = 1.0,
    ) -> Tensor:
        """Residuals, float32 ``(M, ..., target_channels)``, each component within +-0.6.

        condition: ``(2 M, ..., C)``, the rows with a condition before those without; or ``(M, ..., C)`` if
            guidance is None.
        guidance: g of ``(1 + g) cond - g uncond``, which combines the predicted noise, or one for each of the
            M. None is plain sampling, and exactly 1 is too: there the published model leaves the combination
            out.
        noise: ``(n, M, ..., target_channels)`` for n sampling steps, as from :meth:`draw_noise`. The first is
            where the process starts, the others are added by all steps but the last, in their order.
        temperature: factor on the noise of the steps.
        """
        *_, last = self.trajectory(condition, guidance, noise, temperature)
        return last.sample * LATENT_SCALE

    def trajectory(
        self,
        condition: Tensor,
        guidance: float | Sequence[float] | None,
        noise: Tensor,
        temperature: float = 1.0,
    ) -> Iterator[ReverseStep]:
        """The steps of :meth:`sample`, before its factor of 0.6.

        Only the conditional half is followed: nothing depends on what becomes of the other.
        """
        n = self.process.num_steps
        if isinstance(guidance, Sequence):
            guidance = tuple(0.0 if g == 1.0 else g for g in guidance)  # which leaves it out row by row
        elif guidance is not None and guidance == 1.0:
            condition, guidance = condition.chunk(2)[0], None
        rows = len(condition) // (1 if guidance is None else 2)
        shape = (n, rows, *condition.shape[1:-1], self.target_channels)
        if noise.shape != shape or len(condition) % (1 if guidance is None else 2):
            raise InvalidArgumentError(
                f"{n} sampling steps under conditions {tuple(condition.shape)} "
                f"{'without' if guidance is None else 'with'} guidance take noise {shape}, "
                f"got {tuple(noise.shape)}"
            )
        noise = noise.float().to(condition.device)
        x = noise[0]
        for k in reversed(range(n)):
            index = torch.tensor(k)
            out = self.predict(x, torch.tensor(self.process.timesteps[k]), condition, guidance)
            added = noise[n - k] if k else torch.zeros_like(x)
            step = self.reverse_step(x, out, index, added, temperature)
            x = step.sample
            yield step

    def predict(
        self, x: Tensor, timesteps: Tensor, condition: Tensor, guidance: float | Sequence[float] | None
    ) -> Tensor:
        """What the network makes of x ``(M, ..., z)``: noise and variance, ``(M, ..., 2 z)``.

        timesteps: training steps, one for all or one per row of the condition. With guidance the condition
        has 2 M rows, and the variance is that of the conditional half.
        """
        timesteps = timesteps.to(x.device)
        if guidance is None:
            result: Tensor = self.net(x, timesteps, condition)
            return result
        cond, uncond = self.net(torch.cat([x, x]), timesteps, condition).chunk(2)
        z = self.target_channels
        branches = cond[..., :z], uncond[..., :z]
        if isinstance(guidance, Sequence):
            eps = combine_each(*branches, guidance, "extra", _away)
        else:
            eps = _away(*branches, guidance)
        return torch.cat([eps, cond[..., z:]], dim=-1)

    def reverse_step(
        self, x: Tensor, out: Tensor, index: Tensor, noise: Tensor, temperature: float = 1.0
    ) -> ReverseStep:
        """One ancestral step from the network's output ``(..., 2 z)``.

        index: int64, steps of the shorter process, one for all or one per vector; step 0 adds no noise.
        """
        eps, variance = out.chunk(2, dim=-1)
        x0 = bounded(self._data(self.process, x, eps, index))
        mean = self._posterior_mean(self.process, x0, x, index)
        logvar = self._log_variance(self.process, variance, index)
        scale = (index.to(x.device) > 0).float()[..., None] * temperature
        return ReverseStep(x0, mean + scale * torch.exp(logvar / 2) * noise)

    def loss(self, target: Tensor, condition: Tensor, timesteps: Tensor, noise: Tensor) -> DiffusionLoss:
        """The training objective for residuals ``target (..., z)``, as in :func:`sample`'s result.

        timesteps: int64 ``(...)`` below 1000; noise: standard normal ``(..., z)``. The error of the noise
        plus the variational term, in bits per channel. The latter trains the variance alone: the predicted
        noise is detached in it (arXiv 2102.09672, section 3.1).
        """
        process, start = self.training_process, target.float() / LATENT_SCALE
        kept = _at(np.sqrt(process.alphas_cumprod), timesteps, start)
        added = _at(np.sqrt(1 - process.alphas_cumprod), timesteps, start)
        x = kept * start + added * noise
        eps, variance = self.net(x, timesteps.to(x.device), condition).chunk(2, dim=-1)
        mse = (noise - eps).square().mean(-1)

        mean = self._posterior_mean(process, self._data(process, x, eps.detach(), timesteps), x, timesteps)
        logvar = self._log_variance(process, variance, timesteps)
        true_mean = self._posterior_mean(process, start, x, timesteps)
        true_logvar = _at(process.posterior_log_variance_clipped, timesteps, x)
        divergence = _gaussian_kl(true_mean, true_logvar, mean, logvar)
        likelihood = _discretized_log_likelihood(start, mean, logvar)
        first = (timesteps.to(x.device) == 0)[..., None]
        vb = torch.where(first, -likelihood, divergence).mean(-1) / math.log(2)
        return DiffusionLoss(mse + vb, mse, vb)

    def _data(self, process: DiffusionProcess, x: Tensor, eps: Tensor, index: Tensor) -> Tensor:
        """x_0 from x_k and the noise in it."""
        recip = _at(process.sqrt_recip_alphas_cumprod, index, x)
        return recip * x - _at(process.sqrt_recipm1_alphas_cumprod, index, x) * eps

    def _posterior_mean(self, process: DiffusionProcess, x0: Tensor, x: Tensor, index: Tensor) -> Tensor:
        c1 = _at(process.posterior_mean_coef1, index, x)
        return c1 * x0 + _at(process.posterior_mean_coef2, index, x) * x

    def _log_variance(self, process: DiffusionProcess, variance: Tensor, index: Tensor) -> Tensor:
        """Between the posterior's (-1) and the forward process's (+1), on a logarithmic scale."""
        share = (variance + 1) / 2
        high = _at(np.log(process.betas), index, variance)
        return share * high + (1 - share) * _at(process.posterior_log_variance_clipped, index, variance)


def _gaussian_kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    """KL(N1 || N2) per channel, in nats."""
    return 0.5 * (
        logvar2 - logvar1 - 1 + torch.exp(logvar1 - logvar2) + (mean1 - mean2).square() * torch.exp(-logvar2)
    )


def _discretized_log_likelihood(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Log-probability of the bin of width 2/255 around x, per channel; the outermost bins are open-ended."""
    inverse = torch.exp(-logvar / 2)
    above = _normal_cdf(inverse * (x - mean + 1 / 255))
    below = _normal_cdf(inverse * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(u: Tensor) -> Tensor:
    """The standard normal's, by the tanh approximation of the published objective."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
