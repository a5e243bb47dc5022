"""Training of the VAR transformer on cached token maps."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError
from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.families.var.transformer import VARTransformer
from nextscale.training.data import ImageSource, to_float
from nextscale.training.pictures import save_grid
from nextscale.training.trainer import Reporter


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


@torch.inference_mode()
def encode_dataset(
    tokenizer: VARTokenizer,
    data: ImageSource,
    *,
    flip: bool,
    batch_size: int = 100,
    report: Reporter | None = None,
) -> Tensor:
    """Token maps of a whole data set, int16 or int32 ``(1 or 2, N, L)``; the second set is mirrored."""
    started, done, total = time.monotonic(), 0, len(data) * (1 + flip)
    small = torch.int16 if tokenizer.config.vocab_size < 2**15 else torch.int32
    sets = []
    for mirrored in (False, True) if flip else (False,):
        chunks = []
        for rows in torch.arange(len(data)).split(batch_size):
            images = to_float(data.batch(rows)).to(tokenizer.device)
            maps = tokenizer.encode(images.flip(-1) if mirrored else images)
            chunks.append(torch.cat([m.flatten(1) for m in maps], 1).to("cpu", small))
            done += len(rows)
            if report:
                rate = done / max(time.monotonic() - started, 1e-9)
                left = (total - done) / rate
                report({"doing": "encoding", "images_per_second": rate, "seconds_left": left}, done, total)
        sets.append(torch.cat(chunks))
    return torch.stack(sets)


def cached_tokens(
    tokenizer: VARTokenizer, data: ImageSource, path: Path, *, flip: bool, report: Reporter | None = None
) -> Tensor:
    """:func:`encode_dataset`, kept in a file so that a resumed run need not encode again.

    The file also says what it was made from; with another tokenizer or other data it is made anew.
    """
    origin = _fingerprint(tokenizer, data, flip)
    if path.exists():
        with contextlib.suppress(pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
            kept = torch.load(path, weights_only=True)
            if isinstance(kept, dict) and kept.get("origin") == origin:
                tokens: Tensor = kept["tokens"]
                return tokens
    tokens = encode_dataset(tokenizer, data, flip=flip, report=report)
    partial = path.with_suffix(".partial")
    torch.save({"origin": origin, "tokens": tokens}, partial)
    os.replace(partial, path)
    return tokens


def _fingerprint(tokenizer: VARTokenizer, data: ImageSource, flip: bool) -> str:
    """A hash of what token maps depend on: the tokenizer's weights, the labels, and some of the pictures."""
    digest = hashlib.sha256(f"{len(data)} {flip} {tokenizer.schedule}".encode())
    parts = [*tokenizer.state_dict().values(), data.labels]
    parts.append(data.batch(torch.linspace(0, len(data) - 1, 16).long()))
    for tensor in parts:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class TransformerTask:
    """Cross-entropy of every scale's tokens given the class and the coarser scales.

    tokens: ``(1 or 2, N, L)`` from :func:`encode_dataset`; with two sets each draw takes one at random.
    label_dropout: share of the labels replaced by "no class", which is what classifier-free guidance needs.
    stages: ``(share of the run, number of scales)`` pairs: train on the coarsest scales first, where the
        class is decided and a step costs a fraction. The rest of the run trains on all scales.
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
        if len(tokens[0]) != len(labels):
            raise InvalidArgumentError(f"{len(tokens[0])} token maps but {len(labels)} labels")
        for share, scales in stages:
            if not (0 < share < 1 and 2 <= scales <= model.schedule.num_steps):
                raise InvalidArgumentError(
                    f"a stage is (share of the run, number of scales), as in (0.3, 4); got {(share, scales)}"
                )
        self.model, self.tokenizer = model, tokenizer
        self.tokens, self.labels = tokens, labels
        self.held_out = held_out_tokens[0][:eval_images], held_out_labels[:eval_images]
        self.label_dropout, self.label_smoothing = label_dropout, label_smoothing
        self.stages = stages
        self.state: dict[str, Tensor] = {}
        self.class_names, self.defaults = tuple(class_names), defaults
        self.num_examples = len(labels)

    def num_scales(self, progress: float) -> int:
        """How many scales are trained on after this share of the run."""
        reached = 0.0
        for share, scales in self.stages:
            reached += share
            if progress < reached:
                return scales
        return self.model.schedule.num_steps

    def loss(self, rows: Tensor, step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        which = torch.randint(len(self.tokens), (len(rows),))
        labels = self.labels[rows]
        dropped = torch.rand(len(rows)) < self.label_dropout
        labels = torch.where(dropped, self.model.null_label, labels)
        scales = self.num_scales(step / total)
        logits, targets = self._predict(self.model, self.tokens[which, rows], labels, scales)
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

    def after_step(self, step: int, total: int) -> None:
        """Nothing to do."""

    @torch.inference_mode()
    def evaluate(self, model: VARTransformer) -> dict[str, float]:
        """Held-out loss in nats per token, over all positions and per scale."""
        tokens, labels = self.held_out
        schedule = self.model.schedule
        sums = torch.zeros(schedule.num_tokens, dtype=torch.float64)
        for rows in torch.arange(len(labels)).split(100):
            logits, targets = self._predict(model, tokens[rows], labels[rows], schedule.num_steps)
            losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
            sums += losses.sum(0).cpu().double()
        mean = sums / len(labels)
        per_scale = {f"loss_{k}": float(mean[schedule.span(k)].mean()) for k in range(schedule.num_steps)}
        return {"loss": float(mean.mean()), **per_scale}

    def sample(self, model: VARTransformer, path: Path) -> None:
        """A row of four pictures per class (of the first ten), always from the same seeds."""
        pipe = self._pipeline(model)
        labels = [c for c in range(min(10, self.model.config.num_classes)) for _ in range(4)]
        out = pipe(labels, seed=0, batch_size=len(labels), output_type="pt")
        save_grid(out.images * 2 - 1, path, columns=8)

    def save(self, model: VARTransformer, folder: Path) -> None:
        """A complete model folder: transformer, tokenizer, class names and defaults."""
        self._pipeline(model).save_pretrained(folder)

    def _pipeline(self, model: VARTransformer) -> VARPipeline:
        return VARPipeline(model, self.tokenizer, class_names=self.class_names, defaults=self.defaults)
