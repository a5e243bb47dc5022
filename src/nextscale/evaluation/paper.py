"""Published figures, to stand beside measured ones in a column of their own, and never anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COLUMNS = ("fid", "sfid", "inception_score", "precision", "recall")

# Figures reported for SSG on VAR at 256 pixels (arXiv 2602.05534): 50,000 pictures, without and with SSG.
_SSG_256: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    16: ((3.42, 8.70, 275.6, 0.84, 0.51), (3.27, 8.39, 285.3, 0.85, 0.50)),
    20: ((2.67, 7.97, 299.8, 0.83, 0.55), (2.49, 7.60, 305.2, 0.83, 0.56)),
    24: ((2.39, 8.18, 314.7, 0.82, 0.58), (2.20, 6.95, 324.0, 0.83, 0.59)),
    30: ((2.02, 8.52, 302.9, 0.82, 0.60), (1.68, 8.50, 313.2, 0.81, 0.62)),
}
# FID in the README of VAR's repository; SSG's paper is not known to name one at 512 pixels.
_VAR_512 = {36: 2.63}


@dataclass(frozen=True)
class Published:
    """Figures by name, and where they are from."""

    figures: dict[str, float]
    source: str


def published(preset: str, model: Mapping[str, Any], *, ssg: bool) -> Published | None:
    """What was published for a preset and a model, without or with SSG; ``None`` if nothing.

    model: as a :class:`~nextscale.evaluation.protocol.Protocol` describes it.
    """
    depth = model.get("depth")
    if model.get("family") != "var" or not isinstance(depth, int):
        return None
    if preset == "imagenet256-adm" and depth in _SSG_256:
        figures = dict(zip(COLUMNS, _SSG_256[depth][ssg], strict=True))
        arm = "with SSG at an unnamed strength" if ssg else "without SSG"
        return Published(figures, f"reported for SSG on VAR d{depth} (arXiv 2602.05534), {arm}")
    if preset == "imagenet512-adm" and depth in _VAR_512 and not ssg:
        return Published({"fid": _VAR_512[depth]}, f"the README of VAR's repository, d{depth}")
    return None
