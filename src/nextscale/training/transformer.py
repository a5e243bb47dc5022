"""Training of the VAR transformer on cached token maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.families.var.transformer import VARTransformer
from nextscale.training.next_scale import NextScaleTask


def init_transformer(
    model: VARTransformer, *, gate: float = 1e-3, modulation: float = 0.5, head: float = 0.02, seed: int = 0
) -> None:
    """VAR's published initialisation, in place.

    Normal weights with variance 1/(3C) and zero biases; residual branches divided by sqrt(2 depth); the rows
    that make gates, and those that make scales and shifts, multiplied by ``gate`` and ``modulation``.
    """
    torch.manual_seed(seed)
    dim, depth = model.config.embed_dim, model.config.depth
    std = math.sqrt(1 / (3 * dim))
    for name, p in model.named_parameters():
        with torch.no_grad():
            if name.endswith("scale_mul_1H11"):
                p.fill_(math.log(4))
            elif name.endswith("bias"):
                p.zero_()
            elif name.endswith("ada_gss"):
                nn.init.normal_(p, std=1 / math.sqrt(dim))
                p[:, :, :2].mul_(gate)
                p[:, :, 2:].mul_(modulation)
            else:
                nn.init.normal_(p, std=std)
            if name.endswith(("attn.proj.weight", "ffn.fc2.weight")):
                p.div_(math.sqrt(2 * depth))
            elif name.startswith("blocks") and name.endswith("ada_lin.1.weight"):
                p[: 2 * dim].mul_(gate)
                p[2 * dim :].mul_(modulation)
            elif name == "head_nm.ada_lin.1.weight":
                p.mul_(modulation)
            elif name == "head.weight":
                p.mul_(head)


def token_maps(tokenizer: VARTokenizer, images: Tensor) -> Tensor:
    """Tokens of pictures ``(B, 3, H, W)``, all scales one after another: int16 or int32 ``(B, L)``."""
    small = torch.int16 if tokenizer.config.vocab_size < 2**15 else torch.int32
    maps = tokenizer.encode(images.to(tokenizer.device))
    return torch.cat([m.flatten(1) for m in maps], 1).to(small)


class TransformerTask(NextScaleTask[VARTransformer]):
    """Cross-entropy of every scale's tokens given the class and the coarser scales.

    tokens, held_out_tokens: data sets encoded with :func:`token_maps`.
    label_dropout: share of the labels replaced by "no class", which is what classifier-free guidance needs.
    labels, stages: see :class:`NextScaleTask`.
    """

    def __init__(
        self,
        model: VARTransformer,
        tokenizer: VARTokenizer,
        tokens: Tensor,
        labels: Tensor,
        held_out_tokens: Tensor,
        held_out_labels: Tensor,
        *,
        class_names: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
        label_dropout: float = 0.1,
        label_smoothing: float = 0.0,
        stages: Sequence[tuple[float, int]] = (),
        eval_images: int = 1000,
    ) -> None:
        super().__init__(
            model,
            model.schedule,
            tokens,
            labels,
            held_out_tokens,
            held_out_labels,
            stages=stages,
            eval_images=eval_images,
        )
        self.tokenizer = tokenizer
        self.label_dropout, self.label_smoothing = label_dropout, label_smoothing
        self.class_names, self.defaults = tuple(class_names), defaults

    @property
    def num_classes(self) -> int:
        return self.model.config.num_classes

    def loss(self, rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, labels = self.drawn(rows), self.labels[rows]
        dropped = torch.rand(len(rows)) < self.label_dropout
        labels = torch.where(dropped, self.model.null_label, labels)
        scales = self.num_scales(step / total)
        logits, targets = self._predict(self.model, tokens, labels, scales)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=self.label_smoothing)
        return loss, {"scales": torch.tensor(scales)}

    def _predict(
        self, model: VARTransformer, tokens: Tensor, labels: Tensor, scales: int
    ) -> tuple[Tensor, Tensor]:
        """Logits ``(B, L', V)`` and targets ``(B, L')`` of the coarsest ``scales`` scales."""
        schedule, device = model.schedule, model.device
        tokens = tokens[:, : schedule.offsets[scales]].long().to(device)
        maps = [tokens[:, schedule.span(k)].unflatten(1, schedule[k]) for k in range(scales)]
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            inputs = self.tokenizer.next_inputs(maps)
        return model(labels.to(device), inputs), tokens

    def position_losses(self, model: VARTransformer, encoded: Tensor, labels: Tensor) -> Tensor:
        logits, targets = self._predict(model, encoded, labels, self.schedule.num_steps)
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")

    def draw(self, model: VARTransformer, labels: list[int]) -> Tensor:
        images: Tensor = self.pipeline(model)(labels, seed=0, batch_size=len(labels), output_type="pt").images
        return images

    def pipeline(self, model: VARTransformer) -> VARPipeline:
        return VARPipeline(model, self.tokenizer, class_names=self.class_names, defaults=self.defaults)
