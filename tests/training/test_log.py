from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest

from nextscale.errors import NextscaleWarning
from nextscale.training.log import Log, records


def test_damaged_lines_are_left_out_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    good = [b'{"step": 1, "loss": 2.0}', b'{"step": 2, "eval": {"psnr": null}}']
    bad = [b"\xff\xfe", b"<html>", b"[1]", b'{"loss": 1}', b'{"step": "3"}', b'{"step": true}', b"[" * 10_000]
    path.write_bytes(b"\n".join([good[0], *bad, good[1], b'{"step": 3, "lo']))
    with pytest.warns(
        NextscaleWarning, match=f"{len(bad)} of {len(bad) + 2} lines of .* are damaged and left out"
    ):
        log = Log(path, 2)
    assert log.measured == {2}
    log.write({"step": 3, "loss": float("nan"), "eval": {"a": float("inf")}})
    log.close()
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert lines[2] == b'{"step": 3, "loss": null, "eval": {"a": null}}'
    assert len(list(records(path))) == 3


def test_a_new_run_has_a_new_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"anything")
    Log(path, 0).close()
    assert path.read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_records_wait_until_they_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, 0)
    file = log.file
    with Path("/dev/full").open("ab", buffering=0) as log.file:  # a disk without room
        with pytest.warns(NextscaleWarning, match="No space left on device; the training goes on"):
            log.write({"step": 1})
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            log.write({"step": 2})
    log.file = file
    log.write({"step": 3})
    log.close()
    assert [record["step"] for record in records(path)] == [1, 2, 3]
    assert os.listdir(tmp_path) == ["log.jsonl"]
