"""The faults. A new one is a few lines; where the code has changed, it is reported as stale."""

from __future__ import annotations

<<<<<<< HEAD
from tests.mutants import drawing, keeping, measuring

FAULTS = (*measuring.FAULTS, *drawing.FAULTS, *keeping.FAULTS)
=======
from tests.mutants import drawing, measuring, page

FAULTS = (*measuring.FAULTS, *drawing.FAULTS, *page.FAULTS)
>>>>>>> x-page
