"""The fuzz job: ``python -m tests.fuzz --cases 5000 --seed 1``."""

from __future__ import annotations

import argparse
import sys

import torch
from tests.fuzz.job import Counts, run


def main() -> int:
    """Print the counts, and every fault with what reproduces it; the exit code says whether there was any."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = Counts()
    for target, outcome in run(options.cases, options.seed):
        counts.add(target, outcome)
        if outcome.verdict == "fault":
            print(f"FAULT {outcome.case}\n{outcome.what}\n", flush=True)
    print(counts)
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
