"""Processes of the command line without the seconds that importing PyTorch takes in each of them.

A *fork server* is a process that has imported everything and then waits: for every command it forks, and the
child, a process of its own with its own folder, variables and streams, runs the command line as ``python -m
nextscale.cli.main`` would. What depends on a fresh interpreter, such as what is imported at all, variables
that are read when it starts, or signals, is tested with real ones.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
LEFT_OUT = ("nextscale.demo", "nextscale.fused", "nextscale.integrations")  # slow to import, and seldom used


# ---------------------------------------------------------------------------- in the tests


def run_command(
    arguments: Sequence[str | Path], folder: Path, *, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run ``nextscale ARGUMENTS`` in a folder, without input; what it wrote, and its exit code.

    Raises subprocess.TimeoutExpired after ``timeout`` seconds.
    """
    words = [str(word) for word in arguments]
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        asked = {"words": words, "folder": str(folder), "out": str(out), "err": str(err), "timeout": timeout}
        code = _server().ask({**asked, "environment": {**os.environ, **ENVIRONMENT}})
        said = [path.read_bytes().decode().replace("\r\n", "\n") for path in (out, err)]
    command = ["nextscale", *words]
    if code is None:
        raise subprocess.TimeoutExpired(command, timeout, *said)
    return subprocess.CompletedProcess(command, code, *said)


class _Server:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        atexit.register(self._process.kill)

    def ask(self, question: dict[str, Any]) -> int | None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the fork server has ended"
        code: int | None = json.loads(answer)
        return code


@cache
def _server() -> _Server:
    return _Server()


# ---------------------------------------------------------------------------- in the server


def serve() -> None:
    """Answer every line of questions with the exit code of a command, or null if it took too long."""
    _import_everything()
    for line in sys.stdin:
        question = json.loads(line)
        child = os.fork()
        if not child:
            _become(question)
            return
        print(json.dumps(_wait(child, question["timeout"])), flush=True)


def _import_everything() -> None:
    import nextscale

    for module in pkgutil.walk_packages(nextscale.__path__, "nextscale."):
        if not module.name.startswith(LEFT_OUT) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _wait(child: int, timeout: float) -> int | None:
    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        _, status = os.waitpid(child, 0)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return os.waitstatus_to_exitcode(status)


def _become(question: dict[str, Any]) -> None:
    """Be the process of a command: ends with its exit code."""
    from nextscale.cli.main import main

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    streams = [os.open(os.devnull, os.O_RDONLY)]
    streams += [os.open(question[name], os.O_CREAT | os.O_WRONLY | os.O_APPEND) for name in ("out", "err")]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(question["folder"])
    os.environ.clear()
    os.environ.update(question["environment"])
    sys.argv = ["nextscale", *question["words"]]
    main()


if __name__ == "__main__":
    # The folder of this file is no place to import from, and the tests' own is.
    sys.path[0] = os.getcwd()
    serve()
