"""What the shell and the system pass on besides arguments: permissions, streams, variables, memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nextscale.cli.main import main

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(*arguments: str | Path, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code == code


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o027, 0o002, 0o077], indirect=True)
def test_every_file_has_the_permissions_of_the_umask(umask: int, model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("generate", "cat", "-m", model, "--separate", "single")
    run("compare", "cat", "-m", model, "--count", "1")
    run("convert", model, "copy")
    for kind in ("tar", "parquet", "folder", "npz"):
        run("generate", "-m", model, "--count", "3", "--format", kind, "--out", kind)
    run("evaluate", "-m", model, "--images", "20", "--reference", "none", "--save-images", "all.npz")
    found = [p for p in tmp_path.rglob("*") if not p.is_symlink()]
    assert len(found) > 30
    for path in found:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(expected), path
