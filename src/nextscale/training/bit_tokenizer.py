"""Training of the bitwise tokenizer: there is no codebook to look after, only bits to keep in balance."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.training.data import ImageSource
from nextscale.training.judges import Judges
from nextscale.training.reconstruction import ReconstructionTask, Scales, measure_reconstruction


class BitTokenizerTask(ReconstructionTask[InfinityTokenizer]):
    """Reconstruction, commitment and entropy loss of an :class:`InfinityTokenizer`.

    flip, turn, judges: see :class:`ReconstructionTask`. The model needs a schedule of its own.
    """

    def __init__(
        self,
        model: InfinityTokenizer,
        data: ImageSource,
        held_out: ImageSource,
        *,
        flip: bool = True,
        turn: bool = False,
        judges: Judges | None = None,
        eval_images: int = 1000,
    ) -> None:
        if model.schedule is None:
            raise InvalidArgumentError("the tokenizer needs its own scales; set patch_nums in its config")
        super().__init__(model, data, held_out, flip=flip, turn=turn, judges=judges, eval_images=eval_images)

    def observe(self, images: Tensor, chosen: list[Tensor]) -> dict[str, Tensor]:
        ones = torch.cat([bits.flatten(0, 2) for bits in chosen]).float().mean(0)  # (d,)
        return {"balance": binary_entropy(ones).mean()}

    def evaluate(self, model: InfinityTokenizer) -> dict[str, float]:
        return measure_bit_tokenizer(model, self.held_out, self.eval_rows)


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy in bits of a bit that is 1 with probability p: 1 at 1/2, 0 at both ends."""
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / torch.log(torch.tensor(2.0))


def measure_bit_tokenizer(
    model: InfinityTokenizer, data: ImageSource, rows: Tensor | None = None, *, batch_size: int = 250
) -> dict[str, float]:
    """Reconstruction figures on real pictures, and how evenly bits take their two values.

    Those of :func:`measure_reconstruction`, and the entropy in bits of how often a bit is 1 over pictures and
    cells, from 0 (always the same) to 1 (both equally often): ``balance`` (mean over the bits of a cell, all
    scales together), ``balance_worst`` (of the least even one), and per scale k ``balance_k``.
    """
    steps = 0 if model.schedule is None else model.schedule.num_steps
    ones = torch.zeros(steps, model.config.bits, dtype=torch.double)
    cells = torch.zeros(steps, 1, dtype=torch.double)

    def tally(step: int, bits: Tensor) -> None:
        ones[step] += bits.sum((0, 1, 2)).cpu()
        cells[step] += bits.shape[:3].numel()

    def scales(f: Tensor) -> Scales:
        return ((q.bits, q.f_hat) for q in model.residual_chain(f))

    figures = measure_reconstruction(model, scales, tally, data, rows, batch_size)
    whole = binary_entropy(ones.sum(0) / cells.sum(0))
    figures["balance"], figures["balance_worst"] = float(whole.mean()), float(whole.min())
    each = binary_entropy(ones / cells).mean(1)
    return {**figures, **{f"balance_{k}": float(b) for k, b in enumerate(each)}}
