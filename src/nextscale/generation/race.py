"""The race: of the entries that the filters left, the one with the smallest E / p is drawn.

Every entry v has its own number E_v, drawn from Exp(1); that v comes first has the probability p_v / sum p.
Two distributions p and q that share the numbers agree with the probability

    sum_v 1 / sum_j max(p_j / p_v, q_j / q_v)

(Moulton and Jiang, arXiv 1809.04052), which is close to their overlap where they are near to each other.
Inverse CDF over sorted probabilities, which needs one number only, agrees far less: see ``docs/pairing.md``.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.generation.noise import derive, exponential, uniform

ENTRIES_AT_ONCE: Final = 2**16
"""Logits handled together on a CPU: a quarter of a MiB in float32, so that they stay in its caches."""


def race(logits: Tensor, keys: Tensor) -> Tensor:
    """Draw one entry per row, on any device: the definition.

    logits: ``(R, V)``, removed entries at minus infinity. keys: int64 ``(R,)``; entry v has the number that
    ``derive(key, v)`` gives. Returns int64 ``(R,)``.
    """
    entries = torch.arange(logits.shape[-1], device=logits.device)
    weights = (logits.double() - logits.amax(-1, keepdim=True)).exp_()
    return exponential(derive(keys[:, None], entries)).div_(weights).argmin(-1)


def race_filtered(logits: Tensor, keys: Tensor, *, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Compute ``race(filter_logits(logits, ...), keys)`` on a CPU, with numbers for what is left alone.

    logits: float32 ``(R, V)``. keys: int64 ``(R,)``. Returns int64 ``(R,)``.
    """
    rows, vocabulary = logits.shape
    if not (0 < top_k < vocabulary or 0 < top_p < 1 or min_p > 0):
        return race(logits, keys)
    largest = logits.amax(-1, keepdim=True)
    kept = _kept(logits, largest, top_k=top_k, top_p=top_p, min_p=min_p)
    # What is left, row after row. numpy finds, repeats and fills several times as fast as torch does.
    places = np.flatnonzero(kept)
    starts = np.searchsorted(places, np.arange(rows + 1) * vocabulary)
    counts = np.diff(starts)

    def spread(of_rows: Tensor) -> Tensor:
        return torch.from_numpy(np.repeat(of_rows.numpy(), counts))

    place = torch.from_numpy(places)
    entries = place - spread(torch.arange(rows) * vocabulary)
    weights = logits.flatten().index_select(0, place).double().sub_(spread(largest.flatten())).exp_()
    times = exponential(derive(spread(keys), entries)).div_(weights)
    table = np.full((rows, counts.max(initial=1)), np.inf)
    table[np.arange(table.shape[1]) < counts[:, None]] = times.numpy()
    first = table.argmin(-1) + starts[:-1]
    # Of rows that are no numbers nothing is left; something is drawn all the same.
    drawn = np.append(entries.numpy(), 0)[np.where(counts > 0, first, len(entries))]
    return torch.from_numpy(drawn)


def _kept(logits: Tensor, largest: Tensor, *, top_k: int, top_p: float, min_p: float) -> NDArray[np.bool_]:
    """What :func:`nextscale.generation.tokens.filter_logits` leaves, bool ``(R, V)``; largest: ``(R, 1)``.

    Every filter keeps a row's largest values down to some value, and only top-p makes a difference between
    those that tie with it: it removes the first of them in the vocabulary. So no entries are sorted, but only
    the values that top-k left.
    """
    values, vocabulary = logits.numpy(), logits.shape[-1]
    limit = top_k if 0 < top_k < vocabulary else vocabulary
    found, tied = _largest(logits, limit)
    ascending = found.numpy()
    last = ascending[:, -limit, None]
    passed = None  # how many of those that tie with the last are removed
    if 0 < top_p < 1:
        weights = found.double().sub_(largest).exp_()
        if tied:
            weights[found < torch.from_numpy(last)] = 0
        mass = weights.cumsum(-1).numpy()
        removed = np.count_nonzero(mass <= (1 - top_p) * mass[:, -1:], axis=-1)[:, None]
        removed = np.minimum(removed, mass.shape[-1] - 1)
        last = np.take_along_axis(ascending, removed, axis=-1)
        passed = removed - np.count_nonzero(ascending < last, axis=-1)[:, None]
    kept = values >= last
    if passed is not None and passed.any():
        equal = values == last
        kept &= ~(equal & (equal.cumsum(axis=-1) <= passed))
    if min_p > 0:
        kept &= ((logits - largest).exp_() >= min_p).numpy()
    return kept


def _largest(logits: Tensor, limit: int) -> tuple[Tensor, bool]:
    """Find the ``limit`` largest values of every row ``(R, V)``, and whether more tie with their smallest.

    Those that tie are among them: ``(R, n)``, ascending, n at least ``limit``; where a row has more ties than
    another, the other's next smaller values fill it up.
    """
    vocabulary, n = logits.shape[-1], limit
    found = logits.clone()
    values = found.numpy()  # which numpy sorts ten times as fast as torch does
    if limit < vocabulary:
        values.partition(vocabulary - limit, axis=-1)
        least = values[:, vocabulary - limit, None]
        n = int(np.count_nonzero(values >= least, axis=-1).max(initial=limit))
        if n > limit:
            values.partition(vocabulary - n, axis=-1)
    values[:, vocabulary - n :].sort(axis=-1)
    return found[:, vocabulary - n :], n > limit


def draw_bits(pairs: Tensor, words: Tensor) -> Tensor:
    """Draw bits: 1 where ``u < p(1)``, the closest pairing that two distributions of a bit can have.

    pairs: ``(..., 2)``, logits of 0 and 1, removed ones at minus infinity. words: hashed, int64 ``(...)``.
    Returns int64 ``(...)``.
    """
    likelihood = (pairs[..., 1].double() - pairs[..., 0].double()).sigmoid_()
    return (uniform(words) < likelihood).long()
