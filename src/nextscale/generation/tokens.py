"""From guided logits to tokens: temperature, filters, and the draw.

The numbers behind a draw belong to the image's seed and to the cell, whatever is drawn beside it
(:mod:`nextscale.generation.noise`), and two runs that share them and differ in guidance differ as little as a
race allows (:mod:`nextscale.generation.race`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final, Literal, TypedDict, get_args

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.generation.noise import Noise, Stream
from nextscale.generation.race import ENTRIES_AT_ONCE, draw_bits, race, race_filtered
from nextscale.kernels import fused_for

Sampler = Literal["paired", "greedy", "multinomial"]

COLDEST: Final = 1e-30
"""The least temperature that is divided by; float32 ends near 1e-38, and only the likeliest are left here."""


class Limits(TypedDict):
    """The arguments of :func:`filter_logits`."""

    top_k: int
    top_p: float
    min_p: float


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
        return filter_logits(self.scaled(logits, step), **self.limits(step))

    def scaled(self, logits: Tensor, step: int) -> Tensor:
        """Divide by the step's temperature, the largest logit being moved to 0, so that nothing overflows."""
        temperature = self.temperature[step] if isinstance(self.temperature, Sequence) else self.temperature
        if temperature == 1:
            return logits
        return (logits - logits.amax(-1, keepdim=True)) / max(temperature, COLDEST)

    def limits(self, step: int) -> Limits:
        """What filters a step, as the arguments of :func:`filter_logits`."""
        top_k = self.top_k[step] if isinstance(self.top_k, Sequence) else self.top_k
        return {"top_k": top_k, "top_p": self.top_p, "min_p": self.min_p}


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


def _accumulated(values: Tensor, largest: Tensor) -> Tensor:
    """Running sums of ``exp(values - largest)``: probabilities times a number that is the last of them.

    Not divided by it, since a sum over the row may round differently for rows of different lengths. Float64
    where the device has it.
    """
    precise = values.float() if values.device.type == "mps" else values.double()
    return (precise - largest).exp().cumsum(-1)


class Drawer:
    """Draws the tokens of one batch, step by step.

    sampler: paired: the race of :mod:`nextscale.generation.race`, from the images' :class:`Noise`; greedy:
        the likeliest token; multinomial: one ``torch.multinomial`` per step from a generator on ``device``
        that starts at the first image's seed, which is how the official code draws.
    seeds: one per image; a tensor of them (see :class:`Noise`) for all samplers but multinomial.
    bits: whether a position has several bits with two logits each, in place of one token.
    given: token maps ``(B, h, w)`` or ``(B, h, w, bits)`` of the first steps, taken in place of drawn ones.
    """

    def __init__(
        self,
        sampler: Sampler,
        filters: Filters,
        seeds: Sequence[int] | Tensor,
        device: torch.device,
        *,
        bits: bool = False,
        given: Sequence[Tensor] = (),
    ) -> None:
        if sampler not in get_args(Sampler):
            raise InvalidArgumentError(f"unknown sampler {sampler!r}; known: {', '.join(get_args(Sampler))}")
        self.sampler, self.filters, self.bits = sampler, filters, bits
        self.given = [maps.to(device).flatten(1, 2) for maps in given]
        self.noise = Noise(seeds, device)
        if sampler == "multinomial":
            self.generator = torch.Generator(device).manual_seed(int(seeds[0]))

    def __call__(self, logits: Tensor, step: int, positions: Tensor | None = None) -> Tensor:
        """Guided logits ``(B, l, C)`` to tokens ``(B, l)``, or to bits ``(B, l, C / 2)``.

        positions: int64 ``(B, l)``, the row-major cells of the grid where a step draws only some.
        """
        logits = logits.unflatten(-1, (-1, 2)) if self.bits else logits
        given = self.given[step] if step < len(self.given) else None
        if self.sampler == "multinomial":  # draws in any case, since later steps go on in its numbers
            rows = self.filters(logits, step).float().softmax(-1).flatten(0, -2)
            drawn = torch.multinomial(rows, 1, replacement=True, generator=self.generator)
            tokens = drawn.view(logits.shape[:-1])
        if given is not None:
            tokens = given if positions is None else given.gather(1, positions)
        elif self.sampler == "greedy":
            tokens = logits.argmax(-1)
        elif self.sampler == "paired":
            device = self.noise.seeds.device  # not the logits' own where that has no float64
            scaled = self.filters.scaled(logits, step).float().to(device)
            draw = self._paired_bits if self.bits else self._paired_tokens
            tokens = draw(scaled, step, positions).to(logits.device)
        return tokens

    def _paired_bits(self, pairs: Tensor, step: int, positions: Tensor | None) -> Tensor:
        """Logits ``(B, l, bits, 2)``, divided by the temperature, to bits."""
        cells = pairs.shape[1] if positions is None else positions
        words = self.noise.words(Stream.TOKENS, step, cells, pairs.shape[2])
        return draw_bits(filter_logits(pairs, **self.filters.limits(step)), words)

    def _paired_tokens(self, logits: Tensor, step: int, positions: Tensor | None) -> Tensor:
        """Logits ``(B, l, V)``, divided by the temperature, to tokens."""
        limits, rows = self.filters.limits(step), logits.flatten(0, 1)
        fused = fused_for(rows)
        if fused is not None:
            where = {"stream": int(Stream.TOKENS), "step": step, "cells": positions}
            drawn: Tensor = fused.race_sorted(
                *rows.sort(dim=-1, descending=True, stable=True), self.noise.seeds, **where, **limits
            )
            return drawn.view(logits.shape[:2])
        keys = self.noise.keys(Stream.TOKENS, step, logits.shape[1] if positions is None else positions)
        keys = keys.flatten()
        if rows.device.type != "cpu":
            return race(filter_logits(rows, **limits), keys).view(logits.shape[:2])
        at_once = max(1, ENTRIES_AT_ONCE // rows.shape[-1])
        parts = zip(rows.split(at_once), keys.split(at_once), strict=True)
        return torch.cat([race_filtered(some, key, **limits) for some, key in parts]).view(logits.shape[:2])
