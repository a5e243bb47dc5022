"""Time and memory against depth, batch and size, ours beside the official code, each in its own process.

    python benchmarks/growth.py --official path/to/VAR --output docs/results/performance/growth.json
    python benchmarks/growth.py --show docs/results/performance/growth.json --plot docs/figures/growth.png
    python benchmarks/growth.py --official path/to/VAR --device cuda --dtype bfloat16 --output growth-gpu.json

The second prints the table and draws the picture. The peak is what the process held at most while it drew
(VmHWM, reset before), so measuring runs on Linux; on a GPU it is what PyTorch had allocated there, and one
process measures all. Random weights of the published shapes; see nextscale.benchmark.arms.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from nextscale.benchmark.arms import generation, official, random_pipeline
from nextscale.benchmark.counts import count
from nextscale.benchmark.suite import CFG, TOP_K, TOP_P
from nextscale.benchmark.timing import Seconds
from nextscale.evaluation.files import write_json
from nextscale.evaluation.provenance import versions
from nextscale.families.var.pipeline import VARPipeline
from nextscale.nn.placement import Placement, place

MIB = 1 << 20
# Depth, pixels per side, pictures at once: one of them grows at a time.
POINTS = {
    "cpu": {
        "depth": [(4, 256, 1), (8, 256, 1), (16, 256, 1), (24, 256, 1)],
        "batch": [(16, 256, 1), (16, 256, 2), (16, 256, 4), (16, 256, 8)],
        "size": [(8, 256, 1), (8, 512, 1), (8, 1024, 1)],
    },
    "cuda": {
        "depth": [(8, 256, 1), (16, 256, 1), (24, 256, 1), (30, 256, 1)],
        "batch": [(16, 256, 1), (16, 256, 4), (16, 256, 16), (16, 256, 64)],
        "size": [(16, 256, 1), (16, 512, 1), (16, 1024, 1)],
    },
}
WARM, TIMED = 3, 5  # runs on a GPU, of which the second is recorded
AXES = {"depth": 0, "size": 1, "batch": 2}

Row = dict[str, Any]
Point = tuple[int, int, int]


def points(device: str) -> Iterator[Point]:
    yield from dict.fromkeys(point for group in POINTS[device].values() for point in group)


# ------------------------------------------------------------------ measuring


def measure(who: str, depth: int, size: int, batch: int, placement: Placement, checkout: Path | None) -> Row:
    """Seconds of the second of two runs, or on a GPU the median of some; and the peak of all."""
    pipe = random_pipeline(depth, size, placement)
    found: Row = {"tokens": pipe.schedule.num_tokens}
    run: Callable[[], Seconds]
    if who == "official":
        if checkout is None:
            raise SystemExit("--official is needed for the official code")
        theirs = official(checkout, pipe, batch, cfg=CFG, top_k=TOP_K, top_p=TOP_P)
        del pipe

        def run() -> Seconds:
            return theirs()[0]
    else:
        estimate = pipe.memory_estimate(batch, ssg=False, top_k=TOP_K)
        found |= {"estimate_mib": estimate.total / MIB, **operations(pipe, batch)}
        run = generation(pipe, batch, None, guidance_scale=CFG, top_k=TOP_K, top_p=TOP_P)

    if placement.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MIB
        runs = [run() for _ in range(WARM + TIMED)][WARM:]
        seconds = sorted(runs, key=lambda r: r["total"])[TIMED // 2]
        return {
            **found,
            "seconds": seconds,
            "peak_mib": torch.cuda.max_memory_allocated() / MIB,
            "before_mib": before,
        }
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    seconds = run()
    return {**found, "seconds": seconds, "peak_mib": _memory("VmHWM"), "before_mib": before}


def operations(pipe: VARPipeline, batch: int) -> Row:
    """Of all pictures: the transformer's, of them those of attention, and the decoder's."""
    config = pipe.transformer.config
    counts = count(config, pipe.tokenizer.config, batch=batch)
    lengths = pipe.schedule.lengths
    scores = 2 * batch * sum(n * seen for n, seen in zip(lengths, accumulate(lengths), strict=True))
    return {
        "transformer_flops": counts.transformer_flops,
        "attention_flops": 4 * scores * config.embed_dim * config.depth,
        "decoder_flops": counts.decoder_flops,
    }


def _memory(name: str) -> float:
    """MiB of this process, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return float(line.split()[1]) / 1024
    raise SystemExit(f"this system does not tell {name}")


# ------------------------------------------------------------------ showing


def table(rows: Sequence[Row], device: str) -> list[str]:
    """In Markdown, one line a point: ours, the official code, and what our time goes to."""
    lines = [
        "| VAR | at once | tokens | seconds, ours | official | ratio | of ours, the decoder | "
        "operations: decoder, attention | held, ours | official | estimate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for point in points(device):
        ours, theirs = (_row(rows, who, point) for who in ("ours", "official"))
        if ours is None:
            continue
        depth, size, batch = point
        total = ours["transformer_flops"] + ours["decoder_flops"]
        seconds = ours["seconds"]
        cells = [
            f"d{depth}, {size} px",
            str(batch),
            str(ours["tokens"]),
            _shown(seconds["total"]),
            _shown(theirs["seconds"]["total"]) if theirs else "",
            f"{theirs['seconds']['total'] / seconds['total']:.2f}" if theirs else "",
            f"{seconds['decoder'] / seconds['total']:.0%}",
            f"{ours['decoder_flops'] / total:.0%}, {ours['attention_flops'] / total:.0%}",
            f"{_held(ours):.0f} MiB",
            f"{_held(theirs):.0f} MiB" if theirs else "",
            f"{ours['estimate_mib']:.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _shown(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.4f}"


def _row(rows: Sequence[Row], who: str, point: Point) -> Row | None:
    names = ("depth", "size", "batch")
    found = (r for r in rows if r["who"] == who and tuple(r[n] for n in names) == point)
    return next(found, None)


def _held(row: Row) -> float:
    return float(row["peak_mib"] - row["before_mib"])


def plot(rows: Sequence[Row], device: str, path: Path) -> None:
    """Seconds above, memory below; a column for each of depth, batch and size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    groups = POINTS[device]
    figure, axes = plt.subplots(2, len(groups), figsize=(11, 6), layout="constrained")
    for column, (axis, group) in enumerate(groups.items()):
        place_of = AXES[axis]
        fixed = [f"d{group[0][0]}", f"{group[0][1]} px", f"{group[0][2]} at once"]
        del fixed[place_of]
        for who, marker in (("ours", "o"), ("official", "s")):
            known = [(p[place_of], row) for p in group if (row := _row(rows, who, p)) is not None]
            x = [value for value, _ in known]
            axes[0, column].plot(x, [row["seconds"]["total"] for _, row in known], marker=marker, label=who)
            axes[1, column].plot(x, [_held(row) for _, row in known], marker=marker, label=who)
        axes[0, column].set_title(f"{axis}, at {', '.join(fixed)}")
        for panel in axes[:, column]:
            panel.set(xscale="log", yscale="log")
            ticks = [point[place_of] for point in group if _row(rows, "ours", point) is not None]
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
            panel.grid(visible=True, alpha=0.3)
    axes[0, 0].set_ylabel("seconds of a batch")
    axes[1, 0].set_ylabel("MiB held beyond before")
    axes[0, 0].legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", type=Path, help="a checkout of FoundationVision/VAR")
    parser.add_argument("--output", type=Path, default=Path("growth.json"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", choices=list(POINTS))
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a measurement")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="and draw it")
    who = "a single point: ours or official, and its sizes"
    parser.add_argument("--one", nargs=4, metavar=("WHO", "DEPTH", "SIZE", "BATCH"), help=who)
    args = parser.parse_args()
    if args.one:
        who, *numbers = args.one
        depth, size, batch = map(int, numbers)
        print(json.dumps(measure(who, depth, size, batch, place("cpu", args.dtype), args.official)))
        return
    if args.show:
        stored = json.loads(args.show.read_text())
        rows, device = stored["rows"], stored["conditions"].get("kind", "cpu")
        print("\n".join(table(rows, device)))
        if args.plot:
            plot(rows, device, args.plot)
        return
    rows = []
    conditions = {
        **versions(),
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_before": os.getloadavg()[0],
        "kind": args.device,
    }
    if args.device == "cuda":
        conditions["device"] = torch.cuda.get_device_name()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for depth, size, batch in points(args.device):
        for who in ("ours", "official") if args.official else ("ours",):
            row = {"who": who, "depth": depth, "size": size, "batch": batch}
            if args.device == "cuda":
                placement = place("cuda", args.dtype)
                row |= measure(who, depth, size, batch, placement, args.official)
            else:
                row |= apart(row, args.dtype, args.official)
            rows.append(row)
            print(rows[-1], flush=True)
            write_json(args.output, {"conditions": conditions, "rows": rows})  # a point at a time


def apart(row: Row, dtype: str, checkout: Path | None) -> Row:
    """:func:`measure` on the CPU, in a process of its own."""
    command = [sys.executable, __file__, "--dtype", dtype, "--one"]
    command += [str(row[name]) for name in ("who", "depth", "size", "batch")]
    command += ["--official", str(checkout)] if checkout else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
