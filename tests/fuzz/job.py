"""Each case in a process of its own, with a limit on memory and time, and an eye on what it does."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.targets import TARGETS, Target

from nextscale.errors import NextscaleError

SECONDS = 20  # of computing, so that a busy machine makes no fault
WAITING = 300  # seconds by the clock, for what would wait for ever
MEMORY = 1 << 30  # bytes beyond what the process has when it begins
MESSAGE = 2000  # characters; a clear error is not longer

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "os.spawn",
)
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "shutil.rmtree",
)


@dataclass
class Outcome:
    """What came of one case.

    verdict: ``"refused"`` (a clear error), ``"read"`` (the damage did not matter, a bit in a weight for
    instance), or ``"fault"``. what: the error, or the fault.
    """

    case: str
    verdict: str
    what: str = ""
    seconds: float = 0.0


@dataclass
class Counts:
    """The outcomes of a job."""

    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    slowest: Outcome | None = None
    faults: list[Outcome] = field(default_factory=list)

    def add(self, target: Target, outcome: Outcome) -> None:
        self.verdicts[outcome.verdict] += 1
        if self.slowest is None or outcome.seconds > self.slowest.seconds:
            self.slowest = outcome
        if outcome.verdict == "refused":
            self.errors[outcome.what.partition(":")[0]] += 1
            self.targets[target.name] += 1
        elif outcome.verdict == "fault":
            self.faults.append(outcome)

    def __str__(self) -> str:
        refused = ", ".join(f"{name} {n}" for name, n in self.targets.most_common())
        errors = ", ".join(f"{name} {n}" for name, n in self.errors.most_common())
        slow = self.slowest or Outcome("none", "")
        return (
            f"{sum(self.verdicts.values())} cases: {self.verdicts['refused']} refused with one clear error "
            f"({errors}), {self.verdicts['read']} read (the damage did not matter), "
            f"{self.verdicts['fault']} faults\n"
            f"slowest: {slow.seconds:.1f} s ({slow.case})\nrefused: {refused}"
        )


def run(cases: int, seed: int = 0, folder: Path | None = None) -> Iterator[tuple[Target, Outcome]]:
    """Cases of all targets in turn, from the seed on."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=folder))
    try:
        for target in TARGETS:
            pristine = root / target.name
            pristine.mkdir()
            target.make(pristine)
            target.read(pristine)  # it can be read; and what torch sets up on first use is no child's doing
        for number in range(cases):
            target = TARGETS[number % len(TARGETS)]
            yield target, attempt(target, seed + number, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def attempt(target: Target, seed: int, root: Path) -> Outcome:
    """One case of a target whose files lie in ``root``."""
    cage = Path(tempfile.mkdtemp(dir=root))
    folder = cage / "given"
    try:
        case = target.case(seed, root / target.name, folder)
        before = sorted(str(p) for p in cage.rglob("*"))
        start = time.monotonic()
        outcome = _in_a_process(case, target, folder)
        outcome.seconds = time.monotonic() - start
        after = sorted(str(p) for p in cage.rglob("*"))
        if before != after:
            outcome.verdict, outcome.what = "fault", f"files appeared or went: {set(after) ^ set(before)}"
        return outcome
    finally:
        shutil.rmtree(cage, ignore_errors=True)


def _in_a_process(case: str, target: Target, folder: Path) -> Outcome:
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            os.write(writing, json.dumps(_read(target, folder)).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not told:
        return Outcome(case, "fault", f"ended with {status} and no word")
    verdict, what = json.loads(told)
    return Outcome(case, verdict, what)


def _read(target: Target, folder: Path) -> tuple[str, str]:
    """In the child: read, under limits and watched."""
    seen: list[str] = []
    # A ValueError of the watched code would hide what an audit hook raises, so it writes things down instead.
    sys.addaudithook(lambda event, arguments: _watch(event, arguments, seen))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(WAITING)
    try:
        target.read(folder)
        verdict = "read", ""
    except NextscaleError as error:
        text = f"{type(error).__name__}: {error}"
        verdict = (
            ("refused", text) if len(text) <= MESSAGE else ("fault", f"{len(text)} characters: {text[:300]}")
        )
    except BaseException:
        verdict = "fault", traceback.format_exc()[-3000:]
    return ("fault", f"it did {seen}") if seen else verdict


def _watch(event: str, arguments: tuple[Any, ...], seen: list[str]) -> None:
    if event in _RUNS or event in _CHANGES:
        seen.append(f"{event} {arguments!r}"[:200])
    elif event == "open" and int(arguments[2] or 0) & _WRITING and str(arguments[0]) != os.devnull:
        seen.append(f"open for writing {arguments[0]!r}"[:200])
