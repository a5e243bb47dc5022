"""stdout and stderr as they come: ordinary, of few characters, closed, or left by their readers."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def prepare() -> None:
    """Make both streams safe to print to.

    A stream that was closed from the start (``>&-``) would be ``None``, and its number would go to the next
    file that is opened, which then gets what is printed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    # What Python has no stream for is printed to nowhere. It stays open as long as the process.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without · or █ still gets its lines


def finish() -> None:
    """Write what is left in the streams, or throw it away where that cannot be done.

    Python would try once more as it ends, print a traceback, and replace the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
