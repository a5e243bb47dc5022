"""From guided logits to tokens: temperature, filters, and the draw.

An image is made by one uniform number per decision (a token, or a bit), all drawn up front from the image's
own seed. So an image does not depend on its neighbours in a batch, and two runs with the same seeds and
different guidance differ by the guidance alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.kernels import fused_for
from nextscale.nn.placement import CPU

Sampler = Literal["paired", "greedy", "multinomial"]

SORTED_ENTRIES = 2**18  # 2 MiB of whole numbers


@dataclass(frozen=True)
class Filters:
    """What is left to draw from.

    temperature: logits are divided by it; one number, or one per step.
    top_k: keep the k most likely tokens and those tied with the k-th; 0 keeps all; one number, or one per
        step.
    top_p: keep the smallest set of tokens whose probability reaches p, after top-k; 0 and 1 keep all.
    min_p: keep tokens at least this share as likely as the likeliest; 0 keeps all.
    """

    temperature: float | Sequence[float] = 1.0
    top_k: int | Sequence[int] = 0
    top_p: float = 0.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        values, several = _values(self.temperature)
        for t in values:
            if isinstance(t, bool) or not isinstance(t, Real) or not 0 < float(t) < math.inf:
                raise InvalidArgumentError(
                    f"temperature must be a positive number, got {t!r}; "
                    f"for the likeliest token use sampler='greedy'"
                )
        object.__setattr__(self, "temperature", tuple(map(float, values)) if several else float(values[0]))
        values, several = _values(self.top_k)
        for k in values:
            if isinstance(k, bool) or not isinstance(k, Integral) or k < 0:
                raise InvalidArgumentError(f"top_k must be a whole number, 0 for no limit; got {k!r}")
        object.__setattr__(self, "top_k", tuple(map(int, values)) if several else int(values[0]))
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise InvalidArgumentError(f"{name} must be between 0 and 1 (0 = off), got {value!r}")
            object.__setattr__(self, name, float(value))

    def check(self, *, vocab_size: int, num_steps: int) -> None:
        """Compare with a model: top_k with its vocabulary, lists with its number of steps."""
        for k in self.top_k if isinstance(self.top_k, Sequence) else (self.top_k,):
            if k > vocab_size:
                raise InvalidArgumentError(f"top_k is {k}, but the vocabulary has {vocab_size} tokens")
        for name in ("temperature", "top_k"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) != num_steps:
                raise InvalidArgumentError(
                    f"{name} has {len(value)} values, but the model takes {num_steps} steps"
                )

    def __call__(self, logits: Tensor, step: int = 0) -> Tensor:
        """Divided by the step's temperature and filtered, as a new tensor of the same shape."""
        return filter_logits(
            self.scaled(logits, step), top_k=self.top_k_at(step), top_p=self.top_p, min_p=self.min_p
        )

    def scaled(self, logits: Tensor, step: int) -> Tensor:
        """Divided by the step's temperature."""
        temperature = self.temperature[step] if isinstance(self.temperature, Sequence) else self.temperature
        return logits if temperature == 1 else logits / temperature

    def top_k_at(self, step: int) -> int:
        return self.top_k[step] if isinstance(self.top_k, Sequence) else self.top_k


def _values(given: Any) -> tuple[tuple[Any, ...], bool]:
    """One value or several (also as an array or tensor), as a tuple, and whether they were several."""
    values = given.tolist() if hasattr(given, "tolist") else given
    several = isinstance(values, Sequence) and not isinstance(values, str)
    return (tuple(values) if several else (values,)), several


def filter_logits(logits: Tensor, *, top_k: int = 0, top_p: float = 0.0, min_p: float = 0.0) -> Tensor:
    """Replace what the filters remove by minus infinity; logits ``(..., V)`` -> new tensor, same shape.

    Order: top-k, then top-p on what is left, then min-p. Top-p sorts ascending, accumulates the probabilities
    and removes entries up to ``1 - top_p`` inclusive, but never the last: the order of VAR's official code.
    """
    keep = torch.ones_like(logits, dtype=torch.bool)
    if 0 < top_k < logits.shape[-1]:
        keep &= logits >= logits.topk(top_k, dim=-1).values[..., -1:]
    if 0 < top_p < 1:
        ascending, order = logits.masked_fill(~keep, -torch.inf).sort(dim=-1, stable=True)
        mass = _accumulated(ascending, ascending[..., -1:])
        survives = mass > (1 - top_p) * mass[..., -1:]
        survives[..., -1] = True
        keep &= torch.zeros_like(keep).scatter_(-1, order, survives)
    if min_p > 0:
        likeliest = logits.amax(-1, keepdim=True)
        keep &= (logits - likeliest).float().exp() >= min_p
    return logits.masked_fill(~keep, -torch.inf)


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Choose by inverse CDF over the probabilities in descending order.

    logits: ``(..., V)``, removed entries at minus infinity; uniform: float64 ``(...)`` in [0, 1).
    Returns int64 ``(...)``: the first entry, likeliest first, whose cumulative probability exceeds the
    uniform number. Arithmetic is float64, so that the outcome is the same on every device but for ties in the
    logits.
    """
    if logits.device.type == "mps":  # Apple GPUs have no float64
        return inverse_cdf(logits.cpu(), uniform).to(logits.device)
    descending, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = _accumulated(descending, descending[..., :1])
    target = uniform.to(mass.device).unsqueeze(-1) * mass[..., -1:]
    rank = torch.searchsorted(mass, target, right=True).clamp_max_(mass.shape[-1] - 1)
    return order.gather(-1, rank).squeeze(-1)


def ranked(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row and those tied with the k-th; descending, ties in the vocabulary's order.

    logits: float32 ``(R, V)``. Returns values and int64 indices, both ``(R, n)``, n from k on: where a row
    has more ties than another, the other's next smaller entries fill it up. On a GPU n is V, since to look
    how many entries tie would be to wait for it.
    """
    if logits.device.type != "cpu":
        return logits.sort(dim=-1, descending=True, stable=True)
    # One whole number holds value and index, so that sorting such numbers, all different, sorts both. The
    # bits of a float order as a whole number does, but for negative ones, whose lower 31 are flipped.
    bits = (logits + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    flipped = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (~flipped).long() << 32 | torch.arange(logits.shape[-1], device="cpu")
    vocabulary = logits.shape[-1]
    n = min(k + 1, vocabulary)
    smallest = _smallest(keys, n)
    kth = smallest[:, k - 1 : k] >> 32
    if n > k and (smallest[:, k:] >> 32 == kth).any():
        n = int((keys >> 32 <= kth).sum(-1).max())
        smallest = _smallest(keys, n)
    order = smallest & 0xFFFFFFFF
    return logits.gather(-1, order), order


def _smallest(keys: Tensor, n: int) -> Tensor:
    """The n smallest of every row ``(R, V)`` in ascending order; the rows' entries change places."""
    rows = keys.numpy()  # which numpy sorts several times as fast as torch does
    if n < rows.shape[-1]:
        rows.partition(n - 1, axis=-1)
    found = rows[:, :n].copy()
    found.sort(axis=-1)
    return torch.from_numpy(found)


def draw_ranked(
    logits: Tensor, uniform: Tensor, *, top_k: int = 0, top_p: float = 0.0, min_p: float = 0.0
) -> Tensor:
    """``inverse_cdf(filter_logits(logits, ...), uniform)`` by sorting once; logits float32 ``(R, V)``.

    In descending order every filter keeps a first part, and only of what ties with its last entry does it
    matter which: top-p removes the first of them in the vocabulary, so the draw passes over those.
    """
    vocabulary = logits.shape[-1]
    limit = top_k if 0 < top_k < vocabulary else vocabulary
    values, order = ranked(logits, limit)  # (R, n)
    fused = fused_for(values)
    if fused is not None:
        drawn: Tensor = fused.draw_sorted(values, order, uniform, limit=limit, top_p=top_p, min_p=min_p)
        return drawn
    kept = (values >= values[:, limit - 1 : limit]).sum(-1, keepdim=True)  # (R, 1), how many
    rank = torch.arange(values.shape[-1], device=values.device)
    weights = (values.double() - values[:, :1]).exp()
    skipped = first = torch.zeros_like(kept)
    if 0 < top_p < 1:
        ascending = weights.masked_fill(rank >= kept, 0).flip(-1).cumsum(-1)
        removed = (ascending <= (1 - top_p) * ascending[:, -1:]).sum(-1, keepdim=True)
        kept = (values.shape[-1] - removed).clamp_min(1)
        last = values.gather(-1, kept - 1)
        first = (values > last).sum(-1, keepdim=True)  # where the ties of the last begin
        skipped = (values >= last).sum(-1, keepdim=True) - kept
    if min_p > 0:
        likely = ((values - values[:, :1]).float().exp() >= min_p).sum(-1, keepdim=True)
        kept = torch.minimum(kept, likely)
    mass = weights.masked_fill(rank >= kept, 0).cumsum(-1)
    target = uniform.to(mass.device).unsqueeze(-1) * mass[:, -1:]
    place = torch.minimum(torch.searchsorted(mass, target, right=True), kept - 1)
    place = torch.where(place < first, place, place + skipped).clamp_min(0)  # NaN compares with nothing
    return order.gather(-1, place).squeeze(-1)


def _accumulated(values: Tensor, largest: Tensor) -> Tensor:
    """Running sums of ``exp(values - largest)``: probabilities times a number that is the last of them.

    Not divided by it, since a sum over the row may round differently for rows of different lengths. Float64
    where the device has it.
    """
    precise = values.float() if values.device.type == "mps" else values.double()
    return (precise - largest).exp().cumsum(-1)


class ImageNoise:
    """The uniform numbers that make each image of a batch.

    seeds: one per image. counts: decisions per step, in the order they are made. device: where the numbers
    are wanted; they are sent there together, since every sending waits for what the device has to do before.
    :attr:`generators` continue where the uniforms end, for whatever else a family draws.
    """

    def __init__(self, seeds: Sequence[int], counts: Sequence[int], device: torch.device = CPU) -> None:
        self.generators = [torch.Generator().manual_seed(s) for s in seeds]
        total = sum(counts)
        drawn = torch.stack([torch.rand(total, dtype=torch.float64, generator=g) for g in self.generators])
        self.drawn = drawn if device.type == "mps" else drawn.to(device)  # (B, all); mps has no float64
        self.counts = list(counts)

    def __getitem__(self, step: int) -> Tensor:
        """float64 ``(B, decisions)`` in [0, 1)."""
        return self.drawn.split(self.counts, dim=1)[step]


class Drawer:
    """Draws the tokens of one batch, step by step.

    sampler: paired: inverse CDF from :class:`ImageNoise`; greedy: the likeliest token; multinomial: one
        ``torch.multinomial`` per step from a generator on ``device`` that starts at the first image's seed,
        which is how the official code draws.
    counts: decisions per step.
    choices: how many logits one decision is made from: all of a position's (``None``), or 2 where a position
        has several bits with two logits each.
    given: token maps ``(B, h, w)`` or ``(B, h, w, bits)`` of the first steps, taken in place of drawn ones.
    """

    def __init__(
        self,
        sampler: Sampler,
        filters: Filters,
        seeds: Sequence[int],
        counts: Sequence[int],
        device: torch.device,
        *,
        choices: int | None = None,
        given: Sequence[Tensor] = (),
    ) -> None:
        if sampler not in get_args(Sampler):
            raise InvalidArgumentError(f"unknown sampler {sampler!r}; known: {', '.join(get_args(Sampler))}")
        self.sampler, self.filters, self.choices = sampler, filters, choices
        self.given = [maps.to(device).flatten(1, 2) for maps in given]
        self.noise = ImageNoise(seeds, counts, device)
        self.generator = torch.Generator(device).manual_seed(seeds[0])

    def reading(self, numbers: Tensor) -> Drawer:
        """The same draws from a copy of the uniform numbers, ``noise.drawn``, that lies elsewhere."""
        other = copy.copy(self)
        other.noise = copy.copy(self.noise)
        other.noise.drawn = numbers
        return other

    def __call__(self, logits: Tensor, step: int, positions: Tensor | None = None) -> Tensor:
        """Guided logits ``(B, l, C)`` to tokens ``(B, l)``.

        With ``choices`` the logits count as ``(B, l, C / choices, choices)`` and the tokens are ``(B, l, C /
        choices)``. positions: int64 ``(B, l)``, the row-major cells of the grid where a step draws only some.
        """
        if self.choices is not None:
            logits = logits.unflatten(-1, (-1, self.choices))
        tokens = self._draw(logits, step, positions)
        if step < len(self.given):
            return self.given[step] if positions is None else self.given[step].gather(1, positions)
        return tokens

    def _draw(self, logits: Tensor, step: int, positions: Tensor | None) -> Tensor:
        if self.sampler == "greedy":
            return logits.argmax(-1)
        if self.sampler == "multinomial":
            rows = self.filters(logits, step).float().softmax(-1).flatten(0, -2)
            drawn = torch.multinomial(rows, 1, replacement=True, generator=self.generator)
            return drawn.view(logits.shape[:-1])
        numbers = self.noise[step]
        if positions is not None:
            numbers = numbers.gather(1, positions.to(numbers.device))
        return self._by_inverse_cdf(logits, step, numbers.view(logits.shape[:-1]))

    def _by_inverse_cdf(self, logits: Tensor, step: int, numbers: Tensor) -> Tensor:
        filters, device = self.filters, logits.device
        scaled = filters.scaled(logits, step).float().flatten(0, -2)
        if device.type == "mps":  # which has no float64
            scaled = scaled.cpu()
        # On a CPU, so many rows at a time that they stay in its caches.
        rows = max(1, SORTED_ENTRIES // scaled.shape[-1]) if scaled.device.type == "cpu" else len(scaled)
        kept: dict[str, Any] = {
            "top_k": filters.top_k_at(step),
            "top_p": filters.top_p,
            "min_p": filters.min_p,
        }
        pairs = zip(scaled.split(rows), numbers.flatten().split(rows), strict=True)
        tokens = torch.cat([draw_ranked(some, uniform, **kept) for some, uniform in pairs])
        return tokens.view(logits.shape[:-1]).to(device)
