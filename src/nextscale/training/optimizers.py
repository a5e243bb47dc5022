"""The optimisers of a training, and which parameters decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nextscale.errors import InvalidArgumentError
from nextscale.training.muon import Muon, Pair, is_inner
from nextscale.training.settings import TrainSettings, autocast_dtype


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer | Pair:
    """Make the optimiser that the settings name, for a model's parameters.

    Raises InvalidArgumentError for "muon" and a model without transformer blocks.
    """
    groups = decay_groups(model.named_parameters())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.betas[0], nesterov=True, fused=True)
    if settings.optimizer == "muon":
        return _muon(model, groups, settings)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Vectors, biases, position tables and the like are exempt from weight decay (the published rules)."""
    exempt = ("pos_1LC", "pos_start", "lvl_embed", "ada_gss", "scale_mul", "cfg_uncond", "sos.ca.mat_q")
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, p in parameters:
        if p.requires_grad:
            (
                free if p.ndim <= 1 or name.endswith("bias") or any(e in name for e in exempt) else decayed
            ).append(p)
    return [{"params": decayed, "decays": True}, {"params": free, "decays": False}]


def _muon(model: nn.Module, groups: list[dict[str, Any]], settings: TrainSettings) -> Pair:
    """Muon for the matrices in blocks, AdamW for what is left."""
    inner = {id(p) for name, p in model.named_parameters() if is_inner(name, p)}
    parts: list[list[dict[str, Any]]] = []
    for wanted in (False, True):
        chosen = ({**g, "params": [p for p in g["params"] if (id(p) in inner) == wanted]} for g in groups)
        parts.append([g for g in chosen if g["params"]])
    if not parts[1]:
        raise InvalidArgumentError(
            "the optimizer muon is for transformers, and this model has no matrices in blocks; use adamw"
        )
    dtype = autocast_dtype("auto", next(model.parameters()).device)
    adamw = torch.optim.AdamW(parts[0], lr=settings.lr, betas=settings.betas, fused=True)
    return Pair(adamw, Muon(parts[1], lr=settings.lr, dtype=dtype))
