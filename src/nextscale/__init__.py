"""Next-scale (VAR) image generation with Scaled Spatial Guidance.

The public names below are imported when they are first used, so that ``import nextscale`` and the command
line answer without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nextscale.families.hart.pipeline import HARTPipeline
    from nextscale.families.infinity.pipeline import InfinityPipeline
    from nextscale.families.var.pipeline import VARPipeline
    from nextscale.guidance import ClassifierFreeGuidance, ScaledSpatialGuidance
    from nextscale.scales import ScaleSchedule

__version__ = "0.1.0"

__all__ = [
    "ClassifierFreeGuidance",
    "HARTPipeline",
    "InfinityPipeline",
    "ScaleSchedule",
    "ScaledSpatialGuidance",
    "VARPipeline",
    "__version__",
]

_HOMES = {
    "ClassifierFreeGuidance": "nextscale.guidance",
    "HARTPipeline": "nextscale.families.hart.pipeline",
    "InfinityPipeline": "nextscale.families.infinity.pipeline",
    "ScaleSchedule": "nextscale.scales",
    "ScaledSpatialGuidance": "nextscale.guidance",
    "VARPipeline": "nextscale.families.var.pipeline",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module, once (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
