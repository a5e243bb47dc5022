"""How processes of the command line treat memory that tensors no longer need."""

from __future__ import annotations

import os

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT = 2**30
"""Bytes of freed memory from which on glibc gives some back to the system."""
LARGE = 2**25
"""Bytes of blocks that always come from the system and go back to it: as large as glibc's own choice gets."""


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for what comes next, and not give it back and ask for it again.

    It does so whenever the top of its heap gets free, which may be at every layer of a decoder, or never,
    depending on what else lies there. Where there is no glibc, or its variables are set, nothing is done.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, KEPT)
    mallopt(_MMAP_THRESHOLD, LARGE)
