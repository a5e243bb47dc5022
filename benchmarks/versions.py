"""Time generation by this checkout beside another one, side by side in one run.

    git worktree add ../before COMMIT
    python benchmarks/versions.py ../before --dtype bfloat16 --batch-size 4

Each checkout has a process of its own, with the same random weights, and they draw in turn, so that whatever
else happens on the machine happens to both. Printed are the median of the quotients of neighbouring runs,
this over the other, with the smallest and the largest, and the peak of memory of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SETTINGS = {"top_k": 900, "top_p": 0.96, "guidance_scale": 1.5}


def work(given: argparse.Namespace) -> None:
    """Draw a batch for every line that comes in, and answer with the seconds it took."""
    import torch

    from nextscale.benchmark.arms import random_pipeline
    from nextscale.nn.placement import place

    torch.set_num_threads(given.threads)
    pipe = random_pipeline(given.depth, 256, place("cpu", given.dtype))
    labels = list(range(given.batch_size))
    for line in sys.stdin:
        begun = time.perf_counter()
        pipe(labels, seed=int(line), ssg=given.ssg, batch_size=len(labels), output_type="pt", **SETTINGS)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "peak_kib": peak}), flush=True)


def start(checkout: Path) -> subprocess.Popen[str]:
    """Start the process of one checkout, with the arguments of this one."""
    command = [sys.executable, __file__, *sys.argv[1:], "--work"]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def ask(process: subprocess.Popen[str], seed: int) -> dict[str, Any]:
    """Let a process draw once."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seed}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="another checkout of this repository")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ssg", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given)
        return
    processes = [start(HERE), start(given.other)]
    rounds = [[ask(process, seed) for process in processes] for seed in range(given.repeats + 1)][1:]
    quotients = sorted(this["seconds"] / other["seconds"] for this, other in rounds)
    times = [statistics.median(r[i]["seconds"] for r in rounds) for i in (0, 1)]
    peaks = [rounds[-1][i]["peak_kib"] / 1024 for i in (0, 1)]
    print(f"d{given.depth}, batch {given.batch_size}, {given.dtype}, {len(rounds)} rounds after one unused")
    print(
        f"this / other: {statistics.median(quotients):.3f} [{quotients[0]:.3f}, {quotients[-1]:.3f}]; "
        f"seconds {times[0]:.2f}, {times[1]:.2f}; peak {peaks[0]:.0f}, {peaks[1]:.0f} MiB"
    )
    for process in processes:
        process.communicate()


if __name__ == "__main__":
    main()
