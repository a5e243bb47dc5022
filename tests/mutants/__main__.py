"""Which faults the tests catch: ``python -m tests.mutants [WORD ...]``, those with a word in them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.mutants.faults import FAULTS
from tests.mutants.job import BROKEN, CAUGHT, UNSEEN, tried


def main() -> int:
    """Print a line per fault, and the counts; the exit code says whether all of them were caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="try those faults alone whose text or file has one of them")
    words = parser.parse_args().words
    chosen = [f for f in FAULTS if not words or any(w in f"{f.what} {f.file}" for w in words)]
    counts: Counter[str] = Counter()
    for fault, outcome, said in tried(chosen):
        counts[outcome] += 1
        print(f"{outcome:14} {fault.file}: {fault.what}", flush=True)
        if outcome != CAUGHT and outcome != UNSEEN:
            print(said, flush=True)
    print(", ".join(f"{counts[name]} {name.lower()}" for name in sorted(counts)) or "no such fault")
    return 0 if set(counts) == {CAUGHT} and BROKEN not in counts else 1


if __name__ == "__main__":
    sys.exit(main())
