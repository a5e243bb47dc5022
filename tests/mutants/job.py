"""Puts one fault at a time into a copy of the sources and runs the tests that should see it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CAUGHT, UNSEEN, STALE, BROKEN = "caught", "PASSED UNSEEN", "STALE", "BROKEN"


@dataclass(frozen=True)
class Fault:
    """A small patch.

    what: the fault in words. file: under ``src/nextscale``. old, new: a text that occurs there once, and what
    takes its place. tests: paths under ``tests``, of those that should fail then.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def source(self, root: Path) -> Path:
        return root / "src" / "nextscale" / self.file

    def apply(self, root: Path) -> str | None:
        """The file with the fault in it; ``None`` if the text is not there, or more than once."""
        text = self.source(root).read_text(encoding="utf-8") if self.source(root).is_file() else ""
        return text.replace(self.old, self.new) if text.count(self.old) == 1 else None


@contextmanager
def copy() -> Iterator[Path]:
    """A copy of the sources and of the tests, which goes again."""
    with tempfile.TemporaryDirectory(prefix="nextscale-mutants-") as folder:
        root = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("src", "tests", "nextscale-comfyui"):
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", root)
        yield root


def passes(root: Path, tests: Sequence[str]) -> tuple[bool | None, str]:
    """Whether tests pass with the sources of a copy, and what they print; ``None`` if they cannot run."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"tests/{name}" for name in tests)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    return {0: True, 1: False}.get(done.returncode), done.stdout[-3000:] + done.stderr[-1000:]


def tried(faults: Sequence[Fault]) -> Iterator[tuple[Fault, str, str]]:
    """Each fault with what became of it, and what was printed.

    First all the tests must pass without any fault; else there is one outcome, BROKEN, of no fault.
    """
    with copy() as root:
        everything = sorted({name for fault in faults for name in fault.tests})
        fine, said = passes(root, everything)
        if not fine:
            yield Fault("nothing", "", "", "", tuple(everything)), BROKEN, said
            return
        for fault in faults:
            changed = fault.apply(root)
            if changed is None:
                yield fault, STALE, f"{fault.file} does not hold {fault.old!r} once"
                continue
            path = fault.source(root)
            original = path.read_bytes()
            path.write_text(changed, encoding="utf-8")
            try:
                fine, said = passes(root, fault.tests)
            finally:
                path.write_bytes(original)
            yield fault, {True: UNSEEN, False: CAUGHT, None: BROKEN}[fine], said
