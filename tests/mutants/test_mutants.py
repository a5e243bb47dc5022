"""The list of faults is in order, and the job tells apart what is caught from what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.mutants.faults import FAULTS
from tests.mutants.job import ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.what)
def test_a_fault_is_a_change_that_runs(fault: Fault):
    assert fault.old != fault.new and fault.tests
    assert all((ROOT / "tests" / name).exists() for name in fault.tests)
    changed = fault.apply(ROOT)
    if changed is not None:  # else the job says that it is stale
        compile(changed, fault.file, "exec")


def test_every_fault_is_another():
    assert len({f.what for f in FAULTS}) == len(FAULTS) == len({(f.file, f.old, f.new) for f in FAULTS})


def test_texts_that_are_not_there_once_are_stale(tmp_path: Path):
    file = tmp_path / "src" / "nextscale" / "a.py"
    file.parent.mkdir(parents=True)
    file.write_text("x = 1\ny = 1\n")
    assert Fault("", "a.py", "x = 1", "x = 2", ()).apply(tmp_path) == "x = 2\ny = 1\n"
    assert Fault("", "a.py", "= 1", "= 2", ()).apply(tmp_path) is None
    assert Fault("", "a.py", "z", "x", ()).apply(tmp_path) is None
    assert Fault("", "b.py", "x", "y", ()).apply(tmp_path) is None
