"""All figures of a protocol from features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.evaluation.features import KERNEL_DIVISOR, for_kernel
from nextscale.evaluation.metrics import (
    frechet_distance,
    frechet_error,
    frechet_infinity,
    inception_score,
    kernel_distance_subsets,
)
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.neighbours import manifold_scores
from nextscale.evaluation.protocol import Protocol, Rules
from nextscale.evaluation.recognition import share_interval
from nextscale.evaluation.reference import MeasuredReference
from nextscale.evaluation.shards import Shards

# What the same computation is called in different feature spaces. Those of another space are other figures,
# and get other names, so that nobody takes one for the other.
NAMES: Mapping[str, Mapping[str, str]] = {
    "inception": {"frechet": "fid", "spatial": "sfid", "kernel": "kid", "score": "inception_score"},
    "inception-clean": {
        "frechet": "clean_fid",
        "spatial": "clean_sfid",
        "kernel": "clean_kid",
        "score": "clean_inception_score",
    },
}
OTHERS = {"frechet": "fd", "kernel": "kd", "score": "classifier_score"}


@dataclass
class Figures:
    """scores: by name. errors: standard errors by the jackknife, of distances from
    at least as many pictures as there are dimensions. details: parts and settings of scores.

    left_out: what could not be computed, and why.
    """

    scores: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def measure(
    generated: Shards,
    reference: MeasuredReference | None,
    protocol: Protocol,
    labels: Tensor | None = None,
) -> Figures:
    """Every figure that the protocol's features and reference allow.

    labels: int64 ``(N,)``, the classes of samples where they are known, -1 for none.
    """
    figures, rules = Figures(), protocol.rules
    names = NAMES.get(protocol.features["name"], OTHERS)
    features = generated.tensor("features")
    for key, title in (("features", "frechet"), ("spatial", "spatial")):
        gaussian = reference.statistics.get(key) if reference else None
        if gaussian is not None and generated.has(key):
            _frechet(figures, names[title], generated, key, gaussian, rules)
    if reference is None:
        figures.left_out["distances, precision and recall"] = "no reference was given"
    else:
        _extrapolated(
            figures, f"{names['frechet']}_infinity", features, reference.statistics["features"], rules
        )
        if reference.features is None:
            figures.left_out["precision, recall, density, coverage, kernel distance"] = (
                "the reference holds statistics alone"
            )
        else:
            _neighbours(figures, features, reference.features, rules)
            pair = [for_kernel(x, protocol.features) for x in (features, reference.features)]
            _kernel(figures, names["kernel"], pair[0], pair[1], rules)
            if KERNEL_DIVISOR in protocol.features:
                figures.details[f"{names['kernel']}_of"] = f"features / {protocol.features[KERNEL_DIVISOR]}"
    if generated.has("logits"):
        _logits(figures, names["score"], generated.tensor("logits"), protocol, labels)
    return figures


def _frechet(
    figures: Figures, name: str, generated: Shards, key: str, reference: Gaussian, rules: Rules
) -> None:
    groups = _grouped(generated, key, rules)
    found = frechet_distance(Moments.merged(groups).gaussian(), reference)
    figures.scores[name] = found.value
    figures.details |= {
        f"{name}_mean_term": found.mean_term,
        f"{name}_covariance_term": found.covariance_term,
    }
    if generated.count >= len(reference.mean):
        # With fewer pictures than dimensions the bias is the larger part by far, and an error would mislead.
        figures.errors[name] = frechet_error(groups, reference)


def _grouped(generated: Shards, key: str, rules: Rules) -> list[Moments]:
    """Moments of random groups of equal size, without all features in memory."""
    order = torch.randperm(generated.count, generator=torch.Generator().manual_seed(rules.shuffle_seed))
    group_of = torch.empty_like(order)
    group_of[order] = torch.arange(generated.count) % rules.groups
    groups: list[Moments] = []
    done = 0
    for rows in generated.parts(key):
        groups = groups or [Moments(rows.shape[1]) for _ in range(rules.groups)]
        mine = group_of[done : done + len(rows)]
        for i, group in enumerate(groups):
            group.update(rows[mine == i])
        done += len(rows)
    return groups


def _extrapolated(figures: Figures, name: str, features: Tensor, reference: Gaussian, rules: Rules) -> None:
    count, dims = features.shape
    if rules.smallest < 2 * dims:
        # With hardly more pictures than dimensions the bias does not fall with 1 / N yet.
        figures.left_out[name] = f"needs {4 * dims} pictures or more"
        return
    sizes = np.linspace(rules.smallest, count, rules.points).round().astype(int).tolist()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(rules.shuffle_seed))
    found = frechet_infinity(features, reference, sizes, order)
    figures.scores[name] = found.intercept
    figures.details[f"{name}_points"] = [list(found.sizes), list(found.values)]


def _neighbours(figures: Figures, features: Tensor, reference: Tensor, rules: Rules) -> None:
    furthest = max(rules.k, rules.density_k)
    if min(len(features), len(reference)) <= furthest:
        figures.left_out["precision, recall, density, coverage"] = (
            f"need more than {furthest} pictures a side"
        )
        return
    found = manifold_scores(features, reference, k=rules.k, density_k=rules.density_k)
    for name in ("precision", "recall", "density", "coverage"):
        figures.scores[name] = getattr(found, name)


def _kernel(figures: Figures, name: str, features: Tensor, reference: Tensor, rules: Rules) -> None:
    found = kernel_distance_subsets(
        features, reference, subsets=rules.kernel_subsets, size=rules.kernel_size, seed=rules.kernel_seed
    )
    figures.scores[name] = float(found.mean())
    figures.details[f"{name}_subset_std"] = float(found.std(correction=0))


def _logits(figures: Figures, name: str, logits: Tensor, protocol: Protocol, labels: Tensor | None) -> None:
    rules = protocol.rules
    found = inception_score(logits, block=rules.score_block, seed=rules.shuffle_seed)
    figures.scores[name] = found.mean
    figures.details[f"{name}_one_block"] = inception_score(logits, block=None).mean
    classes = protocol.features.get("classes")
    if classes is None or protocol.classes not in (None, classes):
        return
    if protocol.classes is not None:
        labels = torch.tensor([protocol.label(i) for i in range(len(logits))])
    elif labels is None:
        figures.left_out["accuracy"] = "nobody said of what classes the pictures are (arr_1)"
        return
    known = labels >= 0
    if not bool(known.any()) or int(labels.max()) >= classes:
        figures.left_out["accuracy"] = (
            f"the pictures have labels up to {int(labels.max())}, and the classifier knows 0 to {classes - 1}"
        )
        return
    hits, count = int((logits.argmax(1) == labels)[known].sum()), int(known.sum())
    figures.scores["accuracy"] = hits / count
    figures.details["accuracy_interval"] = list(share_interval(hits, count))
