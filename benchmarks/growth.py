"""Time and memory against tokens, batch and depth, ours beside the official code, each in its own process.

    python benchmarks/growth.py --official path/to/VAR --output docs/results/performance/growth.json

The peak is what the process held at most while it drew (VmHWM, reset before), so this runs on Linux. Random
weights of the published shape; see nextscale.benchmark.arms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nextscale.benchmark.arms import official, random_pipeline
from nextscale.benchmark.suite import CFG, TOP_K, TOP_P
from nextscale.evaluation.files import write_json
from nextscale.evaluation.provenance import versions
from nextscale.nn.placement import place

MIB = 1 << 20
# Depth, pixels per side, pictures at once: one of them grows at a time.
POINTS = {
    "depth": [(4, 256, 1), (8, 256, 1), (16, 256, 1)],
    "batch": [(8, 256, 1), (8, 256, 2), (8, 256, 4), (8, 256, 8)],
    "size": [(4, 256, 1), (4, 512, 1), (4, 1024, 1)],
}


def points() -> Iterator[tuple[int, int, int]]:
    yield from dict.fromkeys(point for group in POINTS.values() for point in group)


def measure(who: str, depth: int, size: int, batch: int, dtype: str, checkout: Path | None) -> dict[str, Any]:
    """Seconds of the second of two runs, and the peak of both."""
    placement = place("cpu", dtype)
    pipe = random_pipeline(depth, size, placement)
    labels = [i % 1000 for i in range(batch)]
    if who == "official":
        if checkout is None:
            raise SystemExit("--official is needed for the official code")
        theirs = official(checkout, pipe, batch, cfg=CFG, top_k=TOP_K, top_p=TOP_P)
        weights, schedule = pipe.memory_estimate(batch).weights, pipe.schedule
        del pipe

        def run() -> object:
            return theirs()
    else:
        settings = {"guidance_scale": CFG, "top_k": TOP_K, "top_p": TOP_P}
        weights, schedule = pipe.memory_estimate(batch).weights, pipe.schedule

        def run() -> object:
            return pipe(labels, seed=0, batch_size=batch, output_type="pt", **settings)

    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    found = {
        "seconds": seconds,
        "peak_mib": _memory("VmHWM"),
        "before_mib": before,
        "weights_mib": weights / MIB,
        "tokens": schedule.num_tokens,
    }
    if who == "ours":
        found["estimate_mib"] = pipe.memory_estimate(batch, ssg=False, top_k=TOP_K).total / MIB
    return found


def _memory(name: str) -> float:
    """MiB of this process, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return float(line.split()[1]) / 1024
    raise SystemExit(f"this system does not tell {name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", type=Path, help="a checkout of FoundationVision/VAR")
    parser.add_argument("--output", type=Path, default=Path("growth.json"))
    parser.add_argument("--dtype", default="float32")
    who = "a single point: ours or official, and its sizes"
    parser.add_argument("--one", nargs=4, metavar=("WHO", "DEPTH", "SIZE", "BATCH"), help=who)
    args = parser.parse_args()
    if args.one:
        who, *numbers = args.one
        print(json.dumps(measure(who, *map(int, numbers), args.dtype, args.official)))
        return
    rows = []
    for depth, size, batch in points():
        for who in ("ours", "official") if args.official else ("ours",):
            command = [sys.executable, __file__, "--dtype", args.dtype, "--one", who]
            command += [str(depth), str(size), str(batch)]
            command += ["--official", str(args.official)] if args.official else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = {"who": who, "depth": depth, "size": size, "batch": batch}
            rows.append({**row, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], flush=True)
    conditions = {
        **versions(),
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, {"conditions": conditions, "rows": rows})


if __name__ == "__main__":
    main()
