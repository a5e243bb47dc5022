"""Training of the Infinity transformer: captions in, bits out, with some of its input's bits wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity.pipeline import InfinityPipeline
from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.families.infinity.transformer import InfinityTransformer
from nextscale.families.text import TextEncoder, TextFeatures
from nextscale.training.captions import TEMPLATES, captions
from nextscale.training.next_scale import NextScaleTask


@torch.no_grad()
def init_bit_transformer(
    model: InfinityTransformer,
    *,
    gate: float = 5e-6,
    modulation: float = 1e-3,
    head: float = 0.02,
    seed: int = 0,
) -> None:
    """Infinity's published initialisation, in place.

    Normal weights with variance 1/(3C), cut off at 2, and zero biases; residual branches divided by
    sqrt(2 depth); a block's own gates, and its scales and shifts, multiplied by ``gate`` and ``modulation``.
    """
    torch.manual_seed(seed)
    config = model.config
    std = math.sqrt(1 / (3 * config.embed_dim))
    for name, p in model.named_parameters():
        if name.endswith("scale_mul_1H11"):
            p.fill_(math.log(4))
        elif name.endswith("norm.weight"):
            p.fill_(1)
        elif name.endswith("bias"):
            p.zero_()
        elif name.endswith("ada_gss"):
            nn.init.trunc_normal_(p, std=1 / math.sqrt(config.embed_dim))
            p[:, :, :2].mul_(gate)
            p[:, :, 2:].mul_(modulation)
        elif name == "cfg_uncond":
            nn.init.trunc_normal_(p, std=1.2)
            p.div_(math.sqrt(config.text_dim))
        else:
            nn.init.trunc_normal_(p, std=std)
        if name.startswith("blocks") and name.endswith(("a.proj.weight", "ffn.fc2.weight")):
            p.div_(math.sqrt(2 * config.depth))
        elif name == "head_nm.ada_lin.1.weight":
            p.mul_(1e-3)
        elif name == "head.weight":
            p.mul_(head)


def latents(tokenizer: InfinityTokenizer, images: Tensor) -> Tensor:
    """What is kept of pictures ``(B, 3, H, W)``: their features before bits are taken, half ``(B, d, h, w)``.

    Not the bits: what makes up for a wrong bit depends on the features themselves.
    """
    return tokenizer.features(images).half()


class BitTransformerTask(NextScaleTask[InfinityTransformer]):
    """Two-way cross-entropy of every bit, given a caption and coarser scales with some wrong bits.

    features, held_out_features: data sets encoded with :func:`latents`.
    class_names: what captions are made from; every draw takes one of the ``templates`` at random.
    text_encoder: makes the features of all captions, once.
    text_dropout: share of the captions replaced by the learned rows for no text.
    max_flips: bits of a scale are flipped with a probability drawn from 0 to this for every batch, and the
        targets of finer scales make up for it (bitwise self-correction, arXiv 2412.04431).
    reweight: weigh positions by the inverse square root of their scale's number of positions.
    labels, stages: see :class:`NextScaleTask`.
    """

    def __init__(
        self,
        model: InfinityTransformer,
        tokenizer: InfinityTokenizer,
        features: Tensor,
        labels: Tensor,
        held_out_features: Tensor,
        held_out_labels: Tensor,
        *,
        class_names: Sequence[str],
        text_encoder: TextEncoder,
        templates: Sequence[str] = TEMPLATES,
        defaults: Mapping[str, Any] | None = None,
        text_dropout: float = 0.1,
        max_flips: float = 0.3,
        reweight: bool = False,
        stages: Sequence[tuple[float, int]] = (),
        eval_images: int = 1000,
    ) -> None:
        schedule = tokenizer.schedule
        if schedule is None:
            raise InvalidArgumentError("the tokenizer needs its own scales; set patch_nums in its config")
        if int(max(labels.max(), held_out_labels.max())) >= len(class_names):
            raise InvalidArgumentError(
                f"captions need the name of every class; {len(class_names)} names for "
                f"{int(labels.max()) + 1} classes"
            )
        super().__init__(
            model,
            schedule,
            features,
            labels,
            held_out_features,
            held_out_labels,
            stages=stages,
            eval_images=eval_images,
        )
        model.check_schedule(schedule)
        self.tokenizer, self.text_encoder, self.defaults = tokenizer, text_encoder, defaults
        self.text_dropout, self.max_flips, self.reweight = text_dropout, max_flips, reweight
        texts = [captions(name, templates) for name in class_names]
        self.class_prompts = tuple(choices[0] for choices in texts)
        self.num_templates = len(templates)
        self.texts = text_encoder([text for choices in texts for text in choices]).to(model.device)
        model.check_text(self.texts)

    @property
    def num_classes(self) -> int:
        return len(self.class_prompts)

    def loss(self, rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.drawn(rows)
        template = torch.randint(self.num_templates, (len(rows),))
        dropped = torch.rand(len(rows)) < self.text_dropout
        text = self.captioned(self.model, self.labels[rows], template, dropped)
        scales = self.num_scales(step / total)
        losses = self._losses(self.model, features, text, scales, self.max_flips)
        return (losses * self._weights(scales)).sum(1).mean(), {"scales": torch.tensor(scales)}

    def captioned(
        self, model: InfinityTransformer, labels: Tensor, template: Tensor, dropped: Tensor
    ) -> TextFeatures:
        """Features of the captions of B classes by a template each; those ``dropped`` say nothing."""
        text = self.texts[(labels * self.num_templates + template).tolist()].trim()
        nothing = model.unconditional(text).features
        gone = dropped.to(nothing.device)[:, None, None]
        return TextFeatures(torch.where(gone, nothing, text.features), text.mask)

    def _losses(
        self, model: InfinityTransformer, features: Tensor, text: TextFeatures, scales: int, max_flips: float
    ) -> Tensor:
        """Mean loss over the bits of every position of the coarsest scales, ``(B, L')``."""
        with torch.autocast(model.device.type, enabled=False):
            inputs, targets = self.tokenizer.self_correction(features, max_strength=max_flips)
        end = self.schedule.offsets[scales]
        start = self.schedule.offsets[1]
        logits = model(text, inputs[:, : end - start], self.schedule).unflatten(2, (-1, 2))  # (B, L', D, 2)
        # Of two values, the cross-entropy needs the difference of the logits alone.
        bits = targets[:, :end].to(logits)
        return F.binary_cross_entropy_with_logits(
            logits[..., 1] - logits[..., 0], bits, reduction="none"
        ).mean(2)

    def _weights(self, scales: int) -> Tensor:
        """Weights of the positions of the coarsest scales, which sum to 1."""
        lengths = torch.tensor(self.schedule.lengths[:scales])
        each = lengths.float() ** (-0.5 if self.reweight else 0.0)
        weights = torch.repeat_interleave(each, lengths).to(self.model.device)
        return weights / weights.sum()

    def position_losses(self, model: InfinityTransformer, encoded: Tensor, labels: Tensor) -> Tensor:
        first = torch.zeros_like(labels)
        text = self.captioned(model, labels, first, first.bool())
        return self._losses(model, encoded, text, self.schedule.num_steps, 0.0)

    def draw(self, model: InfinityTransformer, labels: list[int]) -> Tensor:
        prompts = [self.class_prompts[c] for c in labels]
        pipe = self.pipeline(model)
        images: Tensor = pipe(prompts, seed=0, batch_size=len(prompts), output_type="pt").images
        return images

    def pipeline(self, model: InfinityTransformer) -> InfinityPipeline:
        return InfinityPipeline(
            model,
            self.tokenizer,
            text_encoder=self.text_encoder,
            class_prompts=self.class_prompts,
            defaults=self.defaults,
        )
