"""Progress on stderr: bars on a terminal, now and then a plain line everywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from nextscale.errors import NextscaleWarning

LINE_SECONDS = 10.0
Advance = Callable[[int], None]


def on_terminal() -> bool:
    """Whether bars make sense: stderr is a terminal that can move its cursor, and ours alone."""
    return sys.stderr.isatty() and _is_first()


def _is_first() -> bool:
    """Whether this is the one process of a launch that shows progress; launchers number them so."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """A plain line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print the library's warnings as plain lines, each once, without the place in the code they point at."""
    said: set[str] = set()
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, NextscaleWarning):
                usual(message, category, *place, **more)
            elif str(message) not in said:
                said.add(str(message))
                note(f"note: {message}")

        warnings.showwarning = show
        yield


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner while something without measurable progress goes on; nothing when piped."""
    # What is loaded meanwhile reads these when it is imported; their users can set them otherwise.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not on_terminal():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextlib.contextmanager
def drawing(text: str, total: int) -> Iterator[Advance]:
    """Progress over ``total`` equal parts; yields what to call with the number of parts just done."""
    if not on_terminal():
        yield _lines(text, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda parts: bar.advance(task, parts)


def _lines(text: str, total: int) -> Advance:
    started = last = time.monotonic()
    done = 0

    def advance(parts: int) -> None:
        nonlocal done, last
        done += parts
        now = time.monotonic()
        if now - last >= LINE_SECONDS and _is_first():
            last = now
            left = (now - started) / done * (total - done)
            note(f"{text}: {done / total:.0%}, {duration(now - started)} so far, {duration(left)} left")

    return advance


@contextlib.contextmanager
def sampling(text: str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Progress of a run of several processes; yields what to call with the pictures done and their rate."""
    if not on_terminal():
        yield _sampling_lines(text, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(text), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total, state="")
        yield lambda done, rate: bar.update(task, completed=done, state=_state(done, total, rate))


def _sampling_lines(text: str, total: int) -> Callable[[int, float], None]:
    last = time.monotonic()

    def report(done: int, rate: float) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS and _is_first():
            last = time.monotonic()
            note(f"{text}: {_state(done, total, rate)}")

    return report


def _state(done: int, total: int, rate: float) -> str:
    """``"1,200 of 50,000  20.1 images/s  40 min 29 s left"``"""
    speed_and_left = f"  {rate:.3g} images/s  {duration((total - done) / rate)} left" if rate else ""
    return f"{done:,} of {total:,}{speed_and_left}"


def duration(seconds: float) -> str:
    """``"8 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


class TrainingLines:
    """A reporter for pipes and files: one line per record, at most one in some seconds."""

    def __init__(self, every: float = LINE_SECONDS) -> None:
        self.every, self.last = every, float("-inf")

    def __call__(self, record: dict[str, Any], step: int, total: int) -> None:
        if "note" in record:
            note(record["note"])
            return
        if not is_training_record(record):
            note(f"held out, step {step}: {figures(record)}")
            return
        now = time.monotonic()
        if now - self.last >= self.every or step >= total:
            self.last = now
            note(f"step {step}/{total}  {speed(record)}")


class TrainingBar:
    """A reporter for terminals: a bar with loss, speed and time left; held-out figures scroll above it."""

    def __init__(self, text: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn(text), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[state]}"))
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.task = self.bar.add_task(text, total=None, state="reading the data")

    def __enter__(self) -> TrainingBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, record: dict[str, Any], step: int, total: int) -> None:
        if "note" in record:
            self.bar.console.print(record["note"], highlight=False, markup=False)
            return
        if not is_training_record(record):
            self.bar.console.print(f"held out, step {step}: {figures(record)}", highlight=False)
            return
        self.bar.update(self.task, completed=step, total=total, state=speed(record))


def is_training_record(record: dict[str, Any]) -> bool:
    """Whether a record is about speed and loss, rather than figures on held-out data."""
    return "images_per_second" in record


def figures(record: dict[str, Any]) -> str:
    """``"psnr 24.83  used 0.99"``; lists of figures are shortened."""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())


def speed(record: dict[str, Any]) -> str:
    """``"loss 5.1234  210 images/s  3 min 20 s left"``; before the training, what is done instead."""
    what = f"loss {record['loss']:.4f}" if "loss" in record else record.get("doing", "")
    left = duration(record["seconds_left"])
    return f"{what}  {record['images_per_second']:.0f} images/s  {left} left"
