"""SSG for code that is not this library's: the official repositories, their forks, and loops of one's own.

:func:`guide` works on the unmodified models of FoundationVision/VAR, mit-han-lab/hart and
FoundationVision/Infinity; :class:`SpatialGuidanceHook` goes into any other next-scale loop. Only torch and
``nextscale.guidance`` are needed. ``docs/integrations.md`` shows both in use.
"""

from __future__ import annotations

from nextscale.integrations.context import ModelGuide, guide
from nextscale.integrations.hook import SpatialGuidanceHook

__all__ = ["ModelGuide", "SpatialGuidanceHook", "guide"]
