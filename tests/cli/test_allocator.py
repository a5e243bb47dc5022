"""What the command line tells glibc about freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from nextscale.cli.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def blocks():
    for _ in range(3):
        some = [bytearray(24 << 20) for _ in range(8)]  # more together than glibc leaves alone
        del some

blocks()
before = faults()
blocks()
print(faults() - before)
"""


def page_faults(how: str, **variables: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc here")
def test_freed_memory_is_kept():
    assert page_faults("kept") < page_faults("plain") / 10
    assert page_faults("kept", MALLOC_ARENA_MAX="2") > 1000  # who sets glibc's variables knows better
