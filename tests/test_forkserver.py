"""A command in the fork server is the command in an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.forkserver import ENVIRONMENT, run_command


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "horse", "--count", "2", "--seed", "3", "--output", "here.png"],
        ["generate", "zebra"],
        ["info", "--help"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_a_command_is_the_same_as_in_an_interpreter_of_its_own(words: list[str], tmp_path: Path):
    results = []
    for name in ("forked", "alone"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "forked":
            done = run_command(words, folder)
        else:
            command = [sys.executable, "-m", "nextscale.cli.main", *words]
            environment = {**os.environ, **ENVIRONMENT}
            options = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL}
            done = subprocess.run(command, capture_output=True, text=True, **options)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        results.append((done.returncode, done.stdout, done.stderr, files))
    assert results[0] == results[1]


def test_what_takes_too_long_is_killed_and_the_next_command_runs(tmp_path: Path):
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(["generate", "horse", "--count", "1000", "--output", "here.png"], tmp_path, timeout=2)
    assert run_command(["--version"], tmp_path).returncode == 0
    assert not list(tmp_path.iterdir())
