"""Measure how sampling runs scale: one process against two, and memory over a long run; as JSON with
conditions.

    python benchmarks/scaling.py --output docs/results/scaling.json
    python benchmarks/scaling.py --count 96 --memory-count 0 --repeats 1     # a look at whether it works

Every run is the command that people type, ``nextscale generate --out``: once as a plain process with one
thread, once as ``torchrun --nproc-per-node 2`` with one thread each, in turn, ``--repeats`` times. The rate
counts from the first process that begins to draw to the last whole shard, as the runs' own logs have it;
loading the model is not in it, and is given as ``seconds`` of the whole command. Both must write the same
bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import nextscale


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cifar10", help="a name or a folder")
    parser.add_argument("--count", type=int, default=960, help="pictures of every run for the rate")
    parser.add_argument("--shard-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="the first is compared with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-count", type=int, default=20_000, help="of the long run; 0 for none")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()

    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "conditions": conditions()}
    with tempfile.TemporaryDirectory() as folder:
        result["rates"] = rates(args, Path(folder))
        print(json.dumps(result, indent=2), flush=True)
        if args.memory_count:
            result["memory"] = memory(args, Path(folder))
    result["conditions"]["load_at_the_end"] = os.getloadavg()
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if args.output is not None:
        args.output.write_text(text, encoding="utf-8")


def conditions() -> dict[str, Any]:
    """What the figures were measured under."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "nextscale": nextscale.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": names[0].partition(":")[2].strip() if names else platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads_per_process": 1,
        "load_at_the_start": os.getloadavg(),
    }


def rates(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Pictures per second of every number of processes, all repeats in turn, and the ratio of their
    medians.
    """
    measured: dict[int, list[dict[str, float]]] = {n: [] for n in args.processes}
    digests = set()
    for repeat in range(args.repeats):
        for number in args.processes:
            out = folder / f"{number}-{repeat}"
            seconds = run(args, out, args.count, number)
            measured[number].append({"images_per_second": rate(out), "seconds": seconds})
            digests.add(digest(out))
    medians = {n: statistics.median(m["images_per_second"] for m in runs) for n, runs in measured.items()}
    first = medians[args.processes[0]]
    return {
        "images": args.count,
        "processes": {str(n): runs for n, runs in measured.items()},
        "median_images_per_second": {str(n): m for n, m in medians.items()},
        "ratio_to_the_first": {str(n): m / first for n, m in medians.items()},
        "bytes_are_the_same": len(digests) == 1,
    }


def memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Resident memory of one process after every twentieth of a long run."""
    out = folder / "long"
    seconds = run(args, out, args.memory_count, 1)
    held = [event["memory"] for event in events(out) if event["event"] == "shard"]
    step = max(1, len(held) // 20)
    settled = held[len(held) // 10 :]  # the first shards fill caches that stay
    return {
        "images": args.memory_count,
        "seconds": seconds,
        "images_per_second": rate(out),
        "resident_mib": [round(b / 2**20, 1) for b in held[::step]],
        "growth_mib_after_a_tenth": round((settled[-1] - settled[0]) / 2**20, 2),
        "range_mib_after_a_tenth": round((max(settled) - min(settled)) / 2**20, 2),
    }


def run(args: argparse.Namespace, out: Path, count: int, processes: int) -> float:
    """Give the command; how long it took as a whole."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "nextscale", "generate", "--model", args.model]
    command += ["--count", str(count), "--shard-size", str(args.shard_size), "--out", str(out)]
    command += ["--batch-size", str(args.batch_size)]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def events(out: Path) -> list[dict[str, Any]]:
    """The log of a run, of all its processes, in order of time."""
    lines = [line for path in (out / "logs").iterdir() for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda event: str(event["time"]))


def rate(out: Path) -> float:
    """Pictures per second from the first that begins to the last whole shard."""
    found = events(out)
    drawn = [event for event in found if event["event"] == "shard"]
    begun = next(event for event in found if event["event"] == "begin")
    ended, started = (datetime.fromisoformat(event["time"]) for event in (drawn[-1], begun))
    return float(sum(event["pictures"] for event in drawn) / (ended - started).total_seconds())


def digest(out: Path) -> str:
    """SHA-256 over all shards of a run."""
    total = hashlib.sha256()
    for path in sorted(out.glob("shard-*")):
        total.update(path.read_bytes())
    return total.hexdigest()


if __name__ == "__main__":
    main()
