"""The faults. A new one is a few lines; where the code has changed, it is reported as stale."""

from __future__ import annotations

from tests.mutants import drawing, measuring

FAULTS = (*measuring.FAULTS, *drawing.FAULTS)
