"""What the evidence about SSG consists of: the arms, the grid they share, and how many pictures decide what.

Everything is about the embedded model, the embedded classifier's features, and CIFAR-10's test pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nextscale import ScaledSpatialGuidance

MODEL = "cifar10"

# The same settings are open to every arm, the one without SSG among them.
GRID: Mapping[str, Sequence[float]] = {
    "temperature": (0.6, 0.8, 1.0),
    "top_p": (0.96, 1.0),
    "guidance_scale": (4.0, 6.0, 9.0),
}
STRENGTHS = (0.3, 0.6)
TOP_K = 50

# Which settings are best is found with pictures that no later figure looks at: first by the kernel distance,
# which few pictures do not bias, then among the best by the Fréchet distance.
SELECTION_SEED, SELECTION_IMAGES, KEPT, REFINED_IMAGES = 10_000_000, 200, 3, 1_000
# What is then said of each arm at its best settings rests on these; the seed sets are a million apart.
FINAL_SETS, FINAL_SEED, FINAL_IMAGES = 3, 0, 10_000
REPLICATES = 300

WITHOUT = "no SSG"
MAIN = "dse, ortho"
ARMS: Mapping[str, Mapping[str, Any] | None] = {
    WITHOUT: None,
    MAIN: {"prior": "dse", "norm": "ortho"},
    "dse, forward": {"prior": "dse", "norm": "forward"},
    "dse, backward": {"prior": "dse", "norm": "backward"},
    "dct, ortho": {"prior": "dct", "norm": "ortho"},
    "bilinear": {"prior": "bilinear"},
    "nearest": {"prior": "nearest"},
    "dse, ortho, linear": {"schedule": "linear"},
    "dse, ortho, cosine": {"schedule": "cosine"},
    "dse, ortho, bandwidth": {"schedule": "bandwidth"},
    "dse, ortho, guided memory": {"remember": "guided"},
}
FAILURES = (1.2, 2.4, 4.8)
# The cells of 2x2, 3x3, 4x4, 6x6 and 8x8 read as long rows: what a sampler with wrong grids would do.
WRONG_GRIDS = ((1, 1), (1, 4), (1, 9), (1, 16), (2, 18), (2, 32))


@dataclass(frozen=True)
class Cell:
    """An arm with one strength and one choice of the settings of the grid."""

    arm: str
    beta: float
    settings: Mapping[str, float] = field(hash=False)

    @property
    def ssg(self) -> ScaledSpatialGuidance | None:
        parts = ARMS[self.arm]
        return None if parts is None else ScaledSpatialGuidance(self.beta, **parts)

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the pipeline's call."""
        return {**self.settings, "top_k": TOP_K, "ssg": self.ssg}

    def to_dict(self) -> dict[str, Any]:
        return {"arm": self.arm, "beta": self.beta, **self.settings}


def cells() -> Iterator[Cell]:
    """Every arm with every strength on the whole grid."""
    for arm, parts in ARMS.items():
        for beta in STRENGTHS if parts is not None else (0.0,):
            for values in itertools.product(*GRID.values()):
                yield Cell(arm, beta, dict(zip(GRID, values, strict=True)))
