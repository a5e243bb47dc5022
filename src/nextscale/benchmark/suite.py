"""One run of the benchmark: what is measured, the numbers with their conditions, and the table."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nextscale import __version__
from nextscale.benchmark.arms import (
    ONCE,
    decoded_psnr,
    generation,
    limits,
    official,
    random_pipeline,
    spatial_arms,
)
from nextscale.benchmark.counts import Counts, count
from nextscale.benchmark.timing import Seconds, Spread, ratio, side_by_side, spread
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.nn.placement import Placement

MIB = 1 << 20
STRENGTH = 0.6
CFG, TOP_K, TOP_P = 1.5, 900, 0.96  # what VAR's own demonstration uses
PLAIN, GUIDED, OFFICIAL, EXACT = "no SSG", "SSG", "official code", "official, float32"


@dataclass(frozen=True)
class Workload:
    """What is drawn: a model's shape, pixels per side, pictures at once, and rounds of every arm."""

    depth: int = 16
    size: int = 256
    batch: int = 1
    repeats: int = 5


@dataclass
class Report:
    """Numbers and conditions of one run."""

    workload: Workload
    placement: Placement
    runs: dict[str, list[Seconds]]
    spatial: dict[str, list[Seconds]]
    counts: Counts
    limits: dict[str, float]
    start: dict[str, list[float]]
    conditions: dict[str, Any]
    agreement: dict[str, float] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: medians and quartiles, every single time, counts, and the conditions."""
        return {
            "conditions": self.conditions,
            "seconds_per_picture": {
                name: {phase: self._each(runs, phase).to_dict() for phase in runs[0]}
                for name, runs in self.runs.items()
            },
            "ratios": {name: value.to_dict() for name, value in self.ratios().items()},
            "fraction_of_limit": self.fractions(),
            "operations_per_second": self.limits,
            "start_seconds": {name: Spread.of(values).to_dict() for name, values in self.start.items()},
            "agreement": self.agreement,
            "memory": self.memory,
            "counts": self.counts.to_dict(),
            "seconds": {"generation": self.runs, "guidance": self.spatial, "start": self.start},
        }

    def ratios(self) -> dict[str, Spread]:
        """Time of the second over time of the first, round by round."""
        found = {
            f"{GUIDED} / {PLAIN}": ratio(self.runs[GUIDED], self.runs[PLAIN]),
            f"SSG alone / a generation with {PLAIN}": ratio(self.spatial[ONCE], self.runs[PLAIN]),
        }
        for name, runs in self.spatial.items():
            if name != ONCE:
                found[f"SSG by {name} / by {ONCE}"] = ratio(runs, self.spatial[ONCE])
        for name in (OFFICIAL, EXACT):
            if name in self.runs:
                found[f"{name} / ours"] = ratio(self.runs[name], self.runs[PLAIN])
        return found

    def fractions(self) -> dict[str, float]:
        """Operations a second over the most this machine was seen to do, in transformer and decoder."""
        runs = self.runs[PLAIN]
        return {
            "transformer": self.counts.transformer_flops
            / spread(runs, "transformer").median
            / self.limits["matrix_product"],
            "decoder": self.counts.decoder_flops
            / spread(runs, "decoder").median
            / self.limits["convolution"],
        }

    def lines(self) -> list[str]:
        """The table for a screen."""
        w, c = self.workload, self.conditions
        out = [
            f"VAR d{w.depth}, {w.size} px, {w.batch} at once, CFG {CFG}, top-k {TOP_K}, top-p {TOP_P}, "
            f"{c['dtype']}, random weights",
            f"{c['device']}, {c['threads']} threads, load {c['load_before']}; "
            f"{w.repeats} round{'s' * (w.repeats > 1)}; median [quartiles]",
            "",
            "seconds a picture",
        ]
        for name, runs in self.runs.items():
            phases = "".join(
                f", {phase} {self._each(runs, phase).median:.3g}" for phase in runs[0] if phase != "total"
            )
            out.append(f"  {name:<16} {_shown(self._each(runs, 'total'))}{phases}")
        out += ["", "ratios, round by round"]
        out += [f"  {name:<58} {_shown(value)}" for name, value in self.ratios().items()]
        if "pixel" in self.agreement:
            out.append(f"  largest difference of a pixel, ours and official: {self.agreement['pixel']:.2g}")
        if "decoded_psnr" in self.agreement:
            psnr = self.agreement["decoded_psnr"]
            out.append(f"  the same tokens decoded in {c['dtype']} and in float32: {psnr:.1f} dB PSNR")
        if self.memory:
            out += ["", "MiB at the peak beyond weights"]
            for name, count in self.memory["peak_bytes"].items():
                estimate = self.memory["estimated_bytes"].get(name)
                told = f", estimated {estimate / MIB:.0f}" if estimate else ""
                out.append(f"  {name:<16} {count / MIB:.0f}{told}")
        out += ["", "operations, and the share of what this machine does in one large product or convolution"]
        for name, flops, limit in (
            ("transformer", self.counts.transformer_flops, self.limits["matrix_product"]),
            ("decoder", self.counts.decoder_flops, self.limits["convolution"]),
        ):
            out.append(
                f"  {name:<12} {flops / w.batch / 1e9:8.1f} G a picture, limit {limit / 1e9:.0f} G a second, "
                f"reached {self.fractions()[name]:.0%}"
            )
        by_torch = self.limits["matrix_product_by_torch"]
        out.append(f"  that product as PyTorch does it: {by_torch / 1e9:.0f} G a second")
        if self.start:
            out += ["", "start, seconds"]
            out += [f"  {name:<40} {_shown(Spread.of(values))}" for name, values in self.start.items()]
        return out

    def _each(self, runs: Sequence[Seconds], phase: str) -> Spread:
        whole, batch = spread(runs, phase), self.workload.batch
        return Spread(whole.median / batch, whole.low / batch, whole.high / batch)


def _shown(value: Spread) -> str:
    return f"{value.median:.4g} [{value.low:.4g}, {value.high:.4g}]"


def total_runs(workload: Workload, placement: Placement, *, with_official: bool) -> int:
    """How many generations :func:`run` times or warms up with."""
    return (workload.repeats + _warm(placement)) * (2 + with_official * (1 + _exact(placement)))


def _exact(placement: Placement) -> bool:
    """Whether the official code is timed in float32 too, beside half precision; on a CPU, where some do."""
    return placement.dtype != torch.float32 and placement.device.type == "cpu"


def _warm(placement: Placement) -> int:
    return 1 if placement.device.type == "cpu" else 3  # the second run on a GPU is recorded


def run(
    workload: Workload,
    placement: Placement,
    *,
    checkout: Path | None = None,
    start: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> Report:
    """Measure.

    checkout: of FoundationVision/VAR, to time the official code beside ours. start: time the start of the
    command line and of a first picture too, in processes of their own. advance: hears of every generation.
    """
    conditions = _conditions(placement, workload)
    memory = _Memory(placement.device)
    pipe = random_pipeline(workload.depth, workload.size, placement)
    settings: dict[str, Any] = {"guidance_scale": CFG, "top_k": TOP_K, "top_p": TOP_P}
    ssg = ScaledSpatialGuidance(beta=STRENGTH)
    arms: dict[str, Callable[[], Seconds]] = {
        PLAIN: generation(pipe, workload.batch, None, **settings),
        GUIDED: generation(pipe, workload.batch, ssg, **settings),
    }
    estimate = pipe.memory_estimate(workload.batch, top_k=TOP_K)
    memory.estimates[PLAIN] = estimate.total - estimate.weights
    memory.watch(PLAIN, arms[PLAIN], _warm(placement))
    agreement: dict[str, float] = {}
    if checkout is not None:
        drawn = {"cfg": CFG, "top_k": TOP_K, "top_p": TOP_P}
        theirs = official(checkout, pipe, workload.batch, **drawn)  # type: ignore[arg-type]
        arms[OFFICIAL] = lambda: theirs()[0]
        memory.watch(OFFICIAL, arms[OFFICIAL], 1)
        if _exact(placement):
            exact = official(checkout, pipe, workload.batch, half=False, **drawn)  # type: ignore[arg-type]
            arms[EXACT] = lambda: exact()[0]
        labels = [i % pipe.transformer.config.num_classes for i in range(workload.batch)]
        ours = pipe(
            labels, seed=0, sampler="multinomial", batch_size=workload.batch, output_type="pt", **settings
        ).images
        agreement["pixel"] = float((theirs()[1].float().cpu() - ours.float().cpu()).abs().max())
    if placement.dtype != torch.float32:
        tokens = pipe([0], seed=0, output_type="pt", **settings).tokens
        agreement["decoded_psnr"] = decoded_psnr(pipe, tokens)
    grids, config = pipe.schedule.grids, pipe.transformer.config
    return Report(
        workload,
        placement,
        runs=side_by_side(arms, workload.repeats, advance, warm=_warm(placement)),
        spatial=side_by_side(
            spatial_arms(grids, workload.batch, config.vocab_size, pipe.device), workload.repeats
        ),
        counts=count(config, pipe.tokenizer.config, batch=workload.batch, element=placement.dtype.itemsize),
        limits=limits(pipe.device, placement.dtype),
        start=_start(workload.repeats) if start else {},
        conditions=conditions,
        agreement=agreement,
        memory=memory.to_dict(),
    )


class _Memory:
    """What runs take on a GPU beyond what was allocated before; nothing on other devices."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.peaks: dict[str, int] = {}
        self.estimates: dict[str, int] = {}

    def watch(self, name: str, run: Callable[[], object], times: int) -> None:
        if not self.on_gpu:
            return
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(times):
            run()
        self.peaks[name] = torch.cuda.max_memory_allocated() - before

    def to_dict(self) -> dict[str, dict[str, int]]:
        return {"peak_bytes": self.peaks, "estimated_bytes": self.estimates} if self.on_gpu else {}


def _start(repeats: int) -> dict[str, list[float]]:
    """Seconds of whole processes: the help text, and a first picture of the embedded model."""
    with tempfile.TemporaryDirectory() as folder:
        commands: Mapping[str, list[str]] = {
            "nextscale --help": ["--help"],
            "nextscale generate cat (embedded model)": ["generate", "cat", "-o", f"{folder}/cat.png"],
        }
        runs = side_by_side({name: partial(_process, c) for name, c in commands.items()}, repeats)
    return {name: [r["total"] for r in found] for name, found in runs.items()}


def _process(arguments: list[str]) -> Seconds:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "nextscale", *arguments], check=True, capture_output=True)
    return {"total": time.perf_counter() - start}


def _conditions(placement: Placement, workload: Workload) -> dict[str, Any]:
    device = placement.device
    return {
        "nextscale": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "triton": _version("triton"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": str(placement.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "depth": workload.depth,
        "size": workload.size,
        "batch": workload.batch,
        "repeats": workload.repeats,
        "ssg": STRENGTH,
        "guidance_scale": CFG,
        "top_k": TOP_K,
        "top_p": TOP_P,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
