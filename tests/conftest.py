"""What all tests share: one thread, no network, reproducible property tests, and the golden cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which torch does later
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported, which torch does not do

# Continuous integration draws the same examples every time; elsewhere new ones are tried. Deadlines measure
# how busy the machine is, not whether the code is right.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums depend on the number of threads in their last digits, so no test may leave it changed."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with small random-weight cases and their expected outputs, ``tests/golden``."""
    return GOLDEN
