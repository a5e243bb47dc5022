"""Numbers that are none: every picture's logits and pixels are looked at, without waiting for a GPU.

A flag for each step and picture stays where the numbers are, so that a batch can be queued, or recorded as a
CUDA graph, as a whole. The flags are fetched at the end of a batch, together with its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nextscale.errors import NotFiniteError
from nextscale.generation.tokens import Drawer
from nextscale.scales import Grid


def finite_rows(values: Tensor) -> Tensor:
    """Whether all of each row of float ``(B, ...)`` is finite: bool ``(B,)``, on the same device.

    By the row's sum, one pass that needs no memory: nothing infinite or NaN can leave it finite. (Numbers so
    large that their sum is beyond their type count as infinite.)
    """
    rows = values.flatten(1)
    return rows.sum(1, dtype=torch.promote_types(rows.dtype, torch.float32)).isfinite()


class WatchedDraws:
    """A drawer that also keeps, for every step, whose logits were finite."""

    def __init__(self, draw: Drawer) -> None:
        self.draw = draw
        self.finite: list[Tensor] = []

    def __call__(self, logits: Tensor, step: int, positions: Tensor | None = None) -> Tensor:
        """The tokens of a step's guided logits ``(B, l, C)``; a grid may come in several parts."""
        good = finite_rows(logits)
        if step < len(self.finite):
            self.finite[step] = self.finite[step] & good
        else:
            self.finite.append(good)
        if self.draw.sampler == "multinomial":
            # torch.multinomial stops at such rows with words of its own, and on a GPU breaks everything.
            logits = logits.where(good[:, None, None], 0.0)
        return self.draw(logits, step, positions)

    def flags(self) -> Tensor:
        """bool ``(steps, B)``."""
        return torch.stack(self.finite)


def check_steps(
    finite: Tensor, steps: Sequence[tuple[int, Grid]], dtype: torch.dtype, *, first: int = 0
) -> None:
    """Raises NotFiniteError, naming step, grid and picture, where logits were not finite.

    finite: bool ``(n, B)`` on the CPU. steps: n steps from 0 and their grids, in order. dtype: of the model.
    first: the number of the batch's first picture.
    """
    if bool(finite.all()):
        return
    row, picture = finite.logical_not().nonzero()[0].tolist()
    step, (h, w) = steps[row]
    raise NotFiniteError(
        f"logits are NaN or infinite at step {step + 1} ({h} x {w}) of", first + picture, likely_cause(dtype)
    )


def check_pictures(finite: Tensor, dtype: torch.dtype, *, first: int = 0) -> None:
    """Raises NotFiniteError for the first picture that is not finite, by flags bool ``(B,)``."""
    if not bool(finite.all()):
        bad = int(finite.logical_not().nonzero()[0])
        raise NotFiniteError(
            "pixels are NaN or infinite, though no logits are, in", first + bad, likely_cause(dtype)
        )


def check_likelihoods(losses: Tensor, dtype: torch.dtype) -> None:
    """Raises NotFiniteError for the first of pictures ``(B, tokens)`` with a likelihood that is none."""
    bad = losses.isfinite().all(1).logical_not().nonzero().flatten().tolist()
    if bad:
        raise NotFiniteError("likelihoods are NaN or infinite for", bad[0], likely_cause(dtype))


def check_decoded(finite: Tensor) -> None:
    """Raises NotFiniteError for the first of pictures ``(B,)`` that a tokenizer made NaN or infinite."""
    if not bool(finite.all()):
        raise NotFiniteError(
            "pixels are NaN or infinite in",
            int(finite.logical_not().nonzero()[0]),
            "the tokenizer's weights may be damaged, or their dtype too small for them: try float32",
        )


def likely_cause(dtype: torch.dtype) -> str:
    """Name what most often makes numbers of a model in this dtype NaN or infinite, and the remedy."""
    if dtype in (torch.float32, torch.float64):
        return "the weights may be damaged"
    name = str(dtype).removeprefix("torch.")
    return f"the weights may be damaged, or the dtype {name} too small for them: try float32"
